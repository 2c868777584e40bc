"""Rows that options of the command line name, as the tables and sets that the rest works with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.calibration import CalibrationSet, DataSpec, RowsSpec
from edgecompress.errors import DataError
from edgecompress.metrics import Metric, MetricSpec, make_metric
from edgecompress.model import Model
from edgecompress.recipe import load_recipe
from edgecompress.recipe_files import is_recipe
from edgecompress.references import is_reference

__all__ = ["data_table", "validation_rows"]

StrPath = str | os.PathLike[str]


def data_table(
    data: StrPath | None,
    validation: StrPath | None,
    labels: str | None,
    preprocess: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """The ``[data]`` table that options stand for, with paths from the current folder."""
    if data is None:
        if validation is not None or labels is not None:
            raise DataError(
                "there are no rows to calibrate on", where="--data", cure="name them with --data"
            )
        return None
    if is_recipe(data):
        recipe = load_recipe(data)
        if recipe.data is None:
            raise DataError("the recipe has no [data] table", where=os.fspath(data))
        return _from_here(recipe.data.model_dump(exclude_none=True), recipe.base)
    table: dict[str, Any] = {}
    rows = {"path": os.fspath(data), **({} if labels is None else {"labels": labels})}
    if validation is None:
        table.update(rows)
    else:
        table["calibration"] = rows
        table["validation"] = {**rows, "path": os.fspath(validation)}
    if preprocess is not None:
        table["preprocess"] = dict(preprocess)
    return table


def _from_here(table: dict[str, Any], base: Path) -> dict[str, Any]:
    """A ``[data]`` table whose relative paths start from the current folder, not from ``base``."""
    for rows in (table, table.get("calibration"), table.get("validation")):
        path = None if rows is None else rows.get("path")
        if rows is not None and path is not None and (not is_reference(path) or ".py:" in path):
            rows["path"] = os.fspath(base / path)
    return table


def validation_rows(
    data: StrPath | None, metric: str | None, model: Model, batch_size: int = 16
) -> tuple[CalibrationSet | None, Metric | None]:
    """Validation rows and metric, from a recipe or from a path whose rows all validate."""
    if data is None:
        if metric is not None:
            raise DataError(
                f"the metric {metric!r} needs rows", where="--metric", cure="name them with --data"
            )
        return None, None
    chosen = None if metric is None else MetricSpec(name=metric)
    base, spec = Path(), DataSpec(validation=RowsSpec(path=os.fspath(data)), batch_size=batch_size)
    seed = 0
    if is_recipe(data):
        recipe = load_recipe(data)
        if recipe.data is None:
            raise DataError("the recipe has no [data] table", where=os.fspath(data))
        base, spec, seed = recipe.base, recipe.data, recipe.build.seed
        chosen = chosen or recipe.metric
    rows = CalibrationSet.open(spec, model.signature, base=base, seed=seed)
    judge = make_metric(chosen, base=base, data=rows)
    judge.check(rows)
    return rows, judge
