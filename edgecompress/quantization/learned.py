"""Rounding learned per block: all weights of a block together, against the float block's output.

As AdaRound, but what counts is what comes out of the block, as in BRECQ (Li et al., ICLR 2021,
arXiv 2102.05426). Q/DQ pairs of activations stay where they are; gradients pass straight through
them. Rows that are held out are watched: the best integers seen are kept, the nearest ones where
nothing is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from edgecompress.numerics.adaround import Schedule, SoftRounding, indecision
from edgecompress.numerics.one_thread import alone
from edgecompress.parallel.threads import in_order
from edgecompress.quantization.candidate import Candidate, finite
from edgecompress.quantization.layer_inputs import input_key, input_means
from edgecompress.quantization.rounded_layer import LayerRounding, RoundingRun
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.step import WalkStep

__all__ = ["round_by_learning"]

_ITERATIONS = 100
_BATCHES = 2  # in each iteration, computed side by side
_LEARNING_RATE = 0.02
_INDECISION = 0.3  # weight of the regulariser, where the error of nearest integers is 1
_HELD_OUT = 4  # one in so many batches
_LOOKS = 4  # at the rows held out

_Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Rows:
    """A batch at the inputs of the quantized block, and what the float block makes of it."""

    feeds: Mapping[str, Tensor]
    goals: Mapping[str, Tensor]


def round_by_learning(
    step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
) -> list[LayerRounding]:
    """Round all weights of a block.

    Raises:
        PassError: The block's outputs are not finite.
    """
    biases = (u.stored_bias[0] for item in candidates for u in item.users if u.stored_bias)
    fed = {*(item.dequantized for item in candidates), *biases}
    nodes = [node for node in step.current_nodes if node.outputs[0].name not in fed]
    if step.block.opaque or not isinstance(step.current, TorchGraph):
        return _left(candidates, "torch cannot run its block")
    module = to_torch(run.model, nodes, device=run.device)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    learning = _Learning(module, step, candidates, run)
    return learning.run()


class _Learning:
    def __init__(
        self, module: TorchGraph, step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
    ) -> None:
        self._module = module
        self._step = step
        self._items = candidates
        self._run = run
        self._rounding = [
            SoftRounding(item.weight, item.scale[..., None], item.integers) for item in candidates
        ]
        outputs = dict.fromkeys((*step.block.outputs, *step.block.results))
        self._outputs = [name for name in outputs if name in module.output_names]
        self._kept: list[_Rows] | None = list(self._read()) if run.keep else None
        self._power, self._noise = 1.0, 1.0
        means = input_means(step, candidates, run)
        self._means = {
            item.name: [means[input_key(item, user)] for user in item.users] for item in candidates
        }

    def run(self) -> list[LayerRounding]:
        items = self._items
        first = next(iter(self._rows()), None)
        if first is None or not first.goals:
            return _left(items, "its block has no output to learn from")
        best = [item.nearest for item in items]
        nearest = least = self._judge(best)
        self._noise = nearest or 1.0
        for learned in self._learn():
            error = self._judge(learned)
            if error < least:
                best, least = learned, error
        for item, integers in zip(items, best, strict=True):
            item.store(self._run.model, integers, self._means[item.name])
        return [
            LayerRounding(
                user.layer.output,
                user.layer.op,
                "learned",
                nearest / self._power,
                least / self._power,
                item.moved(integers),
            )
            for item, integers in zip(items, best, strict=True)
            for user in item.users
        ]

    def _learn(self) -> Iterator[list[Tensor]]:
        """Optimize; yields the integers decided for from time to time, and at the end."""
        schedule = Schedule(self._run.iterations or _ITERATIONS)
        looks = {schedule.steps * (i + 1) // _LOOKS - 1 for i in range(_LOOKS)}
        optimizer = torch.optim.Adam([r.v for r in self._rounding], lr=_LEARNING_RATE)
        batches = self._endless()
        for number in range(schedule.steps):
            shares = [rounding.share() for rounding in self._rounding]
            soft = [r.soft(share) for r, share in zip(self._rounding, shares, strict=True)]
            optimizer.zero_grad()
            exponent = schedule.exponent(number)
            if exponent is not None:
                count = sum(share.numel() for share in shares)
                parts = [indecision(s, exponent) * (s.numel() / count) for s in shares]
                undecided = _INDECISION * torch.stack(parts).sum()
                torch.autograd.backward(undecided, retain_graph=True)
            torch.autograd.backward(soft, self._gradients(soft, islice(batches, _BATCHES)))
            optimizer.step()
            if number in looks:
                yield [rounding.hard() for rounding in self._rounding]

    def _gradients(self, soft: Sequence[Tensor], batches: Iterable[_Rows]) -> list[Tensor]:
        """Of the block's error with respect to its weights, summed up in the batches' order."""

        def of_batch(rows: _Rows) -> tuple[Tensor, ...]:
            leaves = [weight.detach().requires_grad_() for weight in soft]
            error = self._error(self._fed(leaves), rows) / (self._noise * _BATCHES)
            return torch.autograd.grad(error, leaves)

        total: list[Tensor] = [torch.zeros_like(weight) for weight in soft]
        for _, found in in_order(of_batch, batches, self._run.threads, alone):
            for mine, summand in zip(total, found, strict=True):
                mine += summand
        return total

    def _judge(self, integers: Sequence[Tensor]) -> float:
        """Mean squared error of the block's outputs on the rows held out."""
        scales = [item.scale[..., None] for item in self._items]
        weights = self._fed([q * scale for q, scale in zip(integers, scales, strict=True)])

        def of_batch(rows: _Rows) -> tuple[float, float]:
            with torch.no_grad():  # it holds for one thread
                power = sum(float(y.double().square().mean()) for y in rows.goals.values())
                return float(self._error(weights, rows)), power

        found = [f for _, f in in_order(of_batch, self._held(), self._run.threads, alone)]
        self._power = sum(power for _, power in found) / len(found) or 1.0
        return sum(error for error, _ in found) / len(found)

    def _error(self, weights: _Weights, rows: _Rows) -> Tensor:
        found = self._module({**rows.feeds, **weights}, outputs=self._outputs)
        parts = [(found[name] - goal).square().mean() for name, goal in rows.goals.items()]
        return torch.stack(parts).sum()

    def _fed(self, matrices: Sequence[Tensor]) -> dict[str, Tensor]:
        fed = {}
        for item, matrix in zip(self._items, matrices, strict=True):
            fed[item.dequantized] = item.form.as_stored(matrix)
            for user, mean in zip(item.users, self._means[item.name], strict=True):
                if user.stored_bias is not None and user.bias is not None:
                    fed[user.stored_bias[0]] = user.bias - item.shift(matrix, mean)
        return fed

    def _read(self) -> Iterator[_Rows]:
        original, layer = self._step.original, self._items[0].users[0].layer.output
        for batch in self._step.batches():
            with torch.no_grad():
                goals = original(batch.original, outputs=tuple(self._outputs))
            floats = {name: y for name, y in goals.items() if y.is_floating_point()}
            for values in floats.values():
                finite(values, layer)
            yield _Rows(batch.current, floats)

    def _rows(self) -> Iterable[_Rows]:
        return self._read() if self._kept is None else self._kept

    def _held(self) -> list[_Rows] | Iterator[_Rows]:
        """Every fourth batch; of fewer batches the last one."""
        held = list(islice(self._rows(), _HELD_OUT - 1, None, _HELD_OUT))
        return held or [*self._rows()][-1:]

    def _endless(self) -> Iterator[_Rows]:
        """The other batches, again and again; the only one where there are no others."""
        while True:
            passed = list[_Rows]()
            for number, rows in enumerate(self._rows()):
                if number % _HELD_OUT != _HELD_OUT - 1:
                    passed.append(rows)
            yield from passed


def _left(candidates: Iterable[Candidate], reason: str) -> list[LayerRounding]:
    layers = [user.layer for item in candidates for user in item.users]
    return [LayerRounding(layer.output, layer.op, "nearest", reason=reason) for layer in layers]
