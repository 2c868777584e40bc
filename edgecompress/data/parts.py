"""One split: the rows taken, what feeds them, and how they fall into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.feeds import Feed, Rows
from edgecompress.data.splits import Split
from edgecompress.data.tokens import TokenRows
from edgecompress.errors import DataError

__all__ = ["Batch", "Part"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Rows of one shape as the model takes them.

    Attributes:
        inputs: Model input -> array of its dtype, contiguous.
        labels: One per row, if the source has them; of words, one per token, -100 where none.
        rows: How many rows it holds.
        index: Numbers of its rows within the split: ``labels(split)[index]`` are its labels.
        number: Its own number within the split, whatever shard it is read in.
        mask: Bool ``[rows, length]``: which positions are no padding; None where all are.
        source: Numbers of its rows in their source.
        group: Rows of the source that belong together: texts ``group * i`` and following are of
            record ``i``.
    """

    inputs: dict[str, Array]
    labels: Array | None
    rows: int
    index: Rows
    number: int = 0
    mask: npt.NDArray[np.bool_] | None = None
    source: Rows | None = None
    group: int = 1


@dataclass(frozen=True)
class Part:
    """Rows of one split.

    Attributes:
        source: The path as the recipe has it.
        feeds: One for each model input.
        given: Labels of all rows of the source, or None.
        rows: Rows taken, ascending.
        group: Rows of the source that belong together.
        tokens: Of text, else None.
    """

    source: str
    feeds: tuple[Feed, ...]
    given: Array | None
    rows: Rows
    group: int = 1
    tokens: TokenRows | None = None

    @cached_property
    def buckets(self) -> list[Rows]:
        """Places in ``rows`` by shape, smallest first: rows of one bucket can share a batch."""
        sizes = [found for feed in self.feeds if (found := feed.shapes(self.rows)) is not None]
        if not sizes:
            return [np.arange(len(self.rows))]
        _, kinds = np.unique(np.concatenate(sizes, axis=1), axis=0, return_inverse=True)
        order = np.argsort(kinds, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)

    def plan(self, step: int) -> list[Rows]:
        """Places of the rows of each batch, in the order of their first rows."""
        batches = [b[i : i + step] for b in self.buckets for i in range(0, len(b), step)]
        return sorted(batches, key=lambda places: int(places[0]))

    def batch(self, places: Rows, number: int = 0) -> Batch:
        """Read the rows at some places, which are of one shape."""
        rows = self.rows[places]
        masks = (found for feed in self.feeds if (found := feed.mask(rows)) is not None)
        return Batch(
            inputs={feed.spec.name: feed.read(rows) for feed in self.feeds},
            labels=self._labels(rows),
            rows=len(rows),
            index=places,
            number=number,
            mask=next(masks, None),
            source=rows,
            group=self.group,
        )

    def batches(self, step: int, shard: tuple[int, int]) -> Iterator[Batch]:
        """Every batch whose number falls into the shard."""
        mine, of = shard
        for number, places in enumerate(self.plan(step)):
            if number % of == mine:
                yield self.batch(places, number)

    @property
    def labels(self) -> Array | None:
        """Labels of the rows taken, in order."""
        return self._labels(self.rows)

    def _labels(self, rows: Rows) -> Array | None:
        if self.given is not None:
            return self.given[rows]
        return None if self.tokens is None else self.tokens.labels(rows)

    def middle(self, rows: int) -> Rows:
        """Places of at most so many rows of one shape, as near to the middle size as it can be."""
        ends = np.cumsum([len(bucket) for bucket in self.buckets])
        distance = np.abs(ends - [len(bucket) / 2 for bucket in self.buckets] - ends[-1] / 2)
        enough = min(rows, max(map(len, self.buckets)))
        fitting = [i for i, bucket in enumerate(self.buckets) if len(bucket) >= enough]
        return self.buckets[min(fitting, key=lambda i: float(distance[i]))][:rows]

    def check(self) -> None:
        """Check all rows, and that dimensions of one name have one size in each of them.

        Raises:
            DataError: Names input, row and cure.
        """
        for feed in self.feeds:
            feed.check(self.rows)
        for bucket in self.buckets:
            self._check_dims(int(self.rows[bucket[0]]))

    def _check_dims(self, row: int) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for feed in self.feeds:
            dims = feed.row_dims or ()
            if not any(isinstance(dim, str) for dim in dims):
                continue
            for dim, size in zip(dims, feed.row_shape(row), strict=False):
                if not isinstance(dim, str):
                    continue
                known, name = sizes.setdefault(dim, (size, feed.spec.name))
                if known != size:
                    raise DataError(
                        f"the dimension {dim!r} is {known} for the input {name!r} and {size} here",
                        where=feed.where,
                        cure="pad or cut the arrays to one length",
                    )

    def contents(self) -> npt.NDArray[np.uint64] | None:
        """A number per row, equal for copies; None where equal rows are no sign of copies."""
        found = [feed.contents(self.rows) for feed in self.feeds]
        mixed = np.zeros(len(self.rows), np.uint64)
        for numbers in found:
            if numbers is None:
                return None
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + numbers
        return mixed

    def without(self, copies: npt.NDArray[np.bool_]) -> Part:
        """The part with some rows left out."""
        return replace(self, rows=self.rows[~copies])

    def whole_batches(self, split: Split, fixed: int | None) -> Part:
        """Leave out the last rows of a shape where they do not fill a batch of fixed size.

        Raises:
            DataError: None is left.
        """
        if fixed is None:
            return self
        kept = np.concatenate([b[: len(b) // fixed * fixed] for b in self.buckets])
        if not len(kept):
            shape = " of one length" if len(self.buckets) > 1 else ""
            raise DataError(
                f"the model takes {fixed} rows at once, there are only "
                f"{max(map(len, self.buckets))} {split} rows{shape}",
                where=self.source,
                cure="add rows, or export the model with a free batch axis",
            )
        return replace(self, rows=self.rows[np.sort(kept)])

    def hash_into(self, sha: hashlib._Hash) -> None:
        """Add what the rows hold to a digest."""
        for feed in self.feeds:
            sha.update(f"{feed.spec}:{feed.digest(self.rows)}".encode())
        if self.given is not None:
            sha.update(np.ascontiguousarray(self.given[self.rows]).tobytes())
