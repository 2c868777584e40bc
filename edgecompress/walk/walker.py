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

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from edgecompress.data.calibration import CalibrationSet, Split
from edgecompress.memory import give_back
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.walk.blocks import Block, find_blocks, join, whole
from edgecompress.walk.scratch import Budget
from edgecompress.walk.step import Track, WalkStep, Watch
from edgecompress.walk.streams import Rows, Streams, WalkBatch

__all__ = ["Walk", "WalkBatch", "WalkStep", "Watch"]

# One part of the memory is for activations that are kept; the rest for the weights of a block and
# for what one batch needs while it passes through them.
_KEPT_SHARE = 4


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
        original = original.inlined()
        if blocks is None:
            small = memory is None or original.weight_bytes * 2 <= memory
            blocks = [whole(original)] if small else find_blocks(original)
        if current is not None:
            current = current.inlined()
            blocks = _cut_in_both(original, current, blocks)
        self.blocks = tuple(blocks)
        self.budget = Budget(None if memory is None else memory // _KEPT_SHARE, scratch)
        self._track = Track(
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
                if self.budget.limit is not None:
                    give_back()
        finally:
            self._track.streams.close()


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


def _count(data: CalibrationSet, split: Split, rows: int | None, shard: tuple[int, int]) -> int:
    """Rows that pass, about."""
    there = data.validation_rows if split == "validation" else data.calibration_rows
    return -(-(there if rows is None else min(rows, there)) // shard[1])


def _report(progress: Progress, label: str, rows: int, blocks: int, number: int, done: int) -> None:
    progress(label, min(number * rows + done, blocks * rows), blocks * rows)
