"""The walk: calibration rows pass through a model block by block, in one or two streams.

Only one block's weights are in memory, and the activations at one cut: X of the original graph and,
where an edited graph walks along, X' through what has been changed so far. The two are one until
the first difference. So memory is that of the widest cut times the rows, however deep the graph is,
and past a budget it is a file.

::

    for step in Walk(original, data, current=clone, blocks=find_blocks(original)):
        for batch in step.batches():      # X and X' at the block's inputs
            ...
        edit(clone, step.block)           # what later blocks see has passed through the edit
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet, Split
from edgecompress.errors import PassError, UnsupportedOperatorError
from edgecompress.memory import give_back
from edgecompress.model import Model
from edgecompress.parallel.threads import in_order
from edgecompress.progress import Progress, silent
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.blocks import Block, find_blocks, join, slice_between, whole
from edgecompress.walk.liveness import reads
from edgecompress.walk.opaque import OpaqueGraph
from edgecompress.walk.scratch import Budget, Store
from edgecompress.walk.streams import Rows, Streams, WalkBatch

__all__ = ["Walk", "WalkBatch", "WalkStep", "Watch"]

# One part of the memory is for activations that are kept; the rest for the weights of a block and
# for what one batch needs while it passes through them.
_KEPT_SHARE = 4


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


class Walk:
    """Rows on their way through a graph. Iterate over it once.

    Attributes:
        blocks: In order.
        budget: Of the kept activations, with what they took.
    """

    def __init__(
        self,
        original: Model,
        data: CalibrationSet,
        *,
        current: Model | None = None,
        blocks: Sequence[Block] | None = None,
        split: Split = "calibration",
        rows: int | None = None,
        batch_size: int | None = None,
        shard: tuple[int, int] = (0, 1),
        threads: int = 1,
        device: str = "cpu",
        memory: int | None = None,
        scratch: Path | None = None,
        progress: Progress = silent,
        label: str = "walk",
    ) -> None:
        """Prepare a walk; nothing is run yet.

        Args:
            original: The reference graph. Functions are inlined in a copy.
            data: Where the rows come from.
            current: A second graph with the same inputs, whose values keep their names at the cuts.
                It may be edited at and behind the block that the walk has reached.
            blocks: Cuts of ``original``. Default: none where its weights fit into half of
                ``memory``, since then nothing has to be kept between blocks; else
                :func:`find_blocks`.
            split: Which rows.
            rows: About so many of them: whole batches until they are reached.
            batch_size: Rows per batch, where the model leaves it open.
            shard: As for :meth:`CalibrationSet.batches`.
            threads: Batches on their way at once, each computed on one thread; what watches them
                is called from all.
            device: torch device.
            memory: Bytes that weights and activations may take, about; None for no limit.
            scratch: Folder for activations that do not fit; None for the system's.
            progress: Told how far the walk is.
            label: What it is called there.
        """
        original = _inlined(original)
        if blocks is None:
            small = memory is None or original.weight_bytes * 2 <= memory
            blocks = [whole(original)] if small else find_blocks(original)
        if current is not None:
            current = _inlined(current)
            blocks = _cut_in_both(original, current, blocks)
        self.blocks = tuple(blocks)
        self.budget = Budget(None if memory is None else memory // _KEPT_SHARE, scratch)
        self._track = _Track(
            original=original,
            current=current,
            streams=Streams(self.budget),
            rows=Rows(lambda: data.batches(split, batch_size, shard=shard), rows),
            last_reader={name: n for n, block in enumerate(blocks) for name in block.inputs},
            threads=threads,
            device=device,
            report=partial(_report, progress, label, _count(data, split, rows, shard), len(blocks)),
        )

    @property
    def diverged(self) -> bool:
        """Whether the two streams differ by now."""
        return self._track.streams.current is not None

    def __iter__(self) -> Iterator[WalkStep]:
        """Each block, when the rows have reached it; they go on when the loop does."""
        try:
            for number, block in enumerate(self.blocks):
                step = WalkStep(block, number, self._track)
                yield step
                step.advance()
                if len(self.blocks) > 1:
                    give_back()
        finally:
            self._track.streams.close()


@dataclass
class _Track:
    """What the steps of a walk share."""

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

    def __init__(self, block: Block, number: int, track: _Track) -> None:
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
        if self._track.current is None or not self.is_edited:
            return self.original
        return self._graph(self._track.current, self.current_nodes)

    @property
    def current_nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of the edited graph that stand for the block now.

        Raises:
            PassError: An edit removed a value at a cut.
        """
        current = self._track.current
        if current is None:
            return self.block.nodes
        outputs = (*self._kept, *self.block.results)
        nodes = slice_between(current.ir.graph, self._track.streams.original, outputs)
        if nodes is None:
            raise PassError(
                f"an edit removed one of the values {', '.join(outputs)}, which later blocks read",
                where=f"block {self.block.name!r}",
                cure="this is a bug of the pass; please report it with the recipe",
            )
        return nodes

    @property
    def is_edited(self) -> bool:
        """Whether the block's nodes or weights are others in the edited graph."""
        if self._track.current is None:
            return False
        return _content(self.block.nodes) != _content(self.current_nodes)

    def batches(self) -> Iterator[WalkBatch]:
        """The rows at the block's inputs; may be asked for several times."""
        names = self.original.input_names
        current = self.current.input_names if self.is_edited else names
        return self._track.streams.feeds(self._track.rows, names, current)

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
        names = _unseen(original, self.block.nodes, track.seen)
        names_current = _unseen(current, self.current_nodes, track.seen_current)
        first, second = self.original, None
        if streams.current is not None or names_current or self.is_edited:
            second = self.current
        kept = self._kept
        finished = [n for n, last in track.last_reader.items() if last == self.number]
        made = streams.new(kept)
        made_current = None if second is None else streams.new(kept)
        read_by_second = () if second is None else second.input_names

        def through(batch: WalkBatch) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
            with torch.no_grad():  # it holds for one thread
                values = _run(first, batch.original, batch.source, original, names, kept)
                if second is None:
                    return values, None
                return values, _run(
                    second, batch.current, batch.source, current, names_current, kept
                )

        done = 0
        batches = streams.feeds(track.rows, first.input_names, read_by_second)
        for batch, (values, values_current) in in_order(
            through, batches, track.threads, partial(torch.set_num_threads, 1)
        ):
            _keep(values, batch, made)
            if values_current is not None and made_current is not None:
                _keep(values_current, batch, made_current)
            streams.drop(finished, batch.place)
            done += batch.source.rows
            track.report(self.number, done)
        streams.pass_on(made, made_current, finished)
        self._original = None  # its weights go

    @property
    def _kept(self) -> list[str]:
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


def _inlined(model: Model) -> Model:
    if not model.ir.functions:
        return model
    model = model.clone()
    InlinePass()(model.ir)
    return model


def _cut_in_both(original: Model, current: Model, blocks: Sequence[Block]) -> list[Block]:
    """Join blocks where the second graph does not have the values at the cut."""
    there = {value.name for node in current.ir.graph for value in node.outputs}
    joined: list[Block] = []
    for block in blocks:
        if joined and not there.issuperset(block.inputs):
            joined[-1] = join(original, joined[-1], block)
        else:
            joined.append(block)
    return joined


def _content(nodes: Sequence[ir.Node]) -> list[tuple[bytes, list[int]]]:
    """What a slice computes, weights by identity: they are replaced, never changed."""
    return [
        (
            ir.to_proto(node).SerializeToString(deterministic=True),
            [id(value.const_value) for value in node.inputs if value is not None],
        )
        for node in nodes
    ]


def _count(data: CalibrationSet, split: Split, rows: int | None, shard: tuple[int, int]) -> int:
    """Rows that pass, about."""
    there = data.validation_rows if split == "validation" else data.calibration_rows
    return -(-(there if rows is None else min(rows, there)) // shard[1])


def _report(progress: Progress, label: str, rows: int, blocks: int, number: int, done: int) -> None:
    progress(label, min(number * rows + done, blocks * rows), blocks * rows)
