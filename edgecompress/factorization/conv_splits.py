"""Which split of a convolution loses least at a given cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from edgecompress.factorization.conv_costs import places_of, split_cost
from edgecompress.factorization.parts import Layer, Pair, Split, SplitKind
from edgecompress.numerics.conv_factors import (
    ConvMoments,
    Factors,
    Unfolded,
    composed,
    conv_weights,
)
from edgecompress.numerics.low_rank import Gram, LowRank, Problem

__all__ = ["CONV_KINDS", "best_split", "split_cost"]

Count = Literal["parameters", "macs"]

CONV_KINDS: tuple[SplitKind, ...] = ("output", "spatial", "tucker")
"""What a convolution can be split into."""

# Ranks of a Tucker split's basis that are tried, evenly spread over those that fit.
_TRIED = 8
# Fitting lowers what a start loses by a quarter or less: those that lose far more than the best are
# out, and so are all but the best few.
_HOPEFUL, _FITTED = 1.5, 3
_SWEEPS, _STEPS = 6, 2
# Multiply-adds of all fits of a layer together, about: some seconds on one core.
_WORK = 5e10
# Columns of a weight (512 channels of 3 x 3) beyond which there is only what has a closed form.
_LARGEST = 4608


def best_split(
    layer: Layer,
    weight: Tensor,
    target: Tensor | None,
    gram: Gram,
    power: Tensor | None,
    most: float,
    *,
    count: Count,
    kinds: Sequence[SplitKind] = CONV_KINDS,
    multiple: int = 1,
    weight_only: bool = False,
) -> Split | str:
    """The split of a convolution that loses least of those that cost no more than allowed.

    Args:
        layer: A convolution.
        weight: [groups, rows, columns].
        target: [groups, rows, columns], mean of ``y b^T`` for wanted outputs y and columns b; None
            where the weight's own outputs are wanted.
        gram: Of the columns. What damps and lifts it counts as moments of columns, too.
        power: [groups], mean of ``|y|^2``; None for the part of it that columns can tell.
        most: Parameters, or multiply-accumulates for one row.
        count: Which of the two.
        kinds: To choose from, of :data:`CONV_KINDS`. Only ``output`` is for several groups, or for
            weights of more columns than 512 channels of 3 x 3 have.
        multiple: Of what ranks are to be, where that leaves any.
        weight_only: Fit and choose by distances of weights instead of outputs, for comparison. The
            error is that of the outputs all the same.

    Returns:
        The split, without a shift of the bias; or why there is none.
    """
    weight = weight.double()
    problem = Problem(target, gram, power, weight if target is None else None)
    judged = problem
    if weight_only:
        blank = Gram.identity(layer.groups, layer.columns, weight.device)
        judged = Problem(None, blank, None, weight)
    search = _Search(layer, weight, judged, most, count, multiple)
    starts = search.starts(kinds)
    if not starts:
        return search.reason(kinds)
    kind, ranks, weights = search.fitted(starts)
    product = composed([tensor.double() for tensor in weights], layer.groups)
    return Split(kind, ranks, weights, error=_relative_error(problem, product))


@dataclass(frozen=True)
class _Start:
    """A split that fits, as closed forms give it.

    Attributes:
        kind: Of which form.
        ranks: See :data:`Pair`.
        loss: What it loses.
        kept: Axes of the kernel that are kept for the rest; see :class:`Unfolded`.
        factors: What fitting starts from; None where there is nothing to fit.
    """

    kind: SplitKind
    ranks: Pair
    loss: float
    kept: tuple[int, ...] = ()
    factors: Factors | None = None


@dataclass(frozen=True)
class _Search:
    """What splits of one layer are judged by; see :func:`best_split`."""

    layer: Layer
    weight: Tensor
    problem: Problem
    most: float
    count: Count
    multiple: int

    def starts(self, kinds: Sequence[SplitKind]) -> list[_Start]:
        """One for each form that fits."""
        kernel = self.layer.kernel
        found: list[_Start] = []
        if "output" in kinds:
            found += self._output()
        if self.layer.groups == 1 and self.layer.columns <= _LARGEST:
            if "spatial" in kinds and len(kernel) == 2 and min(kernel) > 1:
                found += [*self._spatial(0), *self._spatial(1)]
            if "tucker" in kinds and max(kernel) > 1:
                found += self._tucker()
        return found

    def reason(self, kinds: Sequence[SplitKind]) -> str:
        """Why there is no start."""
        words = " or ".join(kinds)
        if "output" not in kinds and self.layer.columns > _LARGEST:
            return f"its {self.layer.columns:,} columns are too many to fit a split of kind {words}"
        what = {"parameters": "parameters", "macs": "multiply-accumulates"}[self.count]
        return (
            f"no split of kind {words} has at most {self.most:,.0f} {what} and saves parameters or "
            "multiply-accumulates"
        )

    def fitted(self, starts: Sequence[_Start]) -> tuple[SplitKind, Pair, tuple[Tensor, ...]]:
        """Kind, ranks and weights, float32, of the best split that the best starts lead to."""
        ahead = sorted(starts, key=lambda start: start.loss)
        hopeful = [start for start in ahead if start.loss <= _HOPEFUL * ahead[0].loss]
        sweeps = max(int(_WORK / ((_STEPS + 1) * self.layer.rows * self.layer.columns**2)), 1)
        chosen = hopeful[: min(_FITTED, sweeps)]
        each = min(sweeps // len(chosen), _SWEEPS)
        fitted = [self._improved(start, each) for start in chosen]
        best = min(fitted, key=lambda start: start.loss)
        if best.factors is None:
            return best.kind, best.ranks, self._output_weights(best.ranks[0])
        weights = conv_weights(best.factors, self.layer.kernel, best.kept)
        return best.kind, best.ranks, tuple(weight.float().contiguous() for weight in weights)

    def _improved(self, start: _Start, sweeps: int) -> _Start:
        if start.factors is None:
            return start
        factors = self._unfolded(start.kept).improve(start.factors, sweeps, _STEPS)
        return replace(start, loss=factors.loss, factors=factors)

    def _output(self) -> Iterator[_Start]:
        layer = self.layer
        limit = min(layer.rows, layer.columns)
        rank = self._most(lambda rank: split_cost(layer, "output", (rank,)), limit)
        if rank:
            yield _Start("output", (rank,), self._low_rank.error(rank))

    def _spatial(self, first: int) -> Iterator[_Start]:
        layer = self.layer
        limit = min(layer.form.shape[1] * layer.kernel[first], layer.rows * layer.kernel[1 - first])
        rank = self._most(lambda rank: split_cost(layer, "spatial", (rank,), first=first), limit)
        if rank:
            kept = (1 - first,)
            factors = self._unfolded(kept).start([(rank, layer.rows)])[0]
            yield _Start("spatial", (rank,), factors.loss, kept, factors)

    def _tucker(self) -> Iterator[_Start]:
        """The best of some pairs of ranks, and that without a last convolution."""
        layer, rows = self.layer, self.layer.rows
        pairs = self._tucker_pairs()
        whole = self._most(lambda rank: split_cost(layer, "tucker", (rank, rows)), self._thinnest)
        if whole:
            pairs.append((whole, rows))
        if not pairs:
            return
        kept = tuple(range(len(layer.kernel)))
        found = self._unfolded(kept).start(pairs)
        starts = [
            _Start("tucker", pair, factors.loss, kept, factors)
            for pair, factors in zip(pairs, found, strict=True)
        ]
        if whole:
            yield starts.pop()
        if starts:
            yield min(starts, key=lambda start: start.loss)

    def _tucker_pairs(self) -> list[tuple[int, int]]:
        """Ranks that cost what is allowed, of which the output's is below full."""
        layer, rows = self.layer, self.layer.rows
        if rows < 3:
            return []
        widest = self._most(lambda rank: split_cost(layer, "tucker", (rank, 1)), self._thinnest)
        tried = {self._rounded(widest * (i + 1) // _TRIED) for i in range(_TRIED)} - {0}
        pairs = []
        for rank in sorted(tried):
            cost = partial(self._tucker_cost, rank)
            outputs = self._most(cost, min(rows - 1, rank * math.prod(layer.kernel)))
            if outputs:
                pairs.append((rank, outputs))
        return pairs

    def _tucker_cost(self, inputs: int, outputs: int) -> tuple[int, float]:
        return split_cost(self.layer, "tucker", (inputs, outputs))

    @property
    def _thinnest(self) -> int:
        """Rank that a basis of input channels is below."""
        layer = self.layer
        return min(layer.form.shape[1] - 1, layer.rows * math.prod(layer.kernel))

    def _most(self, cost: Callable[[int], tuple[int, float]], limit: int) -> int:
        """The largest rank that is affordable and saves anything; 0 where none is.

        Args:
            cost: Of a rank; it grows by the same for each.
            limit: No rank is larger.
        """
        one, two = cost(1), cost(2)

        def reach(bound: float, which: int) -> int:
            if bound < one[which]:
                return 0
            return int((bound - one[which]) / (two[which] - one[which]) + 1 + 1e-9)

        dense = self.layer.parameters
        saves = reach(dense - 1, 0), reach((dense - 0.5) * places_of(self.layer), 1)
        affordable = reach(self.most, 1 if self.count == "macs" else 0)
        return self._rounded(min(limit, affordable, max(saves)))

    def _rounded(self, rank: int) -> int:
        return rank // self.multiple * self.multiple or rank

    @cached_property
    def _low_rank(self) -> LowRank:
        return LowRank(*self.problem)

    def _output_weights(self, rank: int) -> tuple[Tensor, ...]:
        left, right = self._low_rank.factors(rank)
        ones = (1,) * len(self.layer.kernel)
        depth = self.layer.form.shape[1:]
        return right.reshape(-1, *depth), left.reshape(-1, rank, *ones).contiguous()

    def _unfolded(self, kept: tuple[int, ...]) -> Unfolded:
        return Unfolded(self._moments, self.layer.form.shape, kept)

    @cached_property
    def _moments(self) -> ConvMoments:
        """Of a layer without groups, with what damps and lifts them."""
        weight, columns = self.weight[0], self.layer.columns
        eye = torch.eye(columns, dtype=torch.float64, device=weight.device)[None]
        gram = self.problem.gram.product(eye).add_(self.problem.gram.lifted(eye))[0]
        target, power = _wanted(self.problem)
        if self.problem.target is None:
            target = (weight @ gram)[None]
        return ConvMoments(weight, target[0], gram, power)


def _wanted(problem: Problem) -> tuple[Tensor, float]:
    """``E[y b^T]``, float64 [groups, rows, columns], and ``E|y|^2`` of all groups together."""
    target, gram, power, weight = problem
    if weight is not None:
        target = gram.times(weight)
    if target is None:
        raise ValueError("expected a target or a weight")
    target = target.double()
    if power is None:
        power = (gram.whitened(target).square() if weight is None else target * weight).sum()
    return target, float(power.double().sum())


def _relative_error(problem: Problem, product: Tensor) -> float:
    """``E|y - W' b|^2`` over ``E|y|^2`` of a weight W', [groups, rows, columns]."""
    target, power = _wanted(problem)
    seen = problem.gram.times(product)
    if problem.weight is None:  # such targets count what moments were lifted by, to be invertible
        seen = problem.gram.product(product) + problem.gram.lifted(product)
    lost = power - float((product * (2 * target - seen)).sum())
    return max(lost, 0.0) / power if power > 0 else 0.0
