"""All models, all peers, and edgecompress: accuracy, size, latency and cost of compression.

Peers run once, each in a virtual environment of its own; their results are kept, so that a later
run does only ours and the latencies. Exit code 1 where a full run misses a goal.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common import DATA, REPOSITORY, RESULTS, environment, has_vnni, note

from quantization import goals, judging, ours, runs, tables
from quantization.models import LEFT_OUT, MODELS, Prepared, UnavailableError, prepare
from quantization.tables import Found, Row, Summary


def main() -> int:
    given = _arguments()
    if not DATA.exists():
        print("skipped: ../shared/data is absent (real models and data are not in this repository)")
        return 0
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    started = time.perf_counter()
    found, left_out = [], dict(LEFT_OUT)
    for name in given.models:
        try:
            model = prepare(name, quick=given.quick)
        except UnavailableError as error:
            left_out[name] = str(error)
            continue
        found.append(_compare(model, given))
        print(f"\n{tables.as_text(found[-1])}\n", flush=True)
    summary = Summary(
        found,
        goals.verdicts(found, vnni=has_vnni(), judge_accuracy=not given.quick),
        environment(),
        {peer.package: peer.version for peer in runs.PEERS.values()},
        left_out,
    )
    _write(summary, given, time.perf_counter() - started)
    for verdict in summary.verdicts:
        print(verdict)
    missed = any(verdict.met is False for verdict in summary.verdicts)
    return 1 if missed and _is_full(given) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m quantization", description=__doc__)
    parser.add_argument("--models", type=_listed, default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument(
        "--entries",
        type=lambda text: text.split(","),
        default=["*"],
        help="patterns of titles, such as 'edgecompress*,nncf*'; default: all",
    )
    parser.add_argument("--quick", action="store_true", help="few rows and rounds, to see it work")
    parser.add_argument("--fresh", action="store_true", help="run the peers again")
    parser.add_argument(
        "--kept", action="store_true", help="of peers, show finished runs only: some take an hour"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="after a full run: write the document"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="after a full run: put the short table between README's markers",
    )
    return parser.parse_args()


def _listed(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no model {unknown[0]!r}; one of {', '.join(MODELS)}")
    return names


def _is_full(given: argparse.Namespace) -> bool:
    return not given.quick and given.models == list(MODELS) and given.entries == ["*"]


def _compare(model: Prepared, given: argparse.Namespace) -> Found:
    """Every entry that fits a model, compressed, judged and timed."""
    entries: list[tuple[ours.Entry | runs.Method, runs.Run]] = []
    for entry in _chosen(runs.METHODS, model, given.entries):
        entries.append((entry, runs.run(entry, model, fresh=given.fresh, kept=given.kept)))
    for entry in _chosen(ours.ENTRIES, model, given.entries):
        entries.append((entry, ours.run(entry, model)))
    files = {judging.FLOAT: [os.fspath(model.source)]}
    files |= {entry.title: list(run.files) for entry, run in entries if run.files}
    values = judging.accuracies(model, files, fresh=given.fresh)
    running = {name: paths[0] for name, paths in files.items() if isinstance(values[name], float)}
    speeds = judging.latencies(model, running, quick=given.quick)
    reference = _row(model, judging.FLOAT, judging.FLOAT, values, speeds)
    return Found(
        model.name,
        model.about.title,
        model.about.kind,
        model.about.yardstick,
        model.data.calibration_rows,
        model.data.validation_rows,
        [
            reference,
            *(_row(model, e.title, e.format, values, speeds, run) for e, run in entries),
        ],
    )


def _chosen(listed: Sequence[Any], model: Prepared, patterns: Sequence[str]) -> list[Any]:
    return [
        entry
        for entry in listed
        if entry.fits(model)
        if any(fnmatch.fnmatchcase(entry.title, pattern) for pattern in patterns)
    ]


def _row(
    model: Prepared,
    title: str,
    form: str,
    values: dict[str, float | str],
    speeds: dict[str, judging.Speed],
    run: runs.Run | None = None,
) -> Row:
    value, speed = values.get(title), speeds.get(title)
    measured = isinstance(value, float)
    reference = values[judging.FLOAT]
    assert isinstance(reference, float)
    size = model.source.stat().st_size if run is None else run.bytes
    return Row(
        title,
        form,
        ours=title.startswith("edgecompress"),
        value=value if isinstance(value, float) else None,
        drop=model.about.yardstick.drop(reference, value) if isinstance(value, float) else None,
        bytes=size if measured else None,
        latency=None if speed is None else speed.to_float,
        wall=None if speed is None else speed.wall_to_float,
        cpu_ms=None if speed is None else speed.cpu_ms,
        seconds=None if run is None else run.seconds,
        cpu_seconds=None if run is None else run.cpu_seconds,
        peak_mb=None if run is None else run.peak_mb,
        load=None if run is None else run.load,
        failed=value if isinstance(value, str) else None if run is None else run.failed,
    )


def _write(summary: Summary, given: argparse.Namespace, seconds: float) -> None:
    record = {
        "benchmark": "quantization",
        "quick": given.quick,
        "seconds": round(seconds, 1),
        "environment": {**summary.environment, "peers": dict(summary.peers)},
        "left_out": dict(summary.left_out),
        "verdicts": [asdict(verdict) for verdict in summary.verdicts],
        "figures": {found.name: found.as_data() for found in summary.found},
    }
    file = RESULTS / ("quantization.json" if _is_full(given) else "quantization.part.tmp")
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
    note(f"{seconds:.0f} s; written to benchmarks/results/{file.name}")
    if not _is_full(given):
        return
    if given.write:
        given.write.write_text(tables.markdown(summary), encoding="utf-8")
    if given.readme:
        _edit(REPOSITORY / "README.md", lambda text: _with_table(text, summary))


def _with_table(text: str, summary: Summary) -> str:
    return tables.between_markers(text, tables.compact(summary))


def _edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
