"""Where rows come from: .npz and .npy files, folders of images, and Python callables."""

from __future__ import annotations

import inspect
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from edgecompress.errors import DataError, nearest
from edgecompress.images import ImageFiles, image_folder
from edgecompress.references import is_reference, load_callable, user_line

__all__ = ["RowsSpec", "Source", "Table", "Column", "open_source"]

Array = npt.NDArray[np.generic]


class RowsSpec(BaseModel):
    """Rows of one source.

    Attributes:
        path: An ``.npz`` or ``.npy`` file, a folder of images (the sub-folders are the classes), or
            ``file.py:function`` / ``package.module:function``. The function returns a dictionary
            of arrays, ``(dictionary, labels)``, or yields such batches; where it takes an argument
            ``split``, it gets "calibration" or "validation" and has to keep the two disjoint.
        inputs: Model input -> name of the array. Default: the array of the same name; for a model
            of one input, the only array there is.
        labels: Name of the array of labels; beside an ``.npy`` file, a second ``.npy`` file.
        rows: Take at most so many, drawn at random by the seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    inputs: dict[str, str] = Field(default_factory=dict)
    labels: str | None = None
    rows: int | None = Field(default=None, ge=1)


Column = Array | ImageFiles
"""Rows of one array, first axis: an array, perhaps memory-mapped, or image files."""


@dataclass(frozen=True)
class Table:
    """Raw rows: a column for each model input, and labels if there are any.

    Attributes:
        columns: By model input.
        labels: One per row.
        rows: How many.
        arrays: Names that the columns have in their source.
    """

    columns: Mapping[str, Column]
    labels: Array | None
    rows: int
    arrays: frozenset[str]


_Loaded = tuple[Mapping[str, Column], Array | None]


@dataclass(frozen=True)
class Source:
    """An opened place of rows.

    Attributes:
        name: The path as the recipe has it.
        key: The same for the same place, however the path is written.
        per_split: It decides itself which rows are for calibration and which for validation.
        load: Arrays by name, and labels that come without being named.
        base: Folder that relative paths start from.
    """

    name: str
    key: str
    base: Path
    per_split: bool
    load: Callable[[str], _Loaded]

    def table(self, spec: RowsSpec, wanted: Sequence[str], split: str) -> Table:
        """Choose the arrays that feed the inputs ``wanted``, and load them.

        Raises:
            DataError: An array is missing or cannot be read, or lengths differ.
        """
        arrays, labels = self.load(split)
        chosen = _choose(spec, [*arrays], wanted, self.name)
        columns = {name: _column(arrays, array, self.name) for name, array in chosen.items()}
        if spec.labels is not None:
            labels = self._labels(spec.labels, arrays)
        lengths = {array: len(columns[name]) for name, array in chosen.items()}
        if labels is not None:
            lengths[spec.labels or "labels"] = len(labels)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r} has {n}" for name, n in lengths.items())
            raise DataError(f"expected arrays of equal length, got: {listed}", where=self.name)
        rows = next(iter(lengths.values()))
        return Table(columns, labels, rows, frozenset(chosen.values()))

    def _labels(self, name: str, arrays: Mapping[str, Column]) -> Array:
        if name.endswith(".npy"):
            arrays = {name: _npy(_existing(self.base / name, name))}
        found = _column(arrays, name, self.name) if name in arrays else None
        if not isinstance(found, np.ndarray):
            raise DataError(
                f"has no array {name!r} for the labels; {nearest(name, arrays)}",
                where=self.name,
                cure="classes of an image folder are its sub-folders and need no name",
            )
        return found


def open_source(path: str, base: Path) -> Source:
    """Find out what ``path`` is; relative paths start from ``base``.

    Raises:
        DataError: There is nothing of that name, or it is of no known kind.
    """
    if is_reference(path) and not (base / path).exists():
        function = load_callable(path, base=base, refuse=DataError)
        per_split = "split" in inspect.signature(function).parameters
        place, _, name = path.rpartition(":")
        key = f"{(base / place).resolve()}:{name}" if place.endswith(".py") else path
        load = partial(_from_callable, function, per_split, path)
        return Source(path, key, base, per_split, load)
    file = _existing(base / Path(path).expanduser(), path)
    kinds: dict[str, Callable[[str], _Loaded]] = {
        "": lambda split: image_folder(file),
        ".npz": lambda split: (_npz(file), None),
        ".npy": lambda split: ({file.stem: _npy(file)}, None),
    }
    suffix = "" if file.is_dir() else file.suffix.lower() or file.name
    if suffix not in kinds:
        raise DataError(
            f"expected .npz, .npy, a folder of images or file.py:function, got {suffix!r}",
            where=path,
            cure="save the arrays with numpy.savez, or write a function that returns them",
        )
    return Source(path, str(file.resolve()), base, False, kinds[suffix])


def _existing(file: Path, name: str) -> Path:
    if not file.exists():
        raise DataError(
            "no such file or folder",
            where=name,
            cure=f"check the path; it is looked for in {file.parent}",
        )
    return file


def _choose(spec: RowsSpec, names: list[str], wanted: Sequence[str], where: str) -> dict[str, str]:
    for name in spec.inputs:
        if name not in wanted:
            raise DataError(
                f"the model has no input {name!r}; {nearest(name, wanted)}", where=where
            )
    candidates = [name for name in names if name != spec.labels]
    chosen = {}
    for name in wanted:
        only = candidates[0] if len(wanted) == len(candidates) == 1 else name
        array = spec.inputs.get(name, name if name in candidates else only)
        if array not in names:
            raise DataError(
                f"has no array {array!r} for the model's input {name!r}; {nearest(array, names)}",
                where=where,
                cure=f'name the array: inputs = {{ "{name}" = "..." }}',
            )
        chosen[name] = array
    return chosen


def _column(arrays: Mapping[str, Column], name: str, where: str) -> Column:
    try:
        column = arrays[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(where, error, f"array {name!r} ") from error
    if isinstance(column, np.ndarray) and (column.ndim == 0 or column.dtype.kind == "O"):
        got = "a single value" if column.ndim == 0 else "Python objects"
        raise DataError(
            f"array {name!r}: expected rows along the first axis, got {got}", where=where
        )
    return column


def _unreadable(where: str, error: Exception, what: str = "") -> DataError:
    return DataError(
        f"{what}cannot be read: {str(error).splitlines()[0] if str(error) else 'it is truncated'}",
        where=where,
        cure="save plain number arrays with numpy.savez or numpy.save, or copy the file again",
    )


class _Archive(Mapping[str, Column]):
    """Arrays of an .npz file, each read when it is asked for; the file is not kept open."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("rb") as stream, self._load(stream) as archive:
            self._names = tuple(archive.files)

    def _load(self, stream: BinaryIO) -> Any:
        # numpy takes a file that is no archive for a pickle, and advises to allow those.
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is no .npz archive")
        stream.seek(0)
        loaded = np.load(stream, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz archive")
        return loaded

    def __getitem__(self, name: str) -> Column:
        with self._file.open("rb") as stream, self._load(stream) as archive:
            found: Array = archive[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _npz(file: Path) -> Mapping[str, Column]:
    try:
        return _Archive(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(str(file), error) from error


def _npy(file: Path) -> Array:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise _unreadable(str(file), error) from error


def _from_callable(function: Callable[..., Any], per_split: bool, name: str, split: str) -> _Loaded:
    try:
        returned = function(split=split) if per_split else function()
        if isinstance(returned, Iterator):
            returned = _joined([_pair(batch, name) for batch in returned])
        arrays, labels = _pair(returned, name)
        return (
            {key: np.asarray(value) for key, value in arrays.items()},
            None if labels is None else np.asarray(labels),
        )
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"failed: {type(error).__name__}: {error}", where=f"{name} ({user_line(error)})"
        ) from error


def _pair(returned: Any, name: str) -> tuple[Mapping[str, Any], Any]:
    pair = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(pair[0], Mapping) or not pair[0]:
        raise DataError(
            "expected a dictionary of arrays, (dictionary, labels), or an iterator of these, got "
            + ("an empty one" if isinstance(pair[0], Mapping) else type(returned).__name__),
            where=name,
            cure="return {'name of the model input': array with rows along the first axis}",
        )
    return pair[0], pair[1]


def _joined(batches: list[tuple[Mapping[str, Any], Any]]) -> tuple[Mapping[str, Any], Any]:
    if not batches:
        return {}, None
    arrays = {k: np.concatenate([np.asarray(b[k]) for b, _ in batches]) for k in batches[0][0]}
    labels = [np.asarray(found) for _, found in batches if found is not None]
    return arrays, np.concatenate(labels) if labels else None
