"""The ``[data]`` table of a recipe, and how rows are shared out between the splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from edgecompress.errors import DataError
from edgecompress.feeds import Rows
from edgecompress.preprocess import PreprocessSpec
from edgecompress.rows import RowsSpec, Source, Table, open_source

__all__ = ["DataSpec", "Split", "Tables", "draw", "open_tables", "split_rows"]

Split = Literal["calibration", "validation"]


def _form(value: Any) -> str:
    each = isinstance(value, Mapping) and {*map(type, value.values())} & {dict, PreprocessSpec}
    return "each" if each else "one"


Preprocess = Annotated[
    Annotated[PreprocessSpec, Tag("one")] | Annotated[dict[str, PreprocessSpec], Tag("each")],
    Discriminator(_form),
]


class DataSpec(BaseModel):
    """The ``[data]`` table of a recipe: one source that is split, or one table per split.

    Attributes:
        path: One source for both; see :class:`RowsSpec`.
        inputs: As in :class:`RowsSpec`, for ``path``.
        labels: As in :class:`RowsSpec`, for ``path``.
        rows: At most so many rows of ``path``, for both together.
        calibration: Rows of their own to calibrate on, instead of ``path``.
        validation: Rows of their own to validate on.
        validation_share: Share of the rows of a common source that validate; 0 for none.
        preprocess: For image inputs: of the only input, or by input name.
        batch_size: Rows per batch, where the model leaves it open.
        seed: Draws the rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    labels: str | None = None
    rows: int | None = Field(default=None, ge=1)
    calibration: RowsSpec | None = None
    validation: RowsSpec | None = None
    validation_share: float = Field(default=0.5, ge=0, lt=1)
    preprocess: Preprocess | None = None
    batch_size: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_form(self) -> DataSpec:
        tables = self.calibration is not None or self.validation is not None
        if tables == (self.path is not None):
            raise ValueError("name either one path, or the tables calibration and validation")
        if tables and (self.inputs or self.labels is not None or self.rows is not None):
            raise ValueError("inputs, labels and rows belong into the tables, or beside a path")
        return self

    def tables(self) -> tuple[RowsSpec | None, RowsSpec | None]:
        """Calibration and validation, whichever form was written."""
        if self.path is None:
            return self.calibration, self.validation
        both = RowsSpec(path=self.path, inputs=self.inputs, labels=self.labels, rows=self.rows)
        return both, both if self.validation_share else None


Tables = dict[Split, tuple[Source, Table]]


def open_tables(spec: DataSpec, wanted: list[str], base: Path) -> Tables:
    """Load what feeds the model inputs ``wanted``, for the splits that the spec names.

    Raises:
        DataError: A source is missing, broken, or lacks an array.
    """
    calibration, validation = spec.tables()
    tables: Tables = {}
    if calibration is not None:
        source = open_source(calibration.path, base)
        tables["calibration"] = source, source.table(calibration, wanted, "calibration")
    if validation is not None:
        source = open_source(validation.path, base)
        first = tables.get("calibration")
        if (
            first is not None
            and calibration is not None
            and first[0].key == source.key
            and not source.per_split
            and (calibration.inputs, calibration.labels) == (validation.inputs, validation.labels)
        ):
            tables["validation"] = first  # one copy in memory
        else:
            tables["validation"] = source, source.table(validation, wanted, "validation")
    return tables


def draw(spec: DataSpec, tables: Tables, rng: np.random.Generator) -> dict[Split, Rows]:
    """Rows of each split, sorted; disjoint where both come from one source.

    Raises:
        DataError: There are too few rows.
    """
    common = _is_common(tables)
    for opened in tables.values():
        _check_count(opened, 2 if common else 1, spec.rows)
    calibration, validation = (None if t is None else t.rows for t in spec.tables())
    if not common:
        limits = {"calibration": calibration, "validation": validation}
        return {
            split: np.sort(rng.permutation(table.rows)[: limits[split]])
            for split, (_, table) in tables.items()
        }
    pool = np.arange(tables["calibration"][1].rows)
    if spec.path is not None:
        pool = np.sort(rng.permutation(pool)[: spec.rows])
        calibration = validation = None
    first, second = split_rows(len(pool), calibration, validation, spec.validation_share, rng)
    return {"calibration": pool[first], "validation": pool[second]}


def _check_count(opened: tuple[Source, Table], least: int, limit: int | None) -> None:
    source, table = opened
    count = table.rows if limit is None else min(table.rows, limit)
    if count < least:
        raise DataError(
            f"expected at least {least} rows, got {count}",
            where=source.name,
            cure="rows to calibrate on and rows to validate on must differ" if least > 1 else None,
        )


def _is_common(tables: Tables) -> bool:
    if len(tables) < 2:
        return False
    (source, table), (other_source, other) = tables["calibration"], tables["validation"]
    return (
        source.key == other_source.key
        and not source.per_split
        and not table.arrays.isdisjoint(other.arrays)
    )


def split_rows(
    available: int,
    calibration: int | None,
    validation: int | None,
    share: float,
    rng: np.random.Generator,
) -> tuple[Rows, Rows]:
    """Cut a common source into disjoint calibration and validation rows, each sorted.

    Args:
        available: Rows of the source, at least two.
        calibration: At most so many; None for the rest.
        validation: At most so many; None for the rest.
        share: Validation share where neither is limited.
        rng: Draws the permutation.
    """
    if calibration is None and validation is None:
        validation = round(available * share)
    elif validation is None:
        validation = available - min(calibration or 0, available)
    elif calibration is not None and calibration + validation > available:
        validation = round(available * validation / (calibration + validation))
    validation = min(max(validation, 1), available - 1)
    rest = available - validation
    calibration = rest if calibration is None else min(calibration, rest)
    order = rng.permutation(available)
    return np.sort(order[:calibration]), np.sort(order[calibration : calibration + validation])
