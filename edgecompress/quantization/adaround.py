"""AdaRound: which weights go up and which go down is learned, layer by layer.

Nagel et al., ICML 2020, arXiv 2004.10568, with the asymmetric reconstruction of section 3.3: a
layer's input is what arrives in the quantized graph, its goal is the float graph's output, past a
Relu or Clip right behind it. Output channels do not depend on one another, so they are optimized in
chunks on several threads. Each channel keeps its nearest integers where they do better on rows that
it did not learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from edgecompress.numerics.adaround import Schedule, SoftRounding, indecision
from edgecompress.numerics.one_thread import alone
from edgecompress.parallel.threads import in_order
from edgecompress.quantization.candidate import Candidate, User, finite
from edgecompress.quantization.rounded_layer import LayerRounding, RoundingRun
from edgecompress.walk.step import WalkStep
from edgecompress.walk.streams import WalkBatch

__all__ = ["round_by_adaround"]

_ITERATIONS = 250
_LEARNING_RATE = 0.02
_INDECISION = 0.3  # weight of the regulariser, where the error of nearest integers is 1
# Places, by the columns of a weight: in each iteration, and that are kept of a layer.
_PLACES_PER_COLUMN, _PLACES = 4, (128, 512)
_KEPT_PER_COLUMN, _KEPT = 32, (2048, 8192)
_MOST_ELEMENTS = 2**25  # of the columns that are kept of a layer: 128 MiB
_CHUNK_ROWS = 128
_CHUNK_ELEMENTS = 2**15
_HELD_OUT = 4  # one in so many batches


@dataclass(frozen=True)
class _Seen:
    """Columns and goals of a layer: [groups, places, columns] and [groups, places, rows]."""

    columns: Tensor
    goals: Tensor

    def part(self, groups: slice, rows: slice) -> _Seen:
        return _Seen(self.columns[groups], self.goals[groups, :, rows])

    def places(self, chosen: slice | Tensor) -> _Seen:
        return _Seen(self.columns[:, chosen], self.goals[:, chosen])


@dataclass(frozen=True)
class _Chunk:
    """Some output channels of a layer: an optimization of its own.

    Attributes:
        mean: Of the columns: [groups, columns].
    """

    number: int
    item: Candidate
    user: User
    groups: slice
    rows: slice
    mean: Tensor
    fit: _Seen
    held: _Seen

    def error(self, weight: Tensor, seen: _Seen) -> Tensor:
        """Mean squared error of each output channel: [groups, rows]."""
        y = torch.matmul(seen.columns, weight.transpose(1, 2))
        if self.user.bias is not None:
            bias = self.item.form.per_row(self.user.bias.to(y.device))
            y = y + bias[self.groups, None, self.rows]
        if self.user.stored_bias is not None:  # which takes up what shifts the mean
            change = weight - self.of(self.item.weight)
            y = y - (change @ self.mean[..., None]).transpose(1, 2)
        low, high = self.user.bounds
        if low is not None or high is not None:
            y = torch.clamp(y, low, high)
        return (y - seen.goals).square().mean(1)

    def of(self, tensor: Tensor) -> Tensor:
        """The part of something of the whole layer."""
        return tensor[self.groups, self.rows]


def round_by_adaround(
    step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
) -> list[LayerRounding]:
    """Round weights none of which feeds another.

    Raises:
        PassError: Activations are not finite.
    """
    notes = []
    own = []
    for item in candidates:
        if len(item.users) == 1:
            own.append(item)
            continue
        reason = "its weight is used by several layers"
        layers = [user.layer for user in item.users]
        notes += [LayerRounding(x.output, x.op, "nearest", reason=reason) for x in layers]
    for item, (fit, held) in zip(own, _collect(step, own, run), strict=True):
        chunks = _chunks(item, fit, held)
        integers, nearest, error = item.nearest.clone(), 0.0, 0.0
        for chunk, found in in_order(partial(_round, run=run), chunks, run.threads, alone):
            integers[chunk.groups, chunk.rows] = found[0]
            nearest, error = nearest + found[1], error + found[2]
        item.store(run.model, integers, [fit.columns.mean(1)])
        power = float(held.goals.double().square().mean(1).sum()) or 1.0
        layer, moved = item.users[0].layer, item.moved(integers)
        errors = nearest / power, error / power
        notes.append(LayerRounding(layer.output, layer.op, "adaround", *errors, moved))
    return notes


def _collect(
    step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
) -> list[tuple[_Seen, _Seen]]:
    """What each layer learns from, and what it is held against."""
    graph, original = step.current, step.original
    users = [item.users[0] for item in candidates]
    names, targets = {user.input for user in users}, {user.target for user in users}
    per_row = [_places_per_row(item, run.rows) for item in candidates]

    def look(batch: WalkBatch) -> list[_Seen]:
        values: dict[str, Tensor] = {}
        goals: dict[str, Tensor] = {}
        found = []
        with torch.no_grad():  # it holds for one thread
            graph(batch.current, observe=values.__setitem__, watch=names, outputs=())
            original(batch.original, observe=goals.__setitem__, watch=targets, outputs=())
            for item, user, most in zip(candidates, users, per_row, strict=True):
                generator = run.generator(batch.place)
                x, mask, form = values[user.input], batch.source.mask, item.form
                places, _ = form.places(x, mask, most * batch.source.rows, generator)
                columns = form.columns(x, places).contiguous()
                goal = form.outputs(goals[user.target], places).contiguous()
                layer = user.layer.output
                found.append(_Seen(finite(columns, layer), finite(goal, layer)))
        return found

    batches = [found for _, found in in_order(look, step.batches(), run.threads, alone)]
    return [_split([batch[i] for batch in batches]) for i in range(len(candidates))]


def _places_per_row(item: Candidate, rows: int) -> int:
    groups, _, columns = item.weight.shape
    wanted = min(_within(_KEPT_PER_COLUMN * columns, _KEPT), _MOST_ELEMENTS // (groups * columns))
    return max(1, wanted // max(rows, 1))


def _within(number: int, ends: tuple[int, int]) -> int:
    return max(ends[0], min(number, ends[1]))


def _split(batches: list[_Seen]) -> tuple[_Seen, _Seen]:
    """Every fourth batch is held out; of fewer batches, every fourth place."""
    held = batches[_HELD_OUT - 1 :: _HELD_OUT]
    if held:
        return _joined([b for b in batches if not any(b is h for h in held)]), _joined(held)
    every = _joined(batches)
    count = every.columns.shape[1]
    if count < _HELD_OUT:
        return every, every
    out = torch.arange(count, device=every.columns.device) % _HELD_OUT == _HELD_OUT - 1
    return every.places(~out), every.places(out)


def _joined(parts: list[_Seen]) -> _Seen:
    columns = torch.cat([part.columns for part in parts], 1)
    return _Seen(columns, torch.cat([part.goals for part in parts], 1))


def _chunks(item: Candidate, fit: _Seen, held: _Seen) -> list[_Chunk]:
    groups, rows, columns = item.weight.shape
    high = min(rows, _CHUNK_ROWS)
    wide = max(1, _CHUNK_ELEMENTS // (high * columns))
    parts = product(
        (slice(i, i + wide) for i in range(0, groups, wide)),
        (slice(i, i + high) for i in range(0, rows, high)),
    )
    mean = fit.columns.mean(1)
    return [
        _Chunk(
            number=number,
            item=item,
            user=item.users[0],
            groups=part,
            rows=these,
            mean=mean[part],
            fit=fit.part(part, these),
            held=held.part(part, these),
        )
        for number, (part, these) in enumerate(parts)
    ]


def _round(chunk: _Chunk, *, run: RoundingRun) -> tuple[Tensor, float, float]:
    """Integers of some channels, and the errors of the nearest ones and of these."""
    item = chunk.item
    scale, nearest = chunk.of(item.scale)[..., None], chunk.of(item.nearest)
    weight = chunk.of(item.weight)
    rounding = SoftRounding(weight, scale, item.integers)
    with torch.no_grad():
        noise = chunk.error(nearest * scale, chunk.fit)
        noise = noise.clamp(min=float(noise.mean()) * 1e-6 + torch.finfo(torch.float32).tiny)
    generator = run.generator(chunk.number)
    optimizer = torch.optim.Adam([rounding.v], lr=_LEARNING_RATE)
    schedule = Schedule(run.iterations or _ITERATIONS)
    _, count, columns = chunk.fit.columns.shape
    places = _within(_PLACES_PER_COLUMN * columns, _PLACES)
    for number in range(schedule.steps):
        drawn = chunk.fit
        if count > places:
            drawn = drawn.places(torch.randint(count, (places,), generator=generator))
        share = rounding.share()
        loss = (chunk.error(rounding.soft(share), drawn) / noise).mean()
        exponent = schedule.exponent(number)
        if exponent is not None:
            loss = loss + _INDECISION * indecision(share, exponent)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        learned = rounding.hard()
        before = chunk.error(nearest * scale, chunk.held)
        after = chunk.error(learned * scale, chunk.held)
    better = after < before
    chosen = torch.where(better[..., None], learned, nearest)
    return chosen, float(before.sum()), float(torch.where(better, after, before).sum())
