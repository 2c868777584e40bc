"""Rows that options of the command line name, as the tables and sets that the rest works with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from edgecompress.data.calibration import CalibrationSet, DataSpec, PreprocessSpec
from edgecompress.errors import DataError
from edgecompress.metrics import Metric, MetricSpec, make_metric
from edgecompress.model import Model
from edgecompress.recipe import load_recipe
from edgecompress.recipe_files import is_recipe
from edgecompress.recipe_problems import explain, refuse
from edgecompress.references import is_reference

__all__ = ["data_table", "validation_rows"]

StrPath = str | os.PathLike[str]


def data_table(
    data: StrPath | None,
    validation: StrPath | None,
    labels: str | None,
    preprocess: Mapping[str, Any] | None,
    text: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """The ``[data]`` table that options stand for, with paths from the current folder.

    Args:
        data: Rows to calibrate on, and to validate on without ``validation``; or a recipe.
        validation: Rows to validate on.
        labels: Name or number of the labels.
        preprocess: Keys of ``[data.preprocess]``.
        text: Keys of ``[data]`` for text; columns of ``texts`` and ``pair`` may be separated by
            commas.

    Raises:
        DataError: There are options for rows, and no rows.
    """
    if data is None:
        if validation is not None or labels is not None or text:
            raise DataError(
                "there are no rows to calibrate on", where="--data", cure="name them with --data"
            )
        return None
    if is_recipe(data):
        recipe = load_recipe(data)
        if recipe.data is None:
            raise DataError("the recipe has no [data] table", where=os.fspath(data))
        return _from_here(recipe.data.model_dump(exclude_none=True), recipe.base)
    table, rows = _text_options(text or {})
    rows["path"] = os.fspath(data)
    if labels is not None:
        rows["labels"] = labels
    if validation is None:
        table.update(rows)
    else:
        table["calibration"] = rows
        table["validation"] = {**rows, "path": os.fspath(validation)}
    if preprocess is not None:
        table["preprocess"] = dict(preprocess)
    return table


def _text_options(text: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the ``[data]`` table, and those that say which rows."""
    shared = {key: text[key] for key in ("tokenizer", "max_length") if key in text}
    rows = {
        key: value.split(",") if key in ("texts", "pair") and isinstance(value, str) else value
        for key, value in text.items()
        if key not in shared
    }
    return shared, rows


def _from_here(table: dict[str, Any], base: Path) -> dict[str, Any]:
    """A ``[data]`` table whose relative paths start from the current folder, not from ``base``."""
    for rows in (table, table.get("calibration"), table.get("validation")):
        path = None if rows is None else rows.get("path")
        if rows is not None and path is not None and (not is_reference(path) or ".py:" in path):
            rows["path"] = os.fspath(base / path)
    if table.get("tokenizer") is not None:
        table["tokenizer"] = os.fspath(base / table["tokenizer"])
    return table


def validation_rows(
    data: StrPath | None,
    metric: str | None,
    model: Model,
    batch_size: int = 16,
    *,
    labels: str | None = None,
    text: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    preprocess: PreprocessSpec | None = None,
) -> tuple[CalibrationSet | None, Metric | None]:
    """Validation rows and metric, from a recipe or from a path whose rows all validate.

    Args:
        data: The path.
        metric: Name of the metric; default: the recipe's, else what suits the labels.
        model: The model that is judged.
        batch_size: Rows per batch, where ``data`` is no recipe.
        labels: Name or number of the labels.
        text: Keys of ``[data]`` for text; see :func:`data_table`.
        folder: As in :meth:`CalibrationSet.open`.
        preprocess: As in :meth:`CalibrationSet.open`.

    Raises:
        DataError: The rows cannot be used, or a metric is named without rows.
        RecipeError: An option is wrong.
    """
    if data is None:
        if metric is not None:
            raise DataError(
                f"the metric {metric!r} needs rows", where="--metric", cure="name them with --data"
            )
        return None, None
    chosen = None if metric is None else MetricSpec(name=metric)
    base, seed = Path(), 0
    if is_recipe(data):
        recipe = load_recipe(data)
        if recipe.data is None:
            raise DataError("the recipe has no [data] table", where=os.fspath(data))
        base, spec, seed = recipe.base, recipe.data, recipe.build.seed
        chosen = chosen or recipe.metric
    else:
        spec = _all_validate(data, labels, text, batch_size)
    rows = CalibrationSet.open(
        spec, model.signature, base=base, seed=seed, folder=folder, preprocess=preprocess
    )
    judge = make_metric(chosen, base=base, data=rows)
    judge.check(rows)
    return rows, judge


def _all_validate(
    data: StrPath, labels: str | None, text: Mapping[str, Any] | None, batch_size: int
) -> DataSpec:
    shared, rows = _text_options(text or {})
    table = {"path": os.fspath(data), "labels": labels, **rows}
    tables = {"data": {"validation": table, "batch_size": batch_size, **shared}}
    try:
        return _DataTable.model_validate(tables).data
    except ValidationError as error:
        raise refuse(explain(error, _DataTable, tables), None) from error


class _DataTable(BaseModel):
    data: DataSpec
