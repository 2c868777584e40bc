"""Our entries: one list of passes for all models, each with its defaults.

An entry whose pass this version of the package lacks is shown as missing.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import in_fresh_process, note, recipe_of, tables_of

from quantization.models import HOME, Kind, Prepared
from quantization.runs import Run

__all__ = ["ENTRIES", "Entry", "run"]


@dataclass(frozen=True)
class Entry:
    """One recipe of ours.

    Attributes:
        name: As the table names it.
        format: As in :class:`quantization.runs.Method`; also ``float16``. A search counts as W8A8:
            what it delivers for speed is that, with the layers in float that gain nothing.
        passes: Tables of the recipe's passes, behind ``cleanup``.
        kinds: Models that it is for.
        search: A whole build that tries all candidates of the target, judges them on the validation
            rows, measures them, and delivers the fastest that is accurate enough.
        only: Names of the models that it is run on, where it takes too long for all.
    """

    name: str
    format: str
    passes: tuple[Mapping[str, Any], ...]
    kinds: tuple[Kind, ...] = ("vision", "encoder", "language")
    search: bool = False
    only: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As the table names it."""
        return f"edgecompress {self.name}"

    def fits(self, model: Prepared) -> bool:
        """Whether it is run on a model."""
        return model.about.kind in self.kinds and (not self.only or model.name in self.only)


_BOTH: tuple[Kind, ...] = ("vision", "encoder")
_TEXT: tuple[Kind, ...] = ("encoder", "language")

ENTRIES = (
    Entry("W8A8", "W8A8", ({"name": "quantize"},), _BOTH),
    Entry("W8A8 equalized", "W8A8", ({"name": "equalize"}, {"name": "quantize"}), ("encoder",)),
    Entry("dynamic", "dynamic", ({"name": "quantize_dynamic"},), ("encoder",)),
    Entry("weights int8", "int8", ({"name": "quantize_weights", "bits": 8},), _TEXT),
    Entry("weights int4", "int4", ({"name": "quantize_weights", "bits": 4},), _TEXT),
    Entry(
        "weights and tables int4",
        "int4",
        ({"name": "quantize_weights", "bits": 4, "block_size": 64, "embedding_bits": 4},),
        ("encoder",),
    ),
    Entry("float16", "float16", ({"name": "half"},)),
    Entry("search", "W8A8", (), search=True, only=("mobilenet_v1",)),
)

_SEARCH_DROP = 0.003
_SEARCH_MINUTES = 5


def run(entry: Entry, model: Prepared) -> Run:
    """Compress in a fresh process, from the float file to the compressed one, rows read there."""
    from edgecompress.graph_pass import pass_names

    known = pass_names()
    for step in entry.passes:
        if step["name"] not in known:
            return Run(failed=f"missing: this version has no pass {step['name']!r}")
    note(f"{model.name}: {entry.title}")
    folder = HOME / "ours" / model.name / entry.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    told = tables_of(model.recipe)
    told["tables"] |= {"pass": [{"name": "cleanup"}, *entry.passes]}
    if entry.search:
        told["tables"] |= _search_tables(model)
    load, before = os.getloadavg()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    output = os.fspath(folder / "model.onnx")
    try:
        found = in_fresh_process("quantization.ours", "compress", recipe=told, output=output)
    except subprocess.CalledProcessError:
        return Run(failed="crashed; its traceback stands in the log")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if found.answer["failed"] is not None:
        return Run(failed=found.answer["failed"])
    files = sorted(folder.iterdir(), key=lambda file: (file.name != "model.onnx", file.name))
    return Run(
        tuple(map(os.fspath, files)),
        sum(file.stat().st_size for file in files),
        found.seconds,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        found.peak_mb,
        load,
    )


def _search_tables(model: Prepared) -> dict[str, Any]:
    """Tables of a search; of perplexity, the default share may be lost."""
    limits = {} if model.about.yardstick.relative else {"metric_drop": _SEARCH_DROP}
    return {"search": {"max_minutes": _SEARCH_MINUTES}, "budget": limits}


def compress(recipe: dict[str, Any], output: str) -> dict[str, Any]:
    """In a fresh process: the recipe's passes without judging or measuring, or its search."""
    from edgecompress.errors import EdgeCompressError

    try:
        if "search" in recipe["tables"]:
            _search(recipe, output)
        else:
            _run_passes(recipe, output)
    except EdgeCompressError as error:
        return {"failed": " ".join(str(error).split())[:200]}
    return {"failed": None}


def _run_passes(recipe: dict[str, Any], output: str) -> None:
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.evaluation import load_target
    from edgecompress.graph_pass import Context, run_pass
    from edgecompress.machine.host import host
    from edgecompress.model import Model

    given = recipe_of(recipe)
    model = Model.load(given.base / given.source.model)
    assert given.data is not None
    data = CalibrationSet.open(given.data, model.signature, base=given.base, seed=given.build.seed)
    constraints = load_target(given.target.name).constraints(host())
    for step in given.passes:
        context = Context(calibration=data, constraints=constraints, seed=given.build.seed)
        model = run_pass(step, model, context).model
    model.save(output)


def _search(recipe: dict[str, Any], output: str) -> None:
    import edgecompress

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name) / "out"
        edgecompress.build(recipe_of(recipe), output=folder, use_cache=False)
        for file in (folder / "model.onnx", folder / "rejected.onnx"):
            if file.exists():
                shutil.copy(file, output)
                return
