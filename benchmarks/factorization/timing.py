"""What factorizing all-MiniLM-L6-v2 costs: with refinement, and in closed form alone.

The closed form is held against plain forward passes of the same rows, in the same batches, through
the torch graph that the pass itself uses; they are timed before and behind it in one process.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from _common import Verdict, in_fresh_process, note, tables_of

from factorization.making import Given
from factorization.subjects import Subject, prepare

__all__ = ["as_tables", "measure", "verdicts"]

MINUTES, FORWARDS = 5, 3.0
THREADS, KEEP = 2, 0.6
_CLOSED, _DEFAULTS = "closed form", "defaults"
# What the ablation has, and about four times that.
_ROWS = (None, 4500)

Figures = dict[str, Any]


def measure(given: Given) -> Figures:
    """Times and peaks of whole processes' passes, on two threads."""
    subjects = [prepare("minilm", quick=given.quick, rows=rows) for rows in _ROWS]
    runs = {}
    for subject in subjects[: 1 if given.quick else None]:
        count = subject.data.calibration_rows
        runs[f"{_CLOSED}, {count} rows"] = _run(subject, ranks="uniform", refine=False)
    first, count = subjects[0], subjects[0].data.calibration_rows
    runs[f"{_DEFAULTS}, unrefined, {count} rows"] = _run(first, refine=False)
    runs[f"{_DEFAULTS}, {count} rows"] = _run(first, refine=True)
    return {"threads": THREADS, "keep": KEEP, "runs": runs}


def _run(subject: Subject, **changes: Any) -> Figures:
    note(f"minilm: time, {subject.rows()}, {changes}")
    options = {"keep": KEEP, "rows": subject.data.calibration_rows, **changes}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        fresh = in_fresh_process(
            "factorization.making",
            "compress",
            recipe=tables_of(subject.recipe),
            options=options,
            output=os.fspath(Path(folder) / "model.onnx"),
            threads=THREADS,
            target="cpu-x86-64",
            forward=not changes["refine"],
        )
    found = {**fresh.answer, "peak_mb": fresh.peak_mb, "tokens": subject.tokens}
    found.pop("blocks", None)
    if "forward" in found:
        both = found["forward"], found["forward_behind"]
        for kind in ("seconds", "cpu_seconds"):
            mean = sum(each[kind] for each in both) / 2
            found[f"{kind}_over_forward"] = found[kind] / mean
    return found


def as_tables(found: Figures) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, head and cells."""
    head = ("", "tokens", "wall s", "CPU s", "wall / forward", "CPU / forward", "peak MB")
    keys = ("tokens", "seconds", "cpu_seconds", "seconds_over_forward", "cpu_seconds_over_forward")
    rows = [
        [name, *(_figure(run.get(key)) for key in (*keys, "peak_mb"))]
        for name, run in found["runs"].items()
        if "failed" not in run
    ]
    return [(f"all-MiniLM-L6-v2 at {found['keep']:g}, {found['threads']} threads", head, rows)]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def verdicts(found: Figures) -> list[Verdict]:
    """The goals, each on the largest run that it is about."""
    listed = []
    for name, run in found["runs"].items():
        if "failed" in run:
            listed.append(Verdict(f"all-MiniLM-L6-v2 {name}", run["failed"], False))
        elif name.startswith(_CLOSED):
            ratios = run["seconds_over_forward"], run["cpu_seconds_over_forward"]
            shown = f"{ratios[0]:.2f} (wall), {ratios[1]:.2f} (CPU)"
            goal = f"all-MiniLM-L6-v2 {name}: at most {FORWARDS:g} forward passes over the rows"
            listed.append(Verdict(goal, shown, max(ratios) <= FORWARDS))
        elif "seconds_over_forward" not in run:
            goal = f"all-MiniLM-L6-v2 {name}: under {MINUTES} minutes on {found['threads']} cores"
            shown = f"{run['seconds']:.0f} s, CPU {run['cpu_seconds']:.0f} s"
            listed.append(Verdict(goal, shown, run["seconds"] < 60 * MINUTES))
    return listed
