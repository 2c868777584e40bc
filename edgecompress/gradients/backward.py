"""Gradients of a loss at a model's outputs, for values inside it, block by block from the end.

Forward the rows go through as in any walk, and what each block reads is kept (past a budget in a
scratch file). Then the blocks are taken from the last to the first: each is run once more, with
gradients, and hands on those at its inputs. So memory is that of one block, as forward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet, Split
from edgecompress.gradients.output_loss import OutputLoss, probe
from edgecompress.model import Model
from edgecompress.parallel.threads import in_order
from edgecompress.progress import Progress, silent
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.blocks import Block
from edgecompress.walk.opaque import OpaqueGraph
from edgecompress.walk.scratch import Budget, Store
from edgecompress.walk.streams import WalkBatch
from edgecompress.walk.walker import Walk

__all__ = ["BackwardStep", "See", "backward"]

See = Callable[[Batch, str, Tensor | None, Mapping[str, Tensor]], None]
"""Told the batch, the name of a value, its gradient (None where the losses do not depend on it) and
the values that are kept, by name. Called from several threads."""

_KEPT_SHARE = 4
_NOISE = 1e-2  # of the values' own size: small enough to be linear, far above rounding


@dataclass
class _Track:
    model: Model
    losses: Sequence[OutputLoss]
    seed: int
    threads: int
    device: str
    budget: Budget
    report: Callable[[int, int], None]
    gradients: dict[str, Store] = field(default_factory=dict)


@dataclass
class BackwardStep:
    """One block on the way back, with its rows and the gradients behind it.

    Attributes:
        block: In the model.
        number: Its place in the walk; the last block comes first.
    """

    block: Block
    number: int
    _batches: Callable[[], Iterator[WalkBatch]]
    _track: _Track

    def advance(self, wanted: Collection[str], kept: Collection[str], see: See) -> None:
        """Take the gradients through the block.

        Args:
            wanted: Values of the block to show with their gradients.
            kept: Values to have at hand then; the wanted ones are, too.
            see: What they are shown to; once for each wanted value and batch.
        """
        track = self._track
        graph = _graph(track.model, self.block, track.device)
        made = {value.name for node in self.block.nodes for value in node.outputs}
        behind = [name for name in self.block.outputs if name in track.gradients]
        ends = [loss for loss in track.losses if loss.value in made]
        work = _Sweep(graph, self.block, behind, ends, set(wanted) & made, set(kept), see)
        done = 0
        run = partial(_run, work, track)
        prepare = partial(torch.set_num_threads, 1)
        for batch, gradients in in_order(run, self._batches(), track.threads, prepare):
            for name, gradient in gradients.items():
                _add(track, name, batch.place, gradient)
            for name in behind:
                track.gradients[name].drop(batch.place)
            done += batch.source.rows
            track.report(self.number, done)


def backward(
    model: Model,
    data: CalibrationSet,
    losses: Sequence[OutputLoss],
    blocks: Sequence[Block],
    *,
    split: Split = "validation",
    rows: int | None = None,
    batch_size: int | None = None,
    threads: int = 1,
    seed: int = 0,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
    label: str = "gradients",
) -> Iterator[BackwardStep]:
    """Steps from the last block to the first; each must be advanced before the next is asked for.

    Where torch cannot run a block, noise is sent through it, and its inputs get a random gradient
    that makes the loss of a change as large as that of noise of the same relative power.

    Args:
        model: The graph, inlined.
        data: Where the rows come from.
        losses: At the outputs.
        blocks: Cuts of ``model``, as :func:`edgecompress.walk.blocks.find_blocks` makes them.
        split: Which rows.
        rows: About so many of them.
        batch_size: Rows per batch.
        threads: Batches on their way at once, each computed on one thread.
        seed: Of the random signs.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told how far the work is.
        label: What it is called there.
    """
    count = data.validation_rows if split == "validation" else data.calibration_rows
    count = count if rows is None else min(rows, count)

    def report(done: int) -> None:
        progress(label, min(done, 2 * len(blocks) * count), 2 * len(blocks) * count)

    track = _Track(
        model=model,
        losses=losses,
        seed=seed,
        threads=threads,
        device=device,
        budget=Budget(None if memory is None else memory // _KEPT_SHARE, scratch),
        report=lambda number, done: report((2 * len(blocks) - 1 - number) * count + done),
    )
    walk = Walk(
        model,
        data,
        blocks=blocks,
        split=split,
        rows=rows,
        batch_size=batch_size,
        threads=threads,
        device=device,
        memory=memory,
        scratch=scratch,
        progress=lambda _, done, total: report(done),
    )
    visited: list[_Visited] = []
    try:
        for step in walk:
            if step.number == len(blocks) - 1:
                yield BackwardStep(step.block, step.number, step.batches, track)
                break
            visited.append(_Visited(track.budget))
            visited[-1].keep(step.batches())
            step.advance()
        while visited:
            seen = visited[-1]
            number = len(visited) - 1
            yield BackwardStep(blocks[number], number, seen.batches, track)
            visited.pop().close()
    finally:
        for left in visited:
            left.close()
        for store in track.gradients.values():
            store.close()


class _Visited:
    """What a block has read of each batch."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._stores: dict[str, Store] = {}
        self._batches: list[tuple[WalkBatch, tuple[str, ...]]] = []

    def keep(self, batches: Iterator[WalkBatch]) -> None:
        for batch in batches:
            for name, value in batch.original.items():
                self._stores.setdefault(name, Store(self._budget)).put(batch.place, value)
            bare = WalkBatch(batch.place, batch.source, {}, {})
            self._batches.append((bare, tuple(batch.original)))

    def batches(self) -> Iterator[WalkBatch]:
        for batch, names in self._batches:
            feeds = {name: self._stores[name].get(batch.place) for name in names}
            yield WalkBatch(batch.place, batch.source, feeds, feeds)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


def _graph(model: Model, block: Block, device: str) -> TorchGraph | OpaqueGraph:
    if block.opaque:
        return OpaqueGraph(model, block.nodes)
    return to_torch(model, block.nodes, device=device).requires_grad_(False)


@dataclass(frozen=True)
class _Sweep:
    """What is to be done with each batch of a block."""

    graph: TorchGraph | OpaqueGraph
    block: Block
    behind: list[str]
    ends: list[OutputLoss]
    wanted: set[str]
    kept: set[str]
    see: See


def _run(work: _Sweep, track: _Track, batch: WalkBatch) -> dict[str, Tensor]:
    """Gradients at the block's inputs, for one batch."""
    arriving = {name: track.gradients[name].get(batch.place) for name in work.behind}
    generator = torch.Generator().manual_seed((track.seed << 32) + batch.place)
    if isinstance(work.graph, OpaqueGraph):
        return _through_opaque(work, work.graph, arriving, batch, generator)
    feeds = dict(batch.original)
    cut = [n for n in work.block.inputs if n in feeds and feeds[n].is_floating_point()]
    for name in cut:
        feeds[name] = feeds[name].detach().to(track.device).requires_grad_()
    values: dict[str, Tensor] = {}
    shown: set[str] = set()
    lock = threading.Lock()

    def show(name: str, gradient: Tensor) -> None:
        with lock, torch.no_grad():
            shown.add(name)
            work.see(batch.source, name, gradient.detach(), values)

    def observe(name: str, value: Tensor) -> None:
        values[name] = value.detach()
        if name in work.wanted and value.is_floating_point():
            if not value.requires_grad:
                value.requires_grad_()
            value.register_hook(partial(show, name))  # type: ignore[no-untyped-call]

    outputs = tuple(dict.fromkeys((*arriving, *(loss.value for loss in work.ends))))
    with torch.enable_grad():
        found = work.graph(feeds, observe=observe, watch=work.wanted | work.kept, outputs=outputs)
        pairs = list(_seeded(work, found, arriving, batch.source, generator))
        if pairs:
            torch.autograd.backward([v for v, _ in pairs], [g for _, g in pairs])
    with torch.no_grad():
        for name in sorted(work.wanted - shown):
            work.see(batch.source, name, None, values)
    gradients = {name: feeds[name].grad for name in cut}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _seeded(
    work: _Sweep,
    found: Mapping[str, Tensor],
    arriving: Mapping[str, Tensor],
    source: Batch,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Values that gradients start from, with these."""
    for name, gradient in arriving.items():
        if found[name].requires_grad:
            yield found[name], gradient.to(found[name])
    for loss in work.ends:
        value = found[loss.value]
        drawn = probe(loss, value, source, generator)
        if value.requires_grad:
            yield value, drawn.to(value)


def _through_opaque(
    work: _Sweep,
    graph: OpaqueGraph,
    arriving: Mapping[str, Tensor],
    batch: WalkBatch,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}

    def observe(name: str, value: Tensor) -> None:
        values[name] = value

    outputs = tuple(dict.fromkeys((*arriving, *(loss.value for loss in work.ends))))
    found = graph(batch.original, observe=observe, watch=work.wanted | work.kept, outputs=outputs)
    for name in sorted(work.wanted):
        work.see(batch.source, name, None, values)
    seeds = dict(arriving)
    for loss in work.ends:
        drawn = probe(loss, found[loss.value], batch.source, generator)
        seeds[loss.value] = seeds.get(loss.value, 0) + drawn
    feeds = batch.original
    moved = [n for n in work.block.inputs if n in feeds and feeds[n].is_floating_point()]
    if not moved or not seeds:
        return {}
    noisy = dict(feeds)
    for name in moved:
        size = feeds[name].float().square().mean().sqrt() * _NOISE
        noisy[name] = feeds[name] + torch.randn(feeds[name].shape, generator=generator) * size
    there = graph(noisy, outputs=outputs)
    change = sum(
        (((there[name] - found[name]).double() * seed).sum() for name, seed in seeds.items()),
        start=torch.zeros((), dtype=torch.float64),
    )
    gain = float(change.square()) / _NOISE**2 / len(moved)
    return {name: _random_gradient(feeds[name], gain, generator) for name in moved}


def _random_gradient(value: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    """A gradient whose product with a change, squared, is ``gain`` times its relative power."""
    power = float(value.double().square().sum())
    signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
    return signs * ((gain / power) ** 0.5 if power > 0 else 0.0)


def _add(track: _Track, name: str, place: int, gradient: Tensor) -> None:
    """Sum up what several readers of a value send back."""
    store = track.gradients.setdefault(name, Store(track.budget))
    try:
        before = store.get(place)
    except KeyError:
        store.put(place, gradient)
        return
    store.drop(place)
    store.put(place, before + gradient)
