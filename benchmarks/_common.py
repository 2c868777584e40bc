"""What the benchmarks share: the recipes, fresh processes with their peak memory, and results."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import Recipe, load_recipe

if TYPE_CHECKING:
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.model import Model

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
EXAMPLES = REPOSITORY / "examples"
RESULTS = Path(__file__).resolve().parent / "results"
MB = 1e6


@dataclass(frozen=True)
class Verdict:
    """A goal, what was found, and whether it is met; None where it cannot be judged here."""

    goal: str
    found: str
    met: bool | None

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "not judged"}[self.met]
        return f"{word:>10}  {self.goal}: {self.found}"


@dataclass
class Outcome:
    """What one benchmark found: figures for the file, a table for people, verdicts on the goals."""

    figures: dict[str, Any]
    tables: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass(frozen=True)
class Fresh:
    """What a function answered in a process of its own.

    Attributes:
        answer: Its return value.
        seconds: Wall time of the whole process, start and imports included.
        peak_mb: Largest resident set of the process (10^6 bytes), children not included.
    """

    answer: Any
    seconds: float
    peak_mb: float


def in_fresh_process(module: str, function: str, **arguments: Any) -> Fresh:
    """Call a function of a benchmark module in a new process, for its time and peak memory.

    The peak is the kernel's high-water mark of the new address space (``VmHWM``): the figure of
    ``getrusage`` would start at what this process holds.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, os.fspath(Path(__file__)), module, function]
        started = time.perf_counter()
        arguments_and_answer = [json.dumps(arguments), os.fspath(answer)]
        subprocess.run([*command, *arguments_and_answer], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        found = json.loads(answer.read_text())
    return Fresh(found["answer"], seconds, found["peak_mb"])


def _answer_in_this_process(module: str, function: str, arguments: str, answer: str) -> None:
    import importlib

    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(answer).write_text(json.dumps({"answer": result, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Largest resident set of this process so far, in 10^6 bytes; Linux only."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / MB


def example(name: str, *, calibration: int | None = None, validation: int | None = None) -> Recipe:
    """The recipe ``examples/NAME.toml``, perhaps with fewer rows."""
    recipe = load_recipe(EXAMPLES / f"{name}.toml")
    tables = recipe.as_dict()
    for split, rows in (("calibration", calibration), ("validation", validation)):
        if rows is not None:
            tables["data"][split]["rows"] = rows
    return Recipe.from_dict(tables, base=recipe.base, where=name)


def tables_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as arguments for a fresh process; :func:`recipe_of` takes them back."""
    return {"tables": recipe.as_dict(), "base": os.fspath(recipe.base)}


def recipe_of(recipe: dict[str, Any]) -> Recipe:
    """The recipe that :func:`tables_of` gave."""
    return Recipe.from_dict(recipe["tables"], base=Path(recipe["base"]))


def source_of(recipe: Recipe) -> Path:
    """The model file of a recipe."""
    return recipe.base / recipe.source.model


def opened(recipe: Recipe) -> tuple[Model, CalibrationSet]:
    """Model and data of a recipe."""
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.model import Model

    assert recipe.data is not None
    model = Model.load(source_of(recipe))
    data = CalibrationSet.open(
        recipe.data, model.signature, base=recipe.base, seed=recipe.build.seed
    )
    return model, data


@contextmanager
def arrays_on_disk(data: CalibrationSet) -> Iterator[dict[str, str]]:
    """The preprocessed calibration rows as ``.npy`` files: what peers are fed, by input name."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        batches = [batch.inputs for batch in data.batches("calibration")]
        files = {}
        for number, name in enumerate(batches[0]):
            files[name] = os.fspath(Path(folder) / f"{number}.npy")
            np.save(files[name], np.concatenate([batch[name] for batch in batches]))
        yield files


def between(text: str, markers: tuple[str, str], new: str) -> str:
    """``text`` with what stands between two markers replaced.

    Raises:
        ValueError: The markers are not there.
    """
    begin, end = markers
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"expected a line {begin!r} and, behind it, a line {end!r}")
    return pattern.sub(lambda _: f"{begin}\n{new}\n{end}", text, count=1)


def note(text: str) -> None:
    """Tell on the terminal what is being done."""
    print(f"  .. {text}", file=sys.stderr, flush=True)


def environment() -> dict[str, Any]:
    """The machine and the versions that the figures were taken with."""
    import torch

    from edgecompress.machine.host import host

    machine = host()
    vector = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    packages = ("edgecompress", "onnxruntime", "torch", "onnx", "onnx-ir", "numpy")
    return {
        "cpu": machine.cpu,
        "instruction_sets": [name for name in vector if name in machine.isa],
        "logical_cores": machine.logical_cores,
        "os": machine.os,
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def has_vnni() -> bool:
    """Whether this processor multiplies bytes with 32-bit sums."""
    from edgecompress.machine.host import host

    return bool({"avx512_vnni", "avx_vnni"} & host().isa)


def in_turn(*functions: Callable[[], None]) -> list[float]:
    """Call functions one after the other: the seconds of each."""
    seconds = []
    for function in functions:
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text under a title; None is shown as a dash."""
    cells = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([title, lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    _answer_in_this_process(*sys.argv[1:])
