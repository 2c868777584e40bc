"""Where rows come from: arrays in files, folders of images, text files, and Python callables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgecompress.data.archives import UNREADABLE, open_npy, open_npz, unreadable
from edgecompress.data.callables import call_for_rows
from edgecompress.data.images import ImageFiles, image_folder
from edgecompress.data.ragged import Ragged, ragged_rows
from edgecompress.data.text_files import TEXT_SUFFIXES
from edgecompress.data.text_setting import TextOptions, TextSetting
from edgecompress.data.texts import TOKEN_ARRAYS, TextColumn, open_texts
from edgecompress.errors import DataError, nearest
from edgecompress.references import is_reference, load_callable

__all__ = ["Column", "RowOptions", "RowsSpec", "Source", "Table", "open_source"]

Array = npt.NDArray[Any]
ColumnName = int | str

LENGTHS = "_lengths"
"""Behind the name of an array: how many of its entries, along the first axis, make up each row."""


class RowOptions(BaseModel):
    """Which rows of a source, whatever table names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: dict[str, str] = Field(default_factory=dict)
    labels: int | str | None = None
    rows: int | None = Field(default=None, ge=1)
    text: ColumnName | None = None
    texts: tuple[ColumnName, ...] | None = Field(default=None, min_length=2)
    pair: tuple[ColumnName, ColumnName] | None = None
    header: bool | None = None
    blocks: bool = False

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> Self:
        kinds = {
            "text": self.text is not None,
            "texts": self.texts is not None,
            "pair": self.pair is not None,
            "blocks": self.blocks,
        }
        named = [kind for kind, given in kinds.items() if given]
        if len(named) > 1:
            raise ValueError(f"expected one of text, texts, pair and blocks, got {named}")
        return self

    def asks_for_text(self) -> bool:
        """Whether an option is set that only text files know."""
        return self.blocks or any(
            given is not None for given in (self.text, self.texts, self.pair, self.header)
        )

    def columns(self) -> TextOptions:
        """The options of text files."""
        one = () if self.text is None else (self.text,)
        return TextOptions(self.texts or one, self.pair, self.labels, self.header, self.blocks)


class RowsSpec(RowOptions):
    """Rows of one source.

    Attributes:
        path: An ``.npz`` or ``.npy`` file; a folder of images (the sub-folders are the classes); a
            text file: ``.txt`` (each line that is not blank is a row), ``.csv`` or ``.tsv`` (where
            the first line has tabs, they separate the columns, and quotes are plain characters),
            ``.jsonl`` (an object per line); or ``file.py:function`` / ``package.module:function``.
            The function returns a dictionary of arrays, ``(dictionary, labels)``, or yields such
            batches, whose shapes may differ; where it takes an argument ``split``, it gets
            "calibration" or "validation" and has to keep the two disjoint.
        inputs: Model input -> name of the array. Default: the array of the same name; for a model
            of one input, the only array there is. In an ``.npz``, an array ``NAME_lengths`` of
            integers cuts the array ``NAME`` into rows of these lengths along its first axis. Text
            feeds ``input_ids``, ``attention_mask``, ``token_type_ids`` and ``position_ids``.
        labels: Name of the array of labels; beside an ``.npy`` file, a second ``.npy`` file; in a
            text file, a column of numbers or of class names, numbered as in the model's config,
            else in alphabetical order. Words (lists in ``.jsonl``) have a list of labels.
        rows: Take at most so many, drawn at random by the seed; of a text file, records.
        text: Column of the text, by name or by number from 1. Default: the only one there is.
        texts: Columns whose texts are rows of their own, as models of embeddings take them; the
            label of a record belongs to all of its texts.
        pair: Two columns that are encoded together.
        header: Whether a table of text starts with the names of its columns. Default: where a
            column is asked for by a name.
        blocks: Cut the whole text of a ``.txt`` file, without special tokens, into rows of
            ``max_length`` tokens, as language models are judged.
    """

    path: str


Column = Array | Ragged | ImageFiles | TextColumn
"""Rows of one array: an array, perhaps memory-mapped, rows of many shapes, image files or texts."""


@dataclass(frozen=True)
class Table:
    """Raw rows: a column for each model input, and labels if there are any.

    Attributes:
        columns: By model input.
        labels: One per row.
        rows: How many.
        arrays: Names that the columns have in their source.
        group: Rows that belong together, one behind the other: texts of a record.
    """

    columns: Mapping[str, Column]
    labels: Array | None
    rows: int
    arrays: frozenset[str]
    group: int = 1


class _Loaded(NamedTuple):
    """Arrays by name; labels that come without being named, or were named as a text column."""

    arrays: Mapping[str, Column]
    labels: Array | None = None
    group: int = 1


@dataclass(frozen=True)
class Source:
    """An opened place of rows.

    Attributes:
        name: The path as the recipe has it.
        key: The same for the same place, however the path is written.
        base: Folder that relative paths start from.
        per_split: It decides itself which rows are for calibration and which for validation.
        is_text: It is a text file.
        load: Makes the arrays, from the name of the split and the options.
    """

    name: str
    key: str
    base: Path
    per_split: bool
    is_text: bool
    load: Callable[[str, RowOptions], _Loaded]

    def table(self, spec: RowOptions, wanted: Sequence[str], split: str) -> Table:
        """Choose the arrays that feed the inputs ``wanted``, and load them.

        Raises:
            DataError: An array is missing or cannot be read, or lengths differ.
        """
        if spec.asks_for_text() and not self.is_text:
            raise DataError(
                "text, texts, pair, header and blocks are for text files",
                where=self.name,
                cure=f"remove them, or name a file that ends in {', '.join(TEXT_SUFFIXES)}",
            )
        arrays, labels, group = self.load(split, spec)
        chosen = _choose(spec, [*arrays], wanted, self.name)
        columns = {name: self._column(arrays, array, wanted) for name, array in chosen.items()}
        if spec.labels is not None and not self.is_text:
            labels = self._labels(str(spec.labels), arrays)
        lengths = {array: len(columns[name]) for name, array in chosen.items()}
        if labels is not None:
            labels = np.repeat(labels, group, axis=0) if group > 1 else labels
            lengths[str(spec.labels or "labels")] = len(labels)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r} has {n}" for name, n in lengths.items())
            raise DataError(f"expected arrays of equal length, got: {listed}", where=self.name)
        rows = next(iter(lengths.values()))
        return Table(columns, labels, rows, frozenset(chosen.values()), group)

    def _column(self, arrays: Mapping[str, Column], name: str, wanted: Sequence[str]) -> Column:
        column, by = _read(arrays, name, self.name), f"{name}{LENGTHS}"
        if not isinstance(column, np.ndarray) or by not in arrays or by in wanted:
            return column
        lengths = _read(arrays, by, self.name)
        if (
            not isinstance(lengths, np.ndarray)
            or lengths.ndim != 1
            or lengths.dtype.kind not in ("iu")
        ):
            raise DataError(f"array {by!r}: expected a list of integers", where=self.name)
        if (lengths < 1).any() or lengths.sum() != len(column):
            raise DataError(
                f"the lengths in {by!r} sum up to {lengths.sum():,}, array {name!r} has "
                f"{len(column):,} entries; each row needs one",
                where=self.name,
            )
        return ragged_rows(column, lengths)

    def _labels(self, name: str, arrays: Mapping[str, Column]) -> Array:
        if name.endswith(".npy"):
            arrays = {name: open_npy(_existing(self.base / name, name))}
        found = _read(arrays, name, self.name) if name in arrays else None
        if not isinstance(found, np.ndarray):
            raise DataError(
                f"has no array {name!r} for the labels; {nearest(name, arrays)}",
                where=self.name,
                cure="classes of an image folder are its sub-folders and need no name",
            )
        return found


def open_source(path: str, base: Path, setting: TextSetting) -> Source:
    """Find out what ``path`` is; relative paths start from ``base``.

    Raises:
        DataError: There is nothing of that name, or it is of no known kind.
    """
    if is_reference(path) and not (base / path).exists():
        function = load_callable(path, base=base, refuse=DataError)
        per_split = "split" in inspect.signature(function).parameters
        place, _, name = path.rpartition(":")
        key = f"{(base / place).resolve()}:{name}" if place.endswith(".py") else path

        def called(split: str, spec: RowOptions) -> _Loaded:
            return _Loaded(*call_for_rows(function, per_split, path, split))

        return Source(path, key, base, per_split, False, called)
    file = _existing(base / Path(path).expanduser(), path)
    suffix = "" if file.is_dir() else file.suffix.lower() or file.name

    def texts(split: str, spec: RowOptions) -> _Loaded:
        rows, labels = open_texts(file, path, spec.columns(), setting)
        return _Loaded({a: TextColumn(rows, a) for a in TOKEN_ARRAYS}, labels, rows.group)

    kinds: dict[str, Callable[[str, RowOptions], _Loaded]] = {
        "": lambda split, spec: _Loaded(*image_folder(file)),
        ".npz": lambda split, spec: _Loaded(open_npz(file)),
        ".npy": lambda split, spec: _Loaded({file.stem: open_npy(file)}),
        **dict.fromkeys(TEXT_SUFFIXES, texts),
    }
    if suffix not in kinds:
        raise DataError(
            f"expected .npz, .npy, {', '.join(TEXT_SUFFIXES)}, a folder of images or "
            f"file.py:function, got {suffix!r}",
            where=path,
            cure="save the arrays with numpy.savez, or write a function that returns them",
        )
    return Source(path, str(file.resolve()), base, False, suffix in TEXT_SUFFIXES, kinds[suffix])


def _existing(file: Path, name: str) -> Path:
    if not file.exists():
        raise DataError(
            "no such file or folder",
            where=name,
            cure=f"check the path; it is looked for in {file.parent}",
        )
    return file


def _choose(
    spec: RowOptions, names: list[str], wanted: Sequence[str], where: str
) -> dict[str, str]:
    for name in spec.inputs:
        if name not in wanted:
            raise DataError(
                f"the model has no input {name!r}; {nearest(name, wanted)}", where=where
            )
    lengths = {f"{name}{LENGTHS}" for name in names} - {*wanted, *spec.inputs.values()}
    candidates = [name for name in names if name != spec.labels and name not in lengths]
    text = names == [*TOKEN_ARRAYS]
    chosen = {}
    for name in wanted:
        only = candidates[0] if len(wanted) == 1 and (text or len(candidates) == 1) else name
        array = spec.inputs.get(name, name if name in candidates else only)
        if array not in names:
            raise DataError(
                f"has no array {array!r} for the model's input {name!r}; {nearest(array, names)}",
                where=where,
                cure=f'name the array: inputs = {{ "{name}" = "..." }}',
            )
        chosen[name] = array
    return chosen


def _read(arrays: Mapping[str, Column], name: str, where: str) -> Column:
    try:
        column = arrays[name]
    except UNREADABLE as error:
        raise unreadable(where, error, f"array {name!r} ") from error
    if isinstance(column, np.ndarray) and (column.ndim == 0 or column.dtype.kind == "O"):
        got = "a single value" if column.ndim == 0 else "Python objects"
        raise DataError(
            f"array {name!r}: expected rows along the first axis, got {got}", where=where
        )
    return column
