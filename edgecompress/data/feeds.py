"""What feeds one model input: rows that are checked when opened, and converted when read."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError
from edgecompress.model import Dim, TensorSpec

__all__ = ["Feed", "Rows", "hashes"]

Rows = npt.NDArray[np.int64]
Array = npt.NDArray[Any]


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
        """Rows of one shape as the model takes them: its dtype, contiguous, batch axis first."""

    @abstractmethod
    def row_shape(self, row: int) -> tuple[int, ...]:
        """Shape of one row as the model takes it, without the batch axis."""

    @abstractmethod
    def check(self, rows: Rows) -> None:
        """Check every row.

        Raises:
            DataError: A dimension differs from the model's, a value is NaN, infinite or outside
                the input's dtype, or an image is broken.
        """

    @abstractmethod
    def digest(self, rows: Rows) -> str:
        """SHA-256 of the raw rows."""

    def shapes(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """What tells rows apart that cannot share a batch, ``[rows, sizes]``; None: nothing."""
        return None

    def mask(self, rows: Rows) -> npt.NDArray[np.bool_] | None:
        """Real positions ``[rows, length]`` of padded sequences; None where nothing is padded."""
        return None

    def contents(self, rows: Rows) -> npt.NDArray[np.uint64] | None:
        """A number per row, equal for equal rows; None where equal rows are no sign of copies."""
        return None

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


def hashes(contents: Iterable[bytes]) -> npt.NDArray[np.uint64]:
    """64 bits for each of some byte strings."""
    digests = b"".join(hashlib.blake2b(c, digest_size=8).digest() for c in contents)
    return np.frombuffer(digests, np.uint64)
