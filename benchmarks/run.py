"""Run benchmarks, print their tables and verdicts, and write ``benchmarks/results/NAME.json``.

Usage: ``python benchmarks/run.py [NAME ...] [--quick]``. ``--quick`` takes few rows and runs, only
to see that the programs work; its figures go to a file that git ignores. Exit code 1 where a full
run misses a goal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from dataclasses import asdict

from _common import DATA, RESULTS, environment

BENCHMARKS = (
    "int8_quality",
    "calibration_cost",
    "walk_cost",
    "large_model",
    "measurement",
    "estimates",
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the figures of edgecompress.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="few rows and runs")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; one of {BENCHMARKS}")
    if not DATA.exists():
        print("skipped: ../shared/data is absent (real models and data are not in this repository)")
        return 0
    missed = [_run(name, arguments.quick) for name in arguments.names or BENCHMARKS]
    return 1 if any(missed) and not arguments.quick else 0


def _run(name: str, quick: bool) -> int:
    """Run one benchmark; returns how many goals it missed."""
    print(f"\n== {name}{' (quick)' if quick else ''}", flush=True)
    started = time.perf_counter()
    outcome = importlib.import_module(name).run(quick=quick)
    record = {
        "benchmark": name,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment(),
        "verdicts": [asdict(verdict) for verdict in outcome.verdicts],
        "figures": outcome.figures,
    }
    file = RESULTS / (f"{name}.quick.tmp" if quick else f"{name}.json")
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n")
    print("\n\n".join(outcome.tables), "\n")
    for verdict in outcome.verdicts:
        print(verdict)
    print(f"\n{record['seconds']} s; written to benchmarks/results/{file.name}")
    return sum(verdict.met is False for verdict in outcome.verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
