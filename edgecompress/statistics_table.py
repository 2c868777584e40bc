"""Statistics of a model's values as people read them: one line per value, in graph order."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import onnx_ir as ir

from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.errors import DataError, ModelError, nearest
from edgecompress.model import Model
from edgecompress.recipe import load_recipe
from edgecompress.recipe_files import is_recipe
from edgecompress.results import StatisticsResult, TensorSummary
from edgecompress.rewrite import infer_shapes
from edgecompress.sources import Loaded
from edgecompress.statistics import Statistics

__all__ = ["calibration_rows", "chosen_values", "tabulate"]

_WIDEST = 5


def calibration_rows(
    data: str | os.PathLike[str], inputs: Mapping[str, str], loaded: Loaded, batch_size: int
) -> CalibrationSet:
    """Rows to calibrate on: those of a recipe, or all that a path names.

    Args:
        data: Rows, or a recipe.
        inputs: Array that feeds an input, where it has another name.
        loaded: The model that takes them, and the defaults that its source has for text and images.
        batch_size: Rows per batch; a recipe has its own.

    Raises:
        DataError: The rows cannot be used.
    """
    if not is_recipe(data):
        spec = DataSpec(
            path=os.fspath(data), inputs=dict(inputs), validation_share=0.0, batch_size=batch_size
        )
        return _opened(spec, loaded)
    if inputs:
        raise DataError(
            "the recipe names the arrays itself",
            where="--input",
            cure=f"write them to inputs in the [data] table of {os.fspath(data)}",
        )
    recipe = load_recipe(data)
    if recipe.data is None or recipe.data.tables()[0] is None:
        raise DataError("the recipe names no rows to calibrate on", where=os.fspath(data))
    return _opened(recipe.data, loaded, base=recipe.base, seed=recipe.build.seed)


def _opened(
    spec: DataSpec, loaded: Loaded, *, base: Path = Path(), seed: int = 0
) -> CalibrationSet:
    return CalibrationSet.open(
        spec,
        loaded.model.signature,
        base=base,
        seed=seed,
        folder=loaded.folder,
        preprocess=loaded.preprocess,
    )


def chosen_values(model: Model, patterns: Collection[str] = ()) -> list[str]:
    """Names of values to watch, in graph order.

    Args:
        model: The graph.
        patterns: Names, with ``*`` and ``?``. Default: all floating-point values that are computed,
            and the inputs.

    Raises:
        ModelError: A pattern matches no value.
    """
    if not patterns:
        inferred = model.clone()
        infer_shapes(inferred)
        return [v.name or "" for v in _values(inferred.ir.graph) if _is_float(v)]
    names = [value.name or "" for value in _values(model.ir.graph)]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise ModelError(
                f"has no value {pattern!r}; {nearest(pattern, names[:200])}",
                where=str(model.path or "model"),
            )
    return [name for name in names if any(_matches(name, each) for each in patterns)]


def tabulate(model: Model, statistics: Statistics, *, source: str, data: str) -> StatisticsResult:
    """The statistics of each value, with the operator that computes it."""
    graph = model.ir.graph
    producers = {v.name or "": "input" for v in graph.inputs}
    producers |= {v.name or "": node.op_type for node in graph for v in node.outputs}
    tensors = []
    for name, seen in statistics.tensors.items():
        found = (seen.low, seen.high, seen.mean, seen.rms) if seen.count else (None,) * 4
        low, high, mean, rms = found
        tensors.append(
            TensorSummary(
                name=name,
                op=producers[name],
                low=low,
                high=high,
                mean=mean,
                rms=rms,
                count=seen.count,
            )
        )
    ranges = {t.name: t.high - t.low for t in tensors if t.low is not None and t.high is not None}
    widest = sorted(ranges, key=lambda name: -ranges[name])[: min(_WIDEST, len(ranges) // 2)]
    return StatisticsResult(
        model=source, data=data, rows=statistics.rows, tensors=tensors, widest=widest
    )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Inputs and computed values, in graph order; neither weights nor constants."""
    yield from (value for value in graph.inputs if value.name not in graph.initializers)
    for node in graph:
        if node.op_type != "Constant":
            yield from (value for value in node.outputs if value.name)


def _is_float(value: ir.Value) -> bool:
    return (
        isinstance(value.type, ir.TensorType)
        and value.dtype is not None
        and value.dtype.is_floating_point()
    )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
