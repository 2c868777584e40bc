"""One model input and the rows that feed it: checked when opened, converted when read."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError
from edgecompress.images import ImageFiles
from edgecompress.model import Dim, TensorSpec
from edgecompress.preprocess import PreprocessSpec
from edgecompress.rows import Column

__all__ = ["Feed", "open_feed", "Rows"]

Rows = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_CHUNK_BYTES = 16 << 20
_PREPROCESS = (
    "add a [data.preprocess] table with the scale, mean and std that the model was trained with"
)


@dataclass(frozen=True)
class Feed(ABC):
    """Rows for one model input.

    Attributes:
        spec: The model's input.
        dtype: Its numpy dtype.
        where: Source and input, for messages.
    """

    spec: TensorSpec
    dtype: np.dtype[Any]
    where: str

    @property
    def batch(self) -> int | None:
        """Number of rows that the model demands at once, None where it takes any."""
        first = self.spec.shape[0] if self.spec.shape else None
        return first if isinstance(first, int) else None

    @property
    def row_dims(self) -> tuple[Dim, ...] | None:
        """The model's dimensions of one row; None where they are unknown."""
        return None if self.spec.shape is None else self.spec.shape[1:]

    @abstractmethod
    def read(self, rows: Rows) -> Array:
        """Rows as the model takes them: its dtype, contiguous, batch axis first."""

    @abstractmethod
    def check(self, rows: Rows) -> tuple[int, ...]:
        """Check every row and return the shape of one, without the batch axis.

        Raises:
            DataError: A dimension differs from the model's, a value is NaN, infinite or outside
                the input's dtype, or an image is broken.
        """

    @abstractmethod
    def digest(self, rows: Rows) -> str:
        """SHA-256 of the raw rows."""

    def check_shape(self, shape: tuple[int, ...], cure: str) -> tuple[int, ...]:
        """Compare the shape of one row with the model's.

        Raises:
            DataError: They differ.
        """
        expected = self.row_dims
        if expected is not None and (
            len(shape) != len(expected)
            or any(isinstance(e, int) and e != g for e, g in zip(expected, shape, strict=True))
        ):
            raise DataError(
                f"expected {self.spec}, got rows of shape {list(shape)}",
                where=self.where,
                cure=cure,
            )
        return shape


@dataclass(frozen=True)
class ArrayFeed(Feed):
    """Rows that need nothing but a cast.

    Attributes:
        array: Raw rows.
        whole: Each row is one whole feed, batch axis included, as stateful models need it.
    """

    array: Array
    whole: bool

    @property
    def batch(self) -> int | None:
        return 1 if self.whole else super().batch

    @property
    def row_dims(self) -> tuple[Dim, ...] | None:
        return self.spec.shape if self.whole else super().row_dims

    def read(self, rows: Rows) -> Array:
        taken = self.array[rows[0]] if self.whole else self.array[rows]
        return np.array(taken, dtype=self.dtype, order="C")

    def check(self, rows: Rows) -> tuple[int, ...]:
        cure = "reshape the rows, or check which array feeds which input"
        shape = self.check_shape(self.array.shape[1:], cure)
        _check_values(self.array, rows, self.dtype, self.where)
        return shape

    def digest(self, rows: Rows) -> str:
        return _digest(self.array, rows)


@dataclass(frozen=True)
class ImageFeed(Feed):
    """Images, preprocessed when they are read.

    Attributes:
        images: Files, or pixels ``[rows, channels, h, w]`` (a view of whatever layout).
        preprocess: From pixels to the model's numbers.
    """

    images: Array | ImageFiles
    preprocess: PreprocessSpec

    def read(self, rows: Rows) -> Array:
        if isinstance(self.images, ImageFiles):
            single = [np.moveaxis(self._file(self.images, row)[None], 3, 1) for row in rows]
            array = np.concatenate([self.preprocess.apply(image) for image in single])
        else:
            array = self.preprocess.apply(self.images[rows])
        if self._channels_last(array.shape[1]):
            array = np.moveaxis(array, 1, 3)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            array = np.clip(np.rint(array), limits.min, limits.max)
        return np.ascontiguousarray(array, dtype=self.dtype)

    def check(self, rows: Rows) -> tuple[int, ...]:
        if isinstance(self.images, ImageFiles):
            return self._check_files(self.images, rows)
        shape = self._checked(*self.images.shape[1:])
        _check_values(self.images, rows, self.images.dtype, self.where)
        return shape

    def digest(self, rows: Rows) -> str:
        if not isinstance(self.images, ImageFiles):
            return _digest(self.images, rows)
        sha = hashlib.sha256()
        for row in rows:
            sha.update(self.images.files[row].read_bytes())
        return sha.hexdigest()

    def _file(self, images: ImageFiles, row: int) -> npt.NDArray[np.uint8]:
        shape = self.spec.shape
        grey = shape is not None and 1 in (shape[1], shape[3])
        return images.read(row, "L" if grey else "RGB")

    def _check_files(self, images: ImageFiles, rows: Rows) -> tuple[int, ...]:
        first: tuple[int, ...] | None = None
        for row in rows:
            height, width, channels = self._file(images, row).shape
            try:
                shape = self._checked(channels, height, width)
            except DataError as error:
                raise DataError(
                    error.what, where=str(images.files[row]), cure=error.cure
                ) from error
            first = first or shape
            if shape != first:
                raise DataError(
                    f"images differ in size after preprocessing: {list(first)} and {list(shape)}",
                    where=str(images.files[row]),
                    cure="set preprocess.resize to [h, w], or add a center_crop",
                )
        assert first is not None
        return first

    def _checked(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        self.preprocess.check_channels(channels)
        height, width = self.preprocess.output_size(height, width)
        last = self._channels_last(channels)
        return self.check_shape(
            (height, width, channels) if last else (channels, height, width),
            "check preprocess.layout, resize and center_crop",
        )

    def _channels_last(self, channels: int) -> bool:
        shape = self.spec.shape
        return (
            shape is not None
            and isinstance(shape[1], int)
            and shape[1] != channels
            and shape[3] == channels
        )


def open_feed(
    spec: TensorSpec, column: Column, preprocess: PreprocessSpec | None, where: str
) -> Feed:
    """Check rank and dtype of a column against the model's input.

    Raises:
        DataError: They do not fit, or images are to feed a float input without preprocessing.
    """
    where = f"{where}: input {spec.name!r}"
    dtype = _model_dtype(spec, where)
    if isinstance(column, ImageFiles) and preprocess is None:
        if dtype.kind not in "iu":
            what = f"pixels from 0 to 255 would feed {spec} as they are"
            raise DataError(what, where=where, cure=_PREPROCESS)
        preprocess = PreprocessSpec()
    if preprocess is not None:
        return ImageFeed(spec, dtype, where, _images(spec, column, preprocess, where), preprocess)
    assert not isinstance(column, ImageFiles)
    if not _fits(column.dtype, dtype):
        cure = _PREPROCESS if column.dtype == np.uint8 else f"save the array as {dtype}"
        raise DataError(f"expected {spec}, got {column.dtype}", where=where, cure=cure)
    rank = column.ndim if spec.shape is None else len(spec.shape)
    if column.ndim not in (rank, rank + 1):
        raise DataError(
            f"expected {spec} with the rows along the first axis, got an array of shape "
            f"{list(column.shape)}",
            where=where,
            cure="an array of one axis more than the input holds one whole feed per row",
        )
    return ArrayFeed(spec, dtype, where, column, column.ndim == rank + 1)


def _model_dtype(spec: TensorSpec, where: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as error:
        raise DataError(f"an input of type {spec.dtype} cannot be fed", where=where) from error
    if dtype.kind not in "fiubV":
        raise DataError(f"an input of type {spec.dtype} cannot be fed", where=where)
    return dtype


def _fits(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Same kind of number; the width may differ, since values are checked against it."""
    kinds = {"i": "int", "u": "int", "f": "float", "V": "float"}  # V: bfloat16
    kind = kinds.get(given.kind, "other")
    return given == wanted or (kind != "other" and kind == kinds.get(wanted.kind))


def _images(
    spec: TensorSpec, column: Column, preprocess: PreprocessSpec, where: str
) -> Array | ImageFiles:
    if spec.shape is not None and len(spec.shape) != 4:
        raise DataError(
            f"preprocessing is for images of 4 axes, the model has {spec}",
            where=where,
            cure="name the image input: [data.preprocess.INPUT]",
        )
    if isinstance(column, ImageFiles):
        return column
    if column.ndim not in (3, 4) or column.dtype.kind not in "fiu":
        raise DataError(
            "expected images [rows, height, width, channels] to preprocess, got "
            f"{column.dtype}{list(column.shape)}",
            where=where,
        )
    if column.ndim == 3:
        return column[:, None]
    layout = preprocess.layout or ("nhwc" if column.dtype == np.uint8 else "nchw")
    return np.moveaxis(column, 3, 1) if layout == "nhwc" else column


def _chunks(array: Array, rows: Rows) -> Iterator[tuple[Rows, Array]]:
    row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, len(rows), step):
        taken = rows[start : start + step]
        yield taken, np.asarray(array[taken])


def _digest(array: Array, rows: Rows) -> str:
    sha = hashlib.sha256(f"{array.dtype.str}{array.shape[1:]}".encode())
    for _, chunk in _chunks(array, rows):
        sha.update(np.ascontiguousarray(chunk).tobytes())
    return sha.hexdigest()


def _check_values(array: Array, rows: Rows, dtype: np.dtype[Any], where: str) -> None:
    integers = array.dtype.kind in "iub"
    if integers and array.dtype == dtype:
        return
    what = f"values outside {dtype}" if integers else f"NaN or infinite values as {dtype}"
    count, first = 0, -1
    for taken, chunk in _chunks(array, rows):
        if integers:
            limits = np.iinfo(dtype)
            bad = (chunk < limits.min) | (chunk > limits.max)
        else:
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(chunk.astype(dtype))
        if bad.any():
            count += int(bad.sum())
            if first < 0:
                first = int(taken[np.argmax(bad.reshape(len(taken), -1).any(axis=1))])
    if count:
        raise DataError(
            f"{count:,} {what}, the first in row {first}",
            where=where,
            cure="repair or remove these rows",
        )
