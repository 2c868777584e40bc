"""One step of a walk: a block in both graphs, with the rows at its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.data.calibration import Batch
from edgecompress.errors import PassError, UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.parallel.threads import in_order
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.blocks import Block, slice_between
from edgecompress.walk.liveness import reads
from edgecompress.walk.opaque import OpaqueGraph
from edgecompress.walk.scratch import Store
from edgecompress.walk.streams import Rows, Streams, WalkBatch

__all__ = ["Track", "WalkStep", "Watch"]


@dataclass(frozen=True)
class Watch:
    """Values to look at while they pass.

    Attributes:
        names: Of values; those that the graph lacks are not seen.
        see: Called with the batch, the name and the value, in graph order. What it writes into the
            value reaches all later nodes.
        again: Show a value in each block that reads it, not only in the one that computes it.
    """

    names: Collection[str]
    see: Callable[[Batch, str, Tensor], None]
    again: bool = False


@dataclass
class Track:
    """What the steps of a walk share; see :class:`~edgecompress.walk.walker.Walk`."""

    original: Model
    current: Model | None
    streams: Streams
    rows: Rows
    last_reader: Mapping[str, int]
    threads: int
    device: str
    report: Callable[[int, int], None]
    seen: set[str] = field(default_factory=set)
    seen_current: set[str] = field(default_factory=set)


class WalkStep:
    """One block, with the rows at its inputs.

    Attributes:
        block: In the original graph.
        number: Its place in the walk.
    """

    def __init__(self, block: Block, number: int, track: Track) -> None:
        self.block = block
        self.number = number
        self._track = track
        self._original: TorchGraph | OpaqueGraph | None = None
        self._done = False

    @property
    def original(self) -> TorchGraph | OpaqueGraph:
        """The block in the original graph."""
        if self._original is None:
            self._original = self._graph(self._track.original, self.block.nodes)
        return self._original

    @property
    def current(self) -> TorchGraph | OpaqueGraph:
        """The block in the edited graph, as it is now.

        Raises:
            PassError: An edit removed a value at a cut.
        """
        nodes = self.current_nodes
        if self._track.current is None or not self._differs(nodes):
            return self.original
        return self._graph(self._track.current, nodes)

    @property
    def current_nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of the edited graph that stand for the block now.

        Raises:
            PassError: An edit removed a value at a cut.
        """
        current = self._track.current
        if current is None:
            return self.block.nodes
        outputs = (*self.kept, *self.block.results)
        nodes = slice_between(current.ir.graph, self._track.streams.original, outputs)
        if nodes is None:
            raise PassError(
                f"an edit removed one of the values {', '.join(outputs)}, which later blocks read",
                where=f"block {self.block.name!r}",
                cure="this is a bug of the pass; please report it with the recipe",
            )
        return nodes

    def _differs(self, nodes: Sequence[ir.Node]) -> bool:
        return self._track.current is not None and _content(self.block.nodes) != _content(nodes)

    def batches(self) -> Iterator[WalkBatch]:
        """The rows at the block's inputs; may be asked for several times."""
        return self.feeds(self.original.input_names, self.current.input_names)

    def feeds(self, original: Sequence[str], current: Sequence[str]) -> Iterator[WalkBatch]:
        """The rows, with these values of both graphs: what the block reads, or graph inputs."""
        return self._track.streams.feeds(self._track.rows, original, current)

    def advance(self, original: Watch | None = None, current: Watch | None = None) -> None:
        """Run the block and keep what later blocks read; a second call does nothing.

        Args:
            original: Looks at values of the original graph.
            current: Looks at values of the edited graph, in each batch after the original.

        Raises:
            OutputError: The scratch folder cannot be written.
        """
        if self._done:
            return
        self._done = True
        track, streams = self._track, self._track.streams
        nodes = self.current_nodes
        names = _unseen(original, self.block.nodes, track.seen)
        names_current = _unseen(current, nodes, track.seen_current)
        first, second = self.original, None
        if track.current is not None and self._differs(nodes):
            second = self._graph(track.current, nodes)
        elif streams.current is not None or names_current:
            second = first
        kept = self.kept
        read_by_second = () if second is None else second.input_names

        def through(batch: WalkBatch) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
            with torch.no_grad():  # it holds for one thread
                values = _run(first, batch.original, batch.source, original, names, kept)
                if second is None:
                    return values, None
                return values, _run(
                    second, batch.current, batch.source, current, names_current, kept
                )

        batches = streams.feeds(track.rows, first.input_names, read_by_second)
        self._pass_on(
            in_order(through, batches, track.threads, partial(torch.set_num_threads, 1)),
            second is not None,
        )

    def hand_over(
        self, computed: Iterable[tuple[WalkBatch, Mapping[str, Tensor], Mapping[str, Tensor]]]
    ) -> None:
        """As :meth:`advance`, with values of :attr:`kept` that were computed elsewhere.

        Args:
            computed: The batches in order, with the values in the original and the edited graph.

        Raises:
            OutputError: The scratch folder cannot be written.
        """
        self._done = True
        self._pass_on(((batch, (first, second)) for batch, first, second in computed), True)

    def _pass_on(
        self,
        computed: Iterable[
            tuple[WalkBatch, tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]]
        ],
        two: bool,
    ) -> None:
        track, streams = self._track, self._track.streams
        finished = [n for n, last in track.last_reader.items() if last == self.number]
        made = streams.new(self.kept)
        made_current = streams.new(self.kept) if two else None
        done = 0
        for batch, (values, values_current) in computed:
            _keep(values, batch, made)
            if values_current is not None and made_current is not None:
                _keep(values_current, batch, made_current)
            streams.drop(finished, batch.place)
            done += batch.source.rows
            track.report(self.number, done)
        streams.pass_on(made, made_current, finished)
        self._original = None  # its weights go

    @property
    def kept(self) -> list[str]:
        """What later blocks of this walk read."""
        last = self._track.last_reader
        return [name for name in self.block.outputs if last.get(name, -1) > self.number]

    def _graph(self, model: Model, nodes: Sequence[ir.Node]) -> TorchGraph | OpaqueGraph:
        if not self.block.opaque:
            with suppress(UnsupportedOperatorError):
                return to_torch(model, nodes, device=self._track.device)
        return OpaqueGraph(model, nodes)


def _unseen(watch: Watch | None, nodes: Sequence[ir.Node], seen: set[str]) -> set[str]:
    """The watched values that a block is to show."""
    if watch is None:
        return set()
    there = {value.name for node in nodes for value in (*reads(node), *node.outputs)}
    names = set(watch.names) & there
    if not watch.again:
        names -= seen
        seen.update(names)
    return names


def _run(
    graph: TorchGraph | OpaqueGraph,
    feeds: Mapping[str, Tensor],
    source: Batch,
    watch: Watch | None,
    names: Collection[str],
    outputs: Collection[str],
) -> dict[str, Tensor]:
    observe = None if watch is None else partial(watch.see, source)
    return graph(feeds, observe=observe, watch=names, outputs=tuple(outputs))


def _keep(values: Mapping[str, Tensor], batch: WalkBatch, made: Mapping[str, Store]) -> None:
    for name, tensor in values.items():
        made[name].put(batch.place, tensor)


def _content(nodes: Sequence[ir.Node]) -> list[tuple[object, ...]]:
    """What a slice computes, weights by identity: they are replaced, never changed."""
    return [
        (
            node.op_identifier(),
            *(None if v is None else v.name for v in node.inputs),
            *((v.name, id(v.const_value)) for v in reads(node)),  # those of sub-graphs, too
            *(value.name for value in node.outputs),
            *map(_attribute, node.attributes.values()),
        )
        for node in nodes
    ]


def _attribute(attribute: ir.Attr) -> tuple[object, ...]:
    plain = isinstance(attribute.value, (int, float, str, tuple))
    value = attribute.value if plain else ir.to_proto(attribute).SerializeToString()
    return attribute.name, attribute.type, value
