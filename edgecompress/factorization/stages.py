"""One block of a walk, run stage by stage in both graphs.

A stage is a set of layers none of which feeds another. The original graph runs on behind them, so
that their outputs can be looked at; the edited graph stops in front of them, since what they
compute is about to change. What both have computed so far is kept, so that a block costs one run in
each graph, however many stages it has; and only the weights between two stages are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.factorization.parts import Layer
from edgecompress.model import Model
from edgecompress.numerics.one_thread import alone
from edgecompress.parallel.threads import in_order
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.blocks import slice_between
from edgecompress.walk.liveness import reads
from edgecompress.walk.scratch import Budget, Store
from edgecompress.walk.step import WalkStep
from edgecompress.walk.streams import WalkBatch

__all__ = ["BlockRun", "Values", "stages_of"]

Values = Mapping[str, Tensor]
T = TypeVar("T")


def stages_of(nodes: Iterable[ir.Node], layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers of a block in the order of the data; those of one stage do not feed one another."""
    by_output = {layer.output: layer for layer in layers}
    depth: dict[ir.Value, int] = {}
    stages: dict[int, list[Layer]] = {}
    for node in nodes:
        here = max((depth.get(value, 0) for value in reads(node)), default=0)
        layer = by_output.get(node.outputs[0].name or "")
        if layer is not None:
            stages.setdefault(here, []).append(layer)
            here += 1
        depth.update(dict.fromkeys(node.outputs, here))
    return [stages[number] for number in sorted(stages)]


@dataclass
class _Stream:
    """What one graph has computed of a block so far, for all rows.

    Attributes:
        model: The graph.
        given: Names of values that need not be computed again.
        stores: Those of them that this block computed.
    """

    model: Model
    given: set[str]
    stores: dict[str, Store] = field(default_factory=dict)

    def graph(self, wanted: Iterable[str], device: str) -> TorchGraph | None:
        """What computes some values from those at hand; None where all are."""
        names = [name for name in dict.fromkeys(wanted) if name not in self.given]
        nodes = slice_between(self.model.ir.graph, self.given, names)
        return to_torch(self.model, nodes, outputs=names, device=device) if nodes else None

    def values(self, graph: TorchGraph | None, batch: Values, place: int) -> Values:
        """What is at hand of a batch, and what the graph makes of it."""
        there = {**batch, **{name: store.get(place) for name, store in self.stores.items()}}
        return there if graph is None else {**there, **graph(there)}

    def move_on(self, made: Mapping[str, Store], live: Collection[str]) -> None:
        self.stores.update(made)
        self.given.update(made)
        for name in [name for name in self.stores if name not in live]:
            self.stores.pop(name).close()


class BlockRun:
    """The rows of a block on their way through it."""

    def __init__(
        self,
        step: WalkStep,
        original: Model,
        edited: Model,
        weighty: Collection[str],
        budget: Budget,
        *,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        """Start in front of a block.

        Args:
            step: The block, which torch can run.
            original: The original graph.
            edited: The edited graph; values at the cuts have the same names in it.
            weighty: Names of values that depend on a weight: only these are kept, the others are
                computed again by each stage that reads them.
            budget: Of the values that are kept.
            threads: Batches on their way at once, each on one thread.
            device: torch device.
        """
        self._step = step
        self._weighty = weighty
        self._budget = budget
        self._threads = threads
        self._device = device
        self._names = (*step.block.inputs, *step.block.context)
        self._original = _Stream(original, set(self._names))
        self._edited = _Stream(edited, set(self._names))

    def stage(
        self, layers: Sequence[Layer], look: Callable[[WalkBatch, Values, Values], T]
    ) -> Iterator[T]:
        """Run on to a stage.

        Args:
            layers: Of the stage.
            look: Called for each batch, from several threads: with inputs and outputs of the layers
                in the original graph, and their inputs in the edited one.

        Yields:
            What ``look`` makes of them, in the order of the batches.
        """
        inputs = list(dict.fromkeys(layer.input for layer in layers))
        outputs = [layer.output for layer in layers]
        yield from self._run([*inputs, *outputs], inputs, look)

    def finish(
        self, wanted: Sequence[str], look: Callable[[WalkBatch, Values, Values], T]
    ) -> Iterator[T]:
        """Run on to the end of the block, as :meth:`stage`, with the values ``wanted`` there."""
        yield from self._run(wanted, wanted, look, last=True)

    def _run(
        self,
        wanted: Sequence[str],
        wanted_edited: Sequence[str],
        look: Callable[[WalkBatch, Values, Values], T],
        *,
        last: bool = False,
    ) -> Iterator[T]:
        first, second = self._original, self._edited
        live = [
            [] if last else self._live(stream, names)
            for stream, names in ((first, wanted), (second, wanted_edited))
        ]
        made, made_edited = (
            {name: Store(self._budget) for name in names if name not in stream.given}
            for names, stream in zip(live, (first, second), strict=True)
        )
        graph = first.graph((*wanted, *made), self._device)
        graph_edited = second.graph((*wanted_edited, *made_edited), self._device)

        def through(batch: WalkBatch) -> tuple[Values, Values, T]:
            with torch.no_grad():  # it holds for one thread
                values = first.values(graph, batch.original, batch.place)
                values_edited = second.values(graph_edited, batch.current, batch.place)
                return values, values_edited, look(batch, values, values_edited)

        batches = self._step.feeds(self._names, self._names)
        for batch, found in in_order(through, batches, self._threads, alone):
            for stores, values in ((made, found[0]), (made_edited, found[1])):
                for name, store in stores.items():
                    store.put(batch.place, values[name])
            yield found[2]
        first.move_on(made, live[0])
        second.move_on(made_edited, live[1])

    def _live(self, stream: _Stream, names: Sequence[str]) -> list[str]:
        """What is at hand when ``names`` are, and still needed behind them."""
        graph = stream.model.ir.graph
        ends = {*self._step.kept, *self._step.block.results}
        new = set(slice_between(graph, stream.given, names) or ())
        rest = set(slice_between(graph, {*stream.given, *names}, ends) or ()) - new
        there = {*stream.given, *(value.name or "" for node in new for value in node.outputs)}
        read = {value.name or "" for node in rest for value in reads(node)}
        return sorted((read | ends) & there & {*self._weighty} - set(self._names))
