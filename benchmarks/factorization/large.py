"""Llama's layout with 1.1 billion random parameters, factorized under a memory limit.

All layers of all blocks in closed form, over 32 rows of 512 tokens, in a process of its own, whose
peak resident set is the kernel's high-water mark; the result is saved and, in another process, run
once.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Verdict, in_fresh_process, note
from _llama import Llama, write

from factorization.making import Given

__all__ = ["as_tables", "measure", "verdicts"]

PEAK_MB = 4000.0
# Also where the folder for the files can be chosen: they take 8 GB, activations up to 4 GB more.
FOLDER_VARIABLE = "BENCHMARK_FOLDER"
_LIMIT = 1_000_000_000
_KEEP = 0.6
_ROWS, _TOKENS = 32, 512
QUICK = Llama(width=256, layers=2, heads=8, kv_heads=4, mlp=512, vocabulary=500)
_QUICK_ROWS, _QUICK_TOKENS = 16, 32

Figures = dict[str, Any]


def measure(given: Given) -> Figures:
    """Time and peak of the factorization, and whether its file runs."""
    sizes = QUICK if given.quick else Llama()
    rows, tokens = (_QUICK_ROWS, _QUICK_TOKENS) if given.quick else (_ROWS, _TOKENS)
    with tempfile.TemporaryDirectory(dir=os.environ.get(FOLDER_VARIABLE)) as name:
        folder = Path(name)
        model, data = folder / "model.onnx", folder / "rows.npz"
        note(f"writing a model of {sizes.parameters:,} parameters")
        size = write(sizes, model)
        drawn = np.random.default_rng(0).integers(0, sizes.vocabulary, (rows, tokens))
        np.savez(data, input_ids=drawn, attention_mask=np.ones_like(drawn))
        output = folder / "factors" / "model.onnx"
        told = {"model": os.fspath(model), "data": os.fspath(data), "output": os.fspath(output)}
        fresh = in_fresh_process("factorization.large", "factorize", **told, limit=_LIMIT)
        found: Figures = {
            "parameters": sizes.parameters,
            "bytes": size,
            "rows": rows,
            "tokens": tokens,
        }
        found |= {"limit": _LIMIT, "keep": _KEEP, "peak_mb": fresh.peak_mb, **fresh.answer}
        found["whole_seconds"] = fresh.seconds
        if "failed" in found:
            return found
        found["bytes_after"] = sum(file.stat().st_size for file in output.parent.iterdir())
        # The float file makes room for what its successor needs to run.
        model.with_name(model.name + ".data").unlink()
        run = in_fresh_process(
            "factorization.large", "runs", model=os.fspath(output), data=os.fspath(data)
        )
        return found | {"finite": run.answer}


def factorize(model: str, data: str, output: str, limit: int) -> Figures:
    """In a fresh process: all layers in closed form, saved."""
    from edgecompress import Recipe
    from edgecompress.errors import EdgeCompressError
    from edgecompress.graph_pass import Context, make_pass, run_pass
    from edgecompress.model import Model
    from edgecompress.resources import Resources
    from factorization.making import clocks, in_short, since
    from factorization.subjects import opened

    tables = {
        "source": {"model": model},
        "data": {"batch_size": 1, "calibration": {"path": data}},
        "target": {"name": "cpu-x86-64"},
    }
    rows = opened(Recipe.from_dict(tables, base=Path(data).parent, where="large"))
    resources = Resources(memory=limit, scratch=Path(data).parent)
    context = Context(calibration=rows, resources=resources, progress=_Told())
    options = {
        "keep": _KEEP,
        "ranks": "uniform",
        "refine": False,
        "rows": rows.calibration_rows,
        "never_slower": False,
        # The head stays whole, as in the papers: its 32,000 outputs are the answer itself.
        "nodes": {"logits": False},
    }
    before = clocks()
    try:
        applied = run_pass(make_pass("factorize", options), Model.load(model), context)
    except EdgeCompressError as error:
        return {"failed": " ".join(str(error).split())[:200]}
    factorized = since(before)
    Path(output).parent.mkdir()
    applied.model.save(output)
    short = in_short(applied)
    errors = [
        max(block["errors"].values()) for block in short.pop("blocks") or [] if block["errors"]
    ]
    return {**factorized, **short, "blocks": len(errors), "saved_seconds": since(before)["seconds"]}


class _Told:
    """Progress as lines, at most one in ten seconds."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._last >= 10:
            self._last = now
            spent = now - self._started
            print(f"     {label}: {done} of {total}, {spent:.0f} s", file=sys.stderr, flush=True)


def runs(model: str, data: str) -> bool:
    """In a fresh process: whether the file gives finite outputs in onnxruntime."""
    from factorization.judging import session

    rows = np.load(data)
    feed = {name: rows[name][:1] for name in rows.files}
    return all(bool(np.isfinite(output).all()) for output in session(model).run(None, feed))


def as_tables(found: Figures) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, head and cells."""
    title = f"Llama layout, {found['parameters']:,} parameters, {found['rows']} x {found['tokens']}"
    if "failed" in found:
        return []
    head = ("layers", "GB before", "GB after", "wall s", "CPU s", "peak MB", "output finite")
    row = [
        str(found["layers"]),
        f"{found['bytes'] / 1e9:.2f}",
        f"{found['bytes_after'] / 1e9:.2f}",
        f"{found['seconds']:.0f}",
        f"{found['cpu_seconds']:.0f}",
        f"{found['peak_mb']:.0f}",
        "yes" if found["finite"] else "NO",
    ]
    return [(f"{title} tokens, limit {found['limit'] / 1e9:g} GB", head, [row])]


def verdicts(found: Figures) -> list[Verdict]:
    """The goal."""
    goal = f"{found['parameters']:,} parameters in closed form: peak below {PEAK_MB:.0f} MB"
    if "failed" in found:
        return [Verdict(goal, found["failed"], False)]
    shown = f"{found['peak_mb']:.0f} MB in {found['seconds'] / 60:.0f} minutes"
    return [Verdict(goal, shown, found["peak_mb"] < PEAK_MB and found["finite"])]
