"""The ``[data]`` table of a recipe, and how rows are shared out between the splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from edgecompress.data.feeds import Rows
from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.data.rows import RowOptions, RowsSpec, Source, Table, open_source
from edgecompress.data.text_setting import TextSetting
from edgecompress.errors import DataError

__all__ = ["DataSpec", "Split", "Tables", "draw", "open_tables", "split_rows"]

Split = Literal["calibration", "validation"]


def _form(value: Any) -> str:
    each = isinstance(value, Mapping) and {*map(type, value.values())} & {dict, PreprocessSpec}
    return "each" if each else "one"


Preprocess = Annotated[
    Annotated[PreprocessSpec, Tag("one")] | Annotated[dict[str, PreprocessSpec], Tag("each")],
    Discriminator(_form),
]


class DataSpec(RowOptions):
    """The ``[data]`` table of a recipe: one source that is split, or one table per split.

    Attributes:
        path: One source for both; what it may name is told under ``calibration``.
        inputs: For ``path``: model input -> name of the array.
        labels: For ``path``: name of the array or column of labels.
        rows: At most so many rows of ``path``, for both together.
        text: For ``path``: column of the text, by name or by number from 1.
        texts: For ``path``: columns whose texts are rows of their own.
        pair: For ``path``: two columns that are encoded together.
        header: For ``path``: whether a table of text starts with the names of its columns.
        blocks: For ``path``: cut the whole text into rows of ``max_length`` tokens.
        calibration: Rows of their own to calibrate on, instead of ``path``.
        validation: Rows of their own to validate on.
        validation_share: Share of the rows of a common source that validate; 0 for none.
        tokenizer: For text: a transformers directory or a ``tokenizer.json``. Default: the
            directory that the model came from.
        max_length: At most so many tokens per text; longer ones are cut, and counted. Default:
            what the model and its tokenizer take.
        preprocess: For image inputs: of the only input, or by input name. Default: that of the
            directory that the model came from, where pixels feed a float input.
        batch_size: Rows per batch, where the model leaves it open.
        seed: Draws the rows.
    """

    path: str | None = None
    calibration: RowsSpec | None = None
    validation: RowsSpec | None = None
    validation_share: float = Field(default=0.5, ge=0, lt=1)
    tokenizer: str | None = None
    max_length: int | None = Field(default=None, ge=1)
    preprocess: Preprocess | None = None
    batch_size: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_form(self) -> DataSpec:
        tables = self.calibration is not None or self.validation is not None
        if tables == (self.path is not None):
            raise ValueError("name either one path, or the tables calibration and validation")
        options = {name: getattr(self, name) for name in RowOptions.model_fields}
        given = [name for name, value in options.items() if value not in (None, False, {})]
        if tables and given:
            raise ValueError(f"{', '.join(given)}: belong into the tables, or beside a path")
        return self

    def tables(self) -> tuple[RowsSpec | None, RowsSpec | None]:
        """Calibration and validation, whichever form was written."""
        if self.path is None:
            return self.calibration, self.validation
        options = {name: getattr(self, name) for name in RowOptions.model_fields}
        both = RowsSpec(path=self.path, **options)
        return both, both if self.validation_share else None


Tables = dict[Split, tuple[Source, Table]]


def open_tables(spec: DataSpec, setting: TextSetting) -> Tables:
    """Load what feeds the model, for the splits that the spec names.

    Args:
        spec: The ``[data]`` table.
        setting: The model's inputs, folders, and what texts need.

    Raises:
        DataError: A source is missing, broken, or lacks an array.
    """
    wanted = [i.name for i in setting.inputs]
    calibration, validation = spec.tables()
    tables: Tables = {}
    if calibration is not None:
        source = open_source(calibration.path, setting.base, setting)
        tables["calibration"] = source, source.table(calibration, wanted, "calibration")
    if validation is not None:
        source = open_source(validation.path, setting.base, setting)
        first = tables.get("calibration")
        if (
            first is not None
            and calibration is not None
            and first[0].key == source.key
            and not source.per_split
            and _same_columns(calibration, validation)
        ):
            tables["validation"] = first  # one copy in memory
        else:
            tables["validation"] = source, source.table(validation, wanted, "validation")
    return tables


def _same_columns(first: RowsSpec, second: RowsSpec) -> bool:
    left = {"path", "rows"}
    return first.model_dump(exclude=left) == second.model_dump(exclude=left)


def draw(spec: DataSpec, tables: Tables, rng: np.random.Generator) -> dict[Split, Rows]:
    """Rows of each split, ascending; disjoint where both come from one source.

    Rows of a group are drawn together.

    Raises:
        DataError: There are too few rows, or one text file is cut into rows in two ways.
    """
    common = _is_common(tables)
    for opened in tables.values():
        _check_count(opened, 2 if common else 1, spec.rows)
    calibration, validation = (None if t is None else t.rows for t in spec.tables())
    if not common:
        limits = {"calibration": calibration, "validation": validation}
        return {
            split: _members(table, np.sort(rng.permutation(_groups(table))[: limits[split]]))
            for split, (_, table) in tables.items()
        }
    first_table, second_table = tables["calibration"][1], tables["validation"][1]
    pool = np.arange(_groups(first_table))
    if len(pool) != _groups(second_table):
        raise DataError(
            f"one file is cut into {len(pool)} rows to calibrate and {_groups(second_table)} to "
            "validate on, which cannot be kept apart",
            where=tables["calibration"][0].name,
            cure="set blocks in both tables or in none, or use two files",
        )
    if spec.path is not None:
        pool = np.sort(rng.permutation(pool)[: spec.rows])
        calibration = validation = None
    first, second = split_rows(len(pool), calibration, validation, spec.validation_share, rng)
    return {
        "calibration": _members(first_table, pool[first]),
        "validation": _members(second_table, pool[second]),
    }


def _groups(table: Table) -> int:
    return table.rows // table.group


def _members(table: Table, groups: Rows) -> Rows:
    """Rows of groups."""
    rows: Rows = (groups[:, None] * table.group + np.arange(table.group)).reshape(-1)
    return rows


def _check_count(opened: tuple[Source, Table], least: int, limit: int | None) -> None:
    source, table = opened
    count = _groups(table) if limit is None else min(_groups(table), limit)
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
