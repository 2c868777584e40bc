"""Activations of one or two streams at the cut that a walk has reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from edgecompress.data.calibration import Batch
from edgecompress.torchgraph import as_tensors
from edgecompress.walk.scratch import Budget, Store

__all__ = ["Rows", "Streams", "WalkBatch"]


@dataclass(frozen=True)
class WalkBatch:
    """One batch at the inputs of a block.

    Attributes:
        place: Its place in the walk, from 0.
        source: The rows that it came from; without their arrays where the block reads none.
        original: Feeds of the block in the original graph.
        current: Feeds of the block in the edited graph; the same where nothing differs yet.
    """

    place: int
    source: Batch
    original: Mapping[str, Tensor]
    current: Mapping[str, Tensor]


class Rows:
    """The batches of a walk, the same each time; read from their source only where they must be."""

    def __init__(self, read: Callable[[], Iterator[Batch]], limit: int | None) -> None:
        self._read = read
        self._limit = limit
        self._known: list[Batch] | None = None

    def batches(self, *, with_inputs: bool) -> Iterator[Batch]:
        """All batches in order; from the second time on without inputs where nobody wants them."""
        if self._known is not None and not with_inputs:
            yield from self._known
            return
        known: list[Batch] = []
        done = 0
        for batch in self._read():
            if self._limit is not None and done >= self._limit:
                break
            known.append(replace(batch, inputs={}))
            yield batch
            done += batch.rows
        self._known = known


@dataclass
class Streams:
    """Stores by value name.

    Attributes:
        budget: Memory of all of them.
        original: X, through the original graph.
        current: X', through the edited graph; None as long as it is X.
    """

    budget: Budget
    original: dict[str, Store] = field(default_factory=dict)
    current: dict[str, Store] | None = None

    def feeds(
        self, rows: Rows, original: Sequence[str], current: Sequence[str]
    ) -> Iterator[WalkBatch]:
        """All batches, with the values that a block reads in both graphs."""
        outside = {name for name in (*original, *current) if name not in self.original}
        for place, source in enumerate(rows.batches(with_inputs=bool(outside))):
            arrays = {name: source.inputs[name] for name in outside & source.inputs.keys()}
            inputs = as_tensors(arrays)
            first = _taken(original, self.original, inputs, place)
            if self.current is None and set(current) <= set(original):
                second = first
            else:
                second = _taken(current, self.current or self.original, inputs, place)
            yield WalkBatch(place, source, first, second)

    def new(self, names: Iterable[str]) -> dict[str, Store]:
        """Empty stores for the values behind a block."""
        return {name: Store(self.budget) for name in names}

    def drop(self, names: Iterable[str], place: int) -> None:
        """Forget what a batch no longer needs."""
        for name in names:
            for store in self._all(name):
                store.drop(place)

    def pass_on(
        self,
        made: Mapping[str, Store],
        made_current: Mapping[str, Store] | None,
        finished: Iterable[str],
    ) -> None:
        """Add what a block made, and forget the values that no later one reads."""
        if made_current is not None and self.current is None:
            self.current = dict(self.original)
        self.original.update(made)
        if self.current is not None:
            self.current.update(made if made_current is None else made_current)
        for name in finished:
            for store in self._all(name):
                store.close()
            self.original.pop(name, None)
            if self.current is not None:
                self.current.pop(name, None)

    def close(self) -> None:
        """Forget everything."""
        for name in [*self.original]:
            for store in self._all(name):
                store.close()

    def _all(self, name: str) -> list[Store]:
        found = [stores.get(name) for stores in (self.original, self.current or {})]
        return [store for store in found if store is not None]


def _taken(
    names: Sequence[str], stores: Mapping[str, Store], inputs: Mapping[str, Tensor], place: int
) -> dict[str, Tensor]:
    """Values of a batch by name; what is nowhere is left out, and missed by the graph itself."""
    stored = {name: stores[name].get(place) for name in names if name in stores}
    return {**{name: inputs[name] for name in names if name in inputs}, **stored}
