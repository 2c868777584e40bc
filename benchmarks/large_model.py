"""A model larger than memory should be: 1.1 billion float32 parameters, 4.4 GB in a data file.

Each step runs in a process of its own, whose peak resident set is the kernel's high-water mark:

- ``inspect``, and ``cleanup`` with the result saved, as the commands and passes run;
- ``statistics`` of all activations over 16 rows of 256 tokens, block by block;
- for comparison, reading the data file twice by plain reads into one small buffer, and plain
  forward passes of onnxruntime over the same rows, loading not counted.

Run alone, it takes the folder for the files: ``benchmarks/large_model.py --folder /scratch``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import Fresh, Outcome, Verdict, in_fresh_process, note, table
from _llama import Llama, write

MEMORY_GOAL_MB, TIME_GOAL = 2000.0, 1.5
ROWS, TOKENS = 16, 256
QUICK = Llama(width=256, layers=4, heads=8, kv_heads=4, mlp=1024, vocabulary=2000)

_BATCH = 4
_BUFFER = 1 << 23


def run(*, quick: bool, folder: Path | None = None) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=folder) as place:
        return _measured(QUICK if quick else Llama(), Path(place))


def _measured(sizes: Llama, folder: Path) -> Outcome:
    model, data = folder / "model.onnx", folder / "rows.npz"
    note(f"writing a model of {sizes.parameters:,} parameters")
    size = write(sizes, model)
    _write_rows(sizes, data)
    steps: dict[str, Fresh] = {}
    for name, function, arguments in (
        ("inspect", "inspect", {}),
        ("cleanup and save", "cleanup", {"output": os.fspath(folder / "clean" / "model.onnx")}),
        ("statistics", "statistics", {"data": os.fspath(data)}),
        ("reading twice", "read_twice", {}),
        ("forward passes", "forward", {"data": os.fspath(data)}),
    ):
        note(name)
        steps[name] = in_fresh_process("large_model", function, model=os.fspath(model), **arguments)
    return _outcome(sizes, size, steps)


def _outcome(sizes: Llama, size: int, steps: dict[str, Fresh]) -> Outcome:
    # Reference steps tell their own seconds: imports and loading are not what they stand for.
    seconds = {n: s.seconds if s.answer is None else s.answer for n, s in steps.items()}
    least = seconds["reading twice"] + seconds["forward passes"]
    ratio = seconds["statistics"] / least
    judged = ("inspect", "cleanup and save", "statistics")
    peak = max(steps[name].peak_mb for name in judged)
    figures = {
        "parameters": sizes.parameters,
        "bytes": size,
        "rows": ROWS,
        "tokens": TOKENS,
        "steps": {n: {"seconds": seconds[n], "peak_mb": steps[n].peak_mb} for n in steps},
        "statistics_over_reading_and_forward": ratio,
    }
    rows = [[name, seconds[name], steps[name].peak_mb] for name in steps]
    return Outcome(
        figures,
        [table(f"{sizes.parameters:,} parameters", ["step", "seconds", "peak MB"], rows)],
        [
            Verdict(f"peak below {MEMORY_GOAL_MB:.0f} MB", f"{peak:.0f} MB", peak < MEMORY_GOAL_MB),
            Verdict(
                f"statistics in {TIME_GOAL} x reading twice plus forward passes",
                f"{ratio:.2f} x",
                ratio <= TIME_GOAL,
            ),
        ],
    )


def _write_rows(sizes: Llama, file: Path) -> None:
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, sizes.vocabulary, (ROWS, TOKENS))
    np.savez(file, input_ids=tokens, attention_mask=np.ones_like(tokens))


def inspect(model: str) -> None:
    _command("inspect", model)


def statistics(model: str, data: str) -> None:
    output = Path(data).with_name("statistics.json")
    _command("statistics", model, "--data", data, "--memory", "2GB", "-o", os.fspath(output))


def _command(*words: str) -> None:
    from edgecompress.cli import main

    code = main(list(words), standalone_mode=False)
    if code:
        raise SystemExit(code)


def cleanup(model: str, output: str) -> None:
    from edgecompress.graph_pass import Context, make_pass, run_pass
    from edgecompress.model import Model

    applied = run_pass(make_pass("cleanup", {}), Model.load(model), Context())
    applied.model.save(output)


def read_twice(model: str) -> float:
    """Seconds of reading the data file twice."""
    buffer = bytearray(_BUFFER)
    started = time.perf_counter()
    for _ in range(2):
        with open(f"{model}.data", "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def forward(model: str, data: str) -> float:
    """Seconds of running all rows through onnxruntime."""
    import numpy as np

    import edgecompress  # noqa: F401  (turns the runtime's telemetry off)
    import onnxruntime as ort  # isort: skip

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows: dict[str, Any] = dict(np.load(data))
    started = time.perf_counter()
    for start in range(0, ROWS, _BATCH):
        session.run(None, {name: array[start : start + _BATCH] for name, array in rows.items()})
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the files go; default: the system's")
    parser.add_argument("--quick", action="store_true", help="a small model")
    arguments = parser.parse_args()
    outcome = run(quick=arguments.quick, folder=arguments.folder)
    print(*outcome.tables, *outcome.verdicts, sep="\n")


if __name__ == "__main__":
    main()
