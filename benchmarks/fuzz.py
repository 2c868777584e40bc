"""How commands end on spoilt models, recipes and rows, counted.

Run ``python benchmarks/fuzz.py --write docs/robustness.md`` from the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, os.fspath(ROOT))

from tests.conftest import SHARED  # noqa: E402 - the tests are no installed package
from tests.fuzz import DEFECTS, Outcome, fuzz  # noqa: E402
from tests.mutants import REAL, save_bases  # noqa: E402
from tests.mutants_onnx import MUTATORS  # noqa: E402

PAGE = """\
# Robustness

Written by `python benchmarks/fuzz.py --write docs/robustness.md`; do not edit.

## Spoilt input

{mutants} mutants of real files, made from the numbers {first} to {last}: the same number always
gives the same bytes. A sixth has its model's bytes spoilt (bits flipped, bytes cut, inserted, repeated,
spliced from another model), a half the structure of its model ({mutators} kinds of change: dangling
and repeated names, cycles, types, dimensions, values, attributes, operator sets, external data,
subgraphs, functions), a sixth the recipe, a sixth the rows. Models: {models}.
Each runs in a process of its own with {jobs} at a time, limits of time and memory, and must end in
success or in one clear error (exit code 1 or 2), with an output folder that holds a whole result or
none.

{table}

{commands} commands, {defects}.

## Faults

`tests/test_faults.py` holds builds to this, on every run of the tests:

| fault | what is promised |
| --- | --- |
| kill -9 at any step (each file that is opened, renamed or removed is one) | the output folder holds the \
earlier result or the new one; where files were being moved, no manifest, and the next run finishes |
| SIGTERM, SIGINT | exit code 143 or 130, no temporary file is left |
| the next run after any of these | takes finished steps from the cache, removes what the dead have left |
| a full disk of the output | exit code 2, what is free and what is needed; the earlier result stays |
| a full disk of the cache | the build succeeds, with a note in the report |
| a full disk of temporary files | exit code 2, with the way out: `TMPDIR` |
| a cache or temporary folder that vanishes | success or one clear error |
| two builds in one output folder | the second ends at once with exit code 1 and names the first's process |
| two builds with one cache | both succeed |

The lock on an output folder is released by the kernel when its process ends, however it ends. Disks
that cannot lock (some network file systems) are written to without it.
"""  # noqa: E501 - rows of tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=2000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--write", type=Path, help="page to write")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.mutants)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        bases, folder = Path(name) / "bases", Path(name) / "mutants"
        bases.mkdir()
        folder.mkdir()
        models = save_bases(bases, SHARED if SHARED.is_dir() else None)
        for outcome in fuzz(numbers, bases, folder, jobs=options.jobs):
            outcomes.append(outcome)
            if not outcome.fine:
                said = f"{outcome.verdict}: {outcome.command} of {outcome.mutant}\n{outcome.text}\n"
                print(said, file=sys.stderr, flush=True)
            if sys.stderr.isatty():
                print(f"\r{outcome.number - options.first + 1}", end="", file=sys.stderr)
    defects = sum(not outcome.fine for outcome in outcomes)
    text = PAGE.format(
        mutants=f"{options.mutants:,}",
        first=numbers[0],
        last=numbers[-1],
        mutators=len(MUTATORS),
        models=_models(models),
        jobs=options.jobs,
        table=_table(outcomes),
        commands=f"{len(outcomes):,}",
        defects="no defect" if defects == 0 else f"{defects} defects",
    )
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 1 if defects else 0


def _models(models: Sequence[str]) -> str:
    real = [f"`{name}`" for name in models if name in REAL]
    return (
        f"{', '.join(real)} and {len(models) - len(real)} small ones"
        if real
        else (f"{len(models)} small ones")
    )


def _table(outcomes: Sequence[Outcome]) -> str:
    counts = Counter((o.kind, o.command, o.verdict) for o in outcomes)
    heads = ["spoilt", "command", "success", "one clear error", *DEFECTS]
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- " + "| ---: " * (len(heads) - 2) + "|"]
    for kind, command in sorted({(o.kind, o.command) for o in outcomes}):
        found = [counts[kind, command, verdict] for verdict in heads[2:]]
        cells = [kind, f"`{command}`", *(str(count) for count in found)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
