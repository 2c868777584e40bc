"""Rows of differing shapes in one array, one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.spool import Spool

__all__ = ["Ragged", "RowSpool", "ragged_rows"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Ragged:
    """Rows that share dtype and number of axes, and differ in their lengths.

    Attributes:
        values: All values of all rows, flat; perhaps memory-mapped.
        starts: Where each row starts in ``values``, and at last where the last one ends.
        shapes: Shape of each row, ``[rows, axes]``.
    """

    values: Array
    starts: npt.NDArray[np.int64]
    shapes: npt.NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """Axes of an array of rows of equal shape."""
        return int(self.shapes.shape[1]) + 1

    def __len__(self) -> int:
        return len(self.shapes)

    def row(self, row: int) -> Array:
        """One row in its own shape."""
        return self.values[self.starts[row] : self.starts[row + 1]].reshape(self.shapes[row])

    def take(self, rows: npt.NDArray[np.int64]) -> Array:
        """Rows of one shape, stacked."""
        return np.stack([self.row(row) for row in rows])


def ragged_rows(values: Array, lengths: Array) -> Ragged:
    """Rows of ``lengths`` along the first axis of ``values``, one behind the other."""
    inner = np.array(values.shape[1:], np.int64)
    counts = lengths.astype(np.int64)
    shapes = np.concatenate([counts[:, None], np.tile(inner, (len(counts), 1))], axis=1)
    starts = np.concatenate([[0], np.cumsum(counts) * int(inner.prod())])
    return Ragged(values.reshape(-1), starts, shapes)


class RowSpool:
    """Batches of rows, kept in a temporary file until all are there."""

    def __init__(self, dtype: np.dtype[Any], axes: int) -> None:
        self._spool = Spool(dtype)
        self._axes = axes
        self._shapes: list[tuple[int, ...]] = []
        self._counts: list[int] = []

    def append(self, batch: Array) -> None:
        """Add the rows of an array, rows first.

        Raises:
            ValueError: Its dtype or its number of axes differs from the first batch's.
        """
        if batch.ndim != self._axes or not np.can_cast(batch.dtype, self._spool.dtype):
            raise ValueError(
                f"batches differ: expected {self._spool.dtype} of {self._axes} axes, "
                f"got {batch.dtype} of {batch.ndim}"
            )
        self._spool.append(batch)
        self._shapes.append(batch.shape[1:])
        self._counts.append(len(batch))

    def column(self) -> Array | Ragged:
        """All rows: an array where their shapes are equal."""
        values = self._spool.mapped()
        if len(set(self._shapes)) == 1:
            return values.reshape(sum(self._counts), *self._shapes[0])
        shapes = np.repeat(_table(self._shapes), self._counts, axis=0)
        starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
        return Ragged(values, starts, shapes)


def _table(shapes: Sequence[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    return np.array(shapes, np.int64).reshape(len(shapes), -1)
