"""How many ranks each of many matrices gets, under one budget.

A matrix climbs a ladder of :class:`Rungs`: ranks, with what they cost. All rules take steps on the
ladders in some order until the next one would go past the budget. So they never exceed it, come as
close to it as one step, and give no matrix less where the budget is larger.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Rungs", "by_loss", "even", "rungs", "zero_sum"]


@dataclass(frozen=True)
class Rungs:
    """Ranks that a matrix may have.

    Attributes:
        ranks: Ascending; the last one is the full rank.
        costs: Of each, not descending. Ranks that save nothing cost what the dense matrix does, and
            stand for it.
    """

    ranks: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def dense(self) -> float:
        """Cost of the dense matrix."""
        return self.costs[-1]

    def is_dense(self, rung: int) -> bool:
        """Whether a rung stands for the dense matrix."""
        return self.costs[rung] >= self.dense

    @property
    def ascents(self) -> list[int]:
        """The last rung of each cost: the others keep less for the same."""
        last = {cost: rung for rung, cost in enumerate(self.costs)}
        return sorted(last.values())


def rungs(full: int, per_rank: float, dense: float, *, least: int = 1, step: int = 1) -> Rungs:
    """The ladder of a matrix whose factors cost the same for each rank.

    Args:
        full: Full rank.
        per_rank: Cost of one rank.
        dense: Cost of the matrix itself.
        least: Lowest rank.
        step: Ranks are multiples of it, apart from ``least`` and ``full``.
    """
    between = range((least // step + 1) * step, full, step)
    ranks = (*((least,) if least < full else ()), *between, full)
    costs = [min(rank * per_rank, dense) for rank in ranks]
    return Rungs(ranks, (*costs[:-1], dense))


class _Step(NamedTuple):
    """A step up; steps of one ladder come in their order."""

    order: tuple[float, ...]
    ladder: int
    rung: int


def even(ladders: Sequence[Rungs], budget: float) -> list[int]:
    """The same share of the dense cost for all, as near as the rungs allow.

    Args:
        ladders: Of the matrices.
        budget: Of all costs together.

    Returns:
        A rung of each ladder.

    Raises:
        ValueError: The lowest rungs cost more than the budget.
    """
    steps = (
        _Step((ladder.costs[rung] / ladder.dense, ladder.dense), i, rung)
        for i, ladder in enumerate(ladders)
        for rung in ladder.ascents
    )
    return _climb(ladders, sorted(steps), budget)


def by_loss(
    ladders: Sequence[Rungs], losses: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """The least sum of losses.

    Steps are taken by the loss that they save for their cost, along the lower convex hull of each
    ladder: whatever else costs as much as what the hulls give loses at least as much (Everett 1963,
    generalized Lagrange multipliers).

    Args:
        ladders: Of the matrices.
        losses: By rung; should not grow with the rank, and what does counts as level.
        budget: Of all costs together.

    Returns:
        A rung of each ladder.

    Raises:
        ValueError: The lowest rungs cost more than the budget.
    """
    steps: list[_Step] = []
    for i, (ladder, given) in enumerate(zip(ladders, losses, strict=True)):
        falling = list(given)
        for rung in reversed(range(len(falling) - 1)):
            falling[rung] = max(falling[rung], falling[rung + 1])
        hull = _hull(ladder, falling)
        for low, high in itertools.pairwise(hull):
            cost = ladder.costs[high] - ladder.costs[low]
            slope = (falling[high] - falling[low]) / cost
            between = (rung for rung in ladder.ascents if low < rung <= high)
            steps += (_Step((slope, cost), i, rung) for rung in between)
    return _climb(ladders, sorted(steps), budget)


def zero_sum(
    ladders: Sequence[Rungs], changes: Sequence[Sequence[float]], budget: float
) -> list[int]:
    """Components are dropped so that their predicted changes of the loss cancel (ZS-SVD).

    Of all matrices' last components, those that lower the loss are on one heap, those that raise it
    on another. The smallest is taken from the heap that drives the sum of all changes so far to
    zero, until the budget is met (arXiv 2602.02848); here the smallest for what a rank costs, since
    matrices differ in size. A matrix that then costs as much as before stays dense.

    Args:
        ladders: Of the matrices.
        changes: By rung: what dropping the components between the rung below and this one changes
            the loss by. The first is not used.
        budget: Of all costs together.

    Returns:
        A rung of each ladder.

    Raises:
        ValueError: The lowest rungs cost more than the budget.
    """
    _check(ladders, budget)
    at = [len(ladder.ranks) - 1 for ladder in ladders]
    heaps: tuple[list[tuple[float, float, int]], ...] = ([], [])

    def offer(i: int) -> None:
        if at[i] > 0:
            ladder, change = ladders[i], changes[i][at[i]]
            below, here = ladder.ranks[at[i] - 1 : at[i] + 1]
            cost = ladder.dense * (here - below) / ladder.ranks[-1]
            heapq.heappush(heaps[change < 0], (abs(change) / cost, ladder.dense, i))

    for i in range(len(ladders)):
        offer(i)
    total, moved = _total(ladders, at), 0.0
    while total > budget:
        raising, lowering = heaps
        heap = lowering if (moved > 0 and lowering) or not raising else raising
        _, _, i = heapq.heappop(heap)
        moved += changes[i][at[i]]
        total -= ladders[i].costs[at[i]] - ladders[i].costs[at[i] - 1]
        at[i] -= 1
        offer(i)
    return at


def _climb(ladders: Sequence[Rungs], steps: Iterable[_Step], budget: float) -> list[int]:
    """Take steps in their order, up to the first one that the budget does not allow."""
    _check(ladders, budget)
    at = [
        max(r for r, cost in enumerate(ladder.costs) if cost == ladder.costs[0])
        for ladder in ladders
    ]
    total = _total(ladders, at)
    for _, i, rung in steps:
        if rung <= at[i]:
            continue
        total += ladders[i].costs[rung] - ladders[i].costs[at[i]]
        if total > budget:
            break
        at[i] = rung
    return at


def _check(ladders: Sequence[Rungs], budget: float) -> None:
    least = sum(ladder.costs[0] for ladder in ladders)
    if least > budget:
        raise ValueError(f"expected a budget of {least:g} at least, got {budget:g}")


def _total(ladders: Sequence[Rungs], at: Sequence[int]) -> float:
    return math.fsum(ladder.costs[rung] for ladder, rung in zip(ladders, at, strict=True))


def _hull(ladder: Rungs, losses: Sequence[float]) -> list[int]:
    """Rungs on the lower convex hull of loss over cost, from the lowest to the dense one."""
    hull: list[int] = []
    for rung in ladder.ascents:
        while len(hull) > 1 and not _below(ladder, losses, hull[-2], hull[-1], rung):
            hull.pop()
        hull.append(rung)
    return hull


def _below(ladder: Rungs, losses: Sequence[float], low: int, middle: int, high: int) -> bool:
    """Whether the middle one of three rungs is below the line between the others."""
    first = (losses[middle] - losses[low]) * (ladder.costs[high] - ladder.costs[middle])
    second = (losses[high] - losses[middle]) * (ladder.costs[middle] - ladder.costs[low])
    return first < second
