"""Rows of token ids: texts that are encoded once, when a split is opened, and kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgecompress.data.callables import IGNORED_LABEL
from edgecompress.data.spool import Spool
from edgecompress.data.tokenizer import Encoded
from edgecompress.errors import DataError

__all__ = ["TokenArray", "TokenRows", "Tokens", "Window"]

Rows = npt.NDArray[np.int64]

_AT_ONCE = 256


class Tokens(NamedTuple):
    """One row in tokens.

    Attributes:
        encoded: Ids and types.
        labels: One per token, ``IGNORED_LABEL`` where none; None for rows without such labels.
    """

    encoded: Encoded
    labels: list[int] | None


class _Spooled(NamedTuple):
    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32] | None
    starts: Rows
    truncated: int


@dataclass(frozen=True)
class TokenRows:
    """Token ids of the rows of one split; encoded at the first use.

    Attributes:
        rows: Numbers of the rows in their source, ascending.
        encode: Makes the tokens of rows, in order.
        length: The model's sequence length where it is fixed: rows are filled up to it.
        pad: The token that fills them up.
        where: The source, for messages.
    """

    rows: Rows
    encode: Callable[[Rows], Iterator[Tokens]]
    length: int | None
    pad: int
    where: str

    @cached_property
    def _spooled(self) -> _Spooled:
        ids, types, labels = Spool(np.int32), Spool(np.uint8), Spool(np.int32)
        starts = np.zeros(len(self.rows) + 1, np.int64)
        truncated = done = 0
        encoded_rows = self.encode(self.rows)
        while part := list(islice(encoded_rows, _AT_ONCE)):
            for number, (encoded, of_tokens) in enumerate(part, start=done):
                if len(encoded.ids) == 0:
                    raise DataError(
                        f"the text of row {self.rows[number]} has no tokens",
                        where=self.where,
                        cure="remove empty texts",
                    )
                starts[number + 1] = starts[number] + len(encoded.ids)
                truncated += encoded.truncated
                if of_tokens is not None:
                    labels.append(of_tokens)
            ids.append(np.concatenate([np.asarray(t.encoded.ids, np.int32) for t in part]))
            types.append(np.concatenate([np.asarray(t.encoded.types, np.uint8) for t in part]))
            done += len(part)
        found = labels.mapped() if labels.size else None
        return _Spooled(ids.mapped(), types.mapped(), found, starts, truncated)

    @property
    def truncated(self) -> int:
        """How many texts were longer than ``max_length``."""
        return self._spooled.truncated

    def lengths(self, rows: Rows) -> Rows:
        """Tokens of each row, without padding."""
        places = np.searchsorted(self.rows, rows)
        starts = self._spooled.starts
        found: Rows = starts[places + 1] - starts[places]
        return found

    def ids(self, rows: Rows) -> npt.NDArray[np.int32]:
        """``[rows, length]``; padded with ``pad`` where the model's length is fixed."""
        return self._table(self._spooled.ids, rows, self.pad)

    def types(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """``[rows, length]``: 1 for the second text of a pair."""
        return self._table(self._spooled.types, rows, 0)

    def mask(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """``[rows, length]``: which positions are real."""
        lengths = self.lengths(rows)
        return np.arange(self._width(lengths)) < lengths[:, None]

    def labels(self, rows: Rows) -> npt.NDArray[np.int64] | None:
        """``[rows, length]``, ``IGNORED_LABEL`` where none; None for rows without such labels."""
        found = self._spooled.labels
        return None if found is None else self._table(found, rows, IGNORED_LABEL).astype(np.int64)

    def row(self, row: int) -> npt.NDArray[np.int64]:
        """Ids and types of one row, as the model tells it from others."""
        place = int(np.searchsorted(self.rows, row))
        start, end = self._spooled.starts[place : place + 2]
        ids, types = self._spooled.ids[start:end], self._spooled.types[start:end]
        return np.concatenate([ids.astype(np.int64), types.astype(np.int64)])

    def _width(self, lengths: Rows) -> int:
        return self.length or int(lengths.max())

    def _table(self, values: npt.NDArray[Any], rows: Rows, fill: int) -> npt.NDArray[Any]:
        lengths = self.lengths(rows)
        table = np.full((len(rows), self._width(lengths)), fill, values.dtype)
        starts = self._spooled.starts[np.searchsorted(self.rows, rows)]
        for line, start, length in zip(table, starts, lengths, strict=True):
            line[:length] = values[start : start + length]
        return table


class TokenArray(NamedTuple):
    """One of the arrays that the tokens of a split become.

    Attributes:
        tokens: Of the split.
        array: Its name; see ``texts.TOKEN_ARRAYS``.
    """

    tokens: TokenRows
    array: str


@dataclass(frozen=True)
class Window:
    """Windows of one length over a long text in tokens.

    Attributes:
        ids: Of the whole text.
        length: Tokens of a window.
    """

    ids: npt.NDArray[np.int32]
    length: int

    def __len__(self) -> int:
        return max(1, len(self.ids) // self.length)

    def encode(self, rows: Rows) -> Iterator[Tokens]:
        """Windows by number."""
        for row in rows:
            ids = self.ids[row * self.length : (row + 1) * self.length].tolist()
            yield Tokens(Encoded(ids, [0] * len(ids), (), False), None)
