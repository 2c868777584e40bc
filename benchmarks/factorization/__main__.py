"""Low-rank factorization against plain SVD and SVD-LLM: accuracy, time, latency and memory.

Parts are measured one by one and merged into ``results/factorization.json``; finished runs are
kept, so that an interrupted measurement goes on where it stopped. Exit code 1 where a part that was
run in full misses a goal.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from _common import DATA, Verdict, note, table

from factorization import records
from factorization.making import Given
from factorization.subjects import UnavailableError


def main() -> int:
    given = _arguments()
    if not DATA.exists():
        print("skipped: ../shared/data is absent (real models and data are not in this repository)")
        return 0
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    runs = Given(given.quick, given.fresh, given.kept)
    missed = False
    for part in given.only:
        models = _models(part, given.models)
        for name in models if part in records.BY_MODEL else [None]:
            missed |= _measure(part, name, runs)
    record = records.read(quick=given.quick)
    if not given.quick:
        records.write(record, given.write, short=given.readme)
    return 1 if missed and not given.quick else 0


def _measure(part: str, name: str | None, given: Given) -> bool:
    """Measure, print and merge a part; returns whether a goal was missed."""
    started = time.perf_counter()
    try:
        if name is None:
            figures: Any = records.WHOLE[part].measure(given)
        else:
            figures = records.BY_MODEL[part].measure(name, given)
    except UnavailableError as error:
        print(f"{part} {name}: left out: {error}")
        return False
    # What others have measured meanwhile is kept.
    record = records.merged(records.read(quick=given.quick), part, name, figures)
    file = records.save(record, quick=given.quick)
    for each in records.tables_of(part, name, figures):
        print(f"\n{table(*each)}")
    told = record[part] if name is None else record[part][name]
    listed = [Verdict(**each) for each in told["verdicts"]]
    print("", *listed, sep="\n", flush=True)
    spent = time.perf_counter() - started
    note(f"{part} {name or ''}: {spent:.0f} s; written to benchmarks/results/{file}")
    return any(verdict.met is False for verdict in listed)


def _models(part: str, asked: list[str] | None) -> list[str]:
    known = list(records.BY_MODEL[part].MODELS) if part in records.BY_MODEL else []
    return [name for name in known if asked is None or name in asked]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m factorization", description=__doc__)
    parts = ", ".join(records.PARTS)
    parser.add_argument("--only", type=_parts, default=list(records.PARTS), help=parts)
    models = sorted({name for part in records.BY_MODEL.values() for name in part.MODELS})
    parser.add_argument("--models", type=lambda text: text.split(","), help=", ".join(models))
    parser.add_argument("--quick", action="store_true", help="few rows, to see it work")
    parser.add_argument("--fresh", action="store_true", help="run again what is there")
    parser.add_argument(
        "--kept",
        action="store_true",
        help="of objectives and networks, show finished runs only, whatever code they are of",
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE.md", help="put the figures between its markers"
    )
    parser.add_argument("--readme", action="store_true", help="put the short table into README")
    given = parser.parse_args()
    unknown = set(given.models or ()) - set(models)
    if unknown:
        parser.error(f"no model {min(unknown)!r}; one of {', '.join(models)}")
    return given


def _parts(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in records.PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no part {unknown[0]!r}; one of {', '.join(records.PARTS)}"
        )
    return names


if __name__ == "__main__":
    raise SystemExit(main())
