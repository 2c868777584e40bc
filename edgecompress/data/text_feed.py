"""Token ids and what goes with them as feeds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.feeds import Feed, Rows, hashes
from edgecompress.data.tokens import TokenRows
from edgecompress.errors import DataError

__all__ = ["TokenFeed"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TokenFeed(Feed):
    """One of the arrays that a text becomes.

    Rows of equal length share a batch; where the model's length is fixed, rows are filled up.

    Attributes:
        tokens: Of all rows of the split.
        array: Which one; see ``texts.TOKEN_ARRAYS``.
    """

    tokens: TokenRows
    array: str

    def read(self, rows: Rows) -> Array:
        """Rows of one length."""
        return np.ascontiguousarray(self._values(rows), dtype=self.dtype)

    def _values(self, rows: Rows) -> Array:
        if self.array == "input_ids":
            return self.tokens.ids(rows)
        if self.array == "token_type_ids":
            return self.tokens.types(rows)
        mask = self.tokens.mask(rows)
        if self.array == "attention_mask":
            return mask
        return np.broadcast_to(np.arange(mask.shape[1]), mask.shape)

    def row_shape(self, row: int) -> tuple[int, ...]:
        """Tokens of one row."""
        return (self.tokens.length or int(self.tokens.lengths(np.array([row]))[0]),)

    def check(self, rows: Rows) -> None:
        """Compare axes and length with the model."""
        lengths = np.unique(self.tokens.lengths(rows))
        if self.spec.shape is not None and len(self.spec.shape) != 2:
            raise DataError(
                f"text feeds [rows, length], the model has {self.spec}",
                where=self.where,
                cure="export the model with inputs of two axes",
            )
        self.check_shape((self.tokens.length or int(lengths[0]),), "set max_length in [data]")

    def digest(self, rows: Rows) -> str:
        """SHA-256 of the tokens."""
        sha = hashlib.sha256(f"{self.array}:{self.tokens.length}".encode())
        if self.array == "input_ids":
            for row in rows:
                sha.update(np.int64(len(content := self.tokens.row(row))).tobytes())
                sha.update(content.tobytes())
            labels = self.tokens.labels(rows)
            sha.update(b"" if labels is None else labels.tobytes())
        return sha.hexdigest()

    def shapes(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """Tokens of each row, where the model's length is free."""
        return None if self.tokens.length is not None else self.tokens.lengths(rows)[:, None]

    def mask(self, rows: Rows) -> npt.NDArray[np.bool_] | None:
        """Which positions are no padding."""
        if self.tokens.length is None:
            return None
        real = self.tokens.mask(rows)
        return None if real.all() else real

    def contents(self, rows: Rows) -> npt.NDArray[np.uint64]:
        """Of the tokens: texts that are equal to the model are equal."""
        return hashes(self.tokens.row(row).tobytes() for row in rows)
