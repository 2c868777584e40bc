"""Arrays as feeds: rows that need nothing but a cast, of one shape or of many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.feeds import Feed, Rows
from edgecompress.data.ragged import Ragged
from edgecompress.errors import DataError
from edgecompress.model import Dim

__all__ = ["ArrayFeed", "RaggedFeed", "check_values", "digest"]

Array = npt.NDArray[Any]

_CHUNK_BYTES = 16 << 20
_CURE = "reshape the rows, or check which array feeds which input"


@dataclass(frozen=True)
class _RawFeed(Feed):
    """Rows that may be whole feeds.

    Attributes:
        whole: Each row is one whole feed, batch axis included, as stateful models need it.
    """

    whole: bool

    @property
    def batch(self) -> int | None:
        """1 where each row is one whole feed."""
        return 1 if self.whole else super().batch

    @property
    def row_dims(self) -> tuple[Dim, ...] | None:
        """The model's dimensions of one row."""
        return self.spec.shape if self.whole else super().row_dims


@dataclass(frozen=True)
class ArrayFeed(_RawFeed):
    """Rows of one shape.

    Attributes:
        array: Raw rows.
    """

    array: Array

    def read(self, rows: Rows) -> Array:
        """Rows of one shape in the model's dtype."""
        taken = self.array[rows[0]] if self.whole else self.array[rows]
        return np.array(taken, dtype=self.dtype, order="C")

    def row_shape(self, row: int) -> tuple[int, ...]:
        """Shape of one row."""
        return self.array.shape[1:]

    def check(self, rows: Rows) -> None:
        """Check shapes and values."""
        self.check_shape(self.array.shape[1:], _CURE)
        check_values(self.array, rows, self.dtype, self.where)

    def digest(self, rows: Rows) -> str:
        """SHA-256 of the raw rows."""
        return digest(self.array, rows)

    def mask(self, rows: Rows) -> npt.NDArray[np.bool_] | None:
        """Of an ``attention_mask`` in the data, where it has zeros."""
        if self.spec.name != "attention_mask" or self.array.ndim != 2 or self.whole:
            return None
        real = self.array[rows] != 0
        return None if real.all() else np.asarray(real)


@dataclass(frozen=True)
class RaggedFeed(_RawFeed):
    """Rows of many shapes; those of one shape can share a batch.

    Attributes:
        ragged: Raw rows.
    """

    ragged: Ragged

    def read(self, rows: Rows) -> Array:
        """Rows of one shape in the model's dtype."""
        taken = self.ragged.row(rows[0]) if self.whole else self.ragged.take(rows)
        return np.array(taken, dtype=self.dtype, order="C")

    def row_shape(self, row: int) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(map(int, self.ragged.shapes[row]))

    def check(self, rows: Rows) -> None:
        """Check shapes and values."""
        for shape in np.unique(self.ragged.shapes[rows], axis=0):
            self.check_shape(tuple(map(int, shape)), _CURE)
        for row in rows:
            alone = self.ragged.row(row)[None]
            check_values(alone, np.zeros(1, np.int64), self.dtype, f"{self.where}, row {row}")

    def digest(self, rows: Rows) -> str:
        """SHA-256 of the raw rows."""
        sha = hashlib.sha256(self.ragged.dtype.str.encode())
        for row in rows:
            values = self.ragged.row(row)
            sha.update(f"{values.shape}".encode())
            sha.update(np.ascontiguousarray(values).tobytes())
        return sha.hexdigest()

    def shapes(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Shape of each row."""
        return self.ragged.shapes[rows]


def digest(array: Array, rows: Rows) -> str:
    """SHA-256 of rows of an array, with its dtype and the shape of a row."""
    sha = hashlib.sha256(f"{array.dtype.str}{array.shape[1:]}".encode())
    for _, chunk in _chunks(array, rows):
        sha.update(np.ascontiguousarray(chunk).tobytes())
    return sha.hexdigest()


def check_values(array: Array, rows: Rows, dtype: np.dtype[Any], where: str) -> None:
    """Refuse values that ``dtype`` cannot hold.

    Raises:
        DataError: Counts them, and names the first row.
    """
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


def _chunks(array: Array, rows: Rows) -> Iterator[tuple[Rows, Array]]:
    row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
    step = max(1, _CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, len(rows), step):
        taken = rows[start : start + step]
        yield taken, np.asarray(array[taken])
