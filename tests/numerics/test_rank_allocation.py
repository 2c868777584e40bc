"""Ranks under one budget: never exceeded, nearly used up, and of least loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgecompress.numerics.rank_allocation import Rungs, by_loss, even, rungs, zero_sum


@dataclass(frozen=True)
class Case:
    """Matrices, what dropping their components costs, and the share of their cost to keep."""

    ladders: list[Rungs]
    energies: list[list[float]]

    @property
    def dense(self) -> float:
        return sum(ladder.dense for ladder in self.ladders)

    @property
    def least(self) -> float:
        return sum(ladder.costs[0] for ladder in self.ladders)

    def losses(self) -> list[list[float]]:
        """By rung: the energies behind its rank."""
        return [
            [math.fsum(energies[rank:]) for rank in ladder.ranks]
            for ladder, energies in zip(self.ladders, self.energies, strict=True)
        ]

    def changes(self) -> list[list[float]]:
        """By rung: energies between the rung below and this one, every second one negative."""
        signed = [[e * (-1) ** i for i, e in enumerate(energies)] for energies in self.energies]
        return [
            [0.0, *(math.fsum(e[a:b]) for a, b in itertools.pairwise(ladder.ranks))]
            for ladder, e in zip(self.ladders, signed, strict=True)
        ]

    def cost(self, at: Sequence[int]) -> float:
        return sum(ladder.costs[rung] for ladder, rung in zip(self.ladders, at, strict=True))

    def loss(self, at: Sequence[int]) -> float:
        return sum(losses[rung] for losses, rung in zip(self.losses(), at, strict=True))


Rule = Callable[[Case, float], list[int]]
RULES: dict[str, Rule] = {
    "even": lambda case, budget: even(case.ladders, budget),
    "by_loss": lambda case, budget: by_loss(case.ladders, case.losses(), budget),
    "zero_sum": lambda case, budget: zero_sum(case.ladders, case.changes(), budget),
}


@st.composite
def cases(draw: st.DrawFn, most: int = 5, sides: int = 24) -> Case:
    ladders, energies = [], []
    for _ in range(draw(st.integers(1, most))):
        rows, columns = draw(st.integers(1, sides)), draw(st.integers(1, sides))
        full = min(rows, columns)
        least, step = draw(st.integers(1, max(full // 2, 1))), draw(st.sampled_from([1, 2, 4]))
        ladder = rungs(full, rows + columns, rows * columns, least=least, step=step)
        drawn = st.floats(1e-3, 1, allow_subnormal=False)
        values = draw(st.lists(drawn, min_size=full, max_size=full))
        ladders.append(ladder)
        energies.append(sorted(values, reverse=True))
    return Case(ladders, energies)


def budget_of(case: Case, share: float) -> float:
    return case.least + share * (case.dense - case.least)


def test_what_ranks_cost() -> None:
    # 12 x 6: factors cost 18 a rank, and break even at 4.
    ladder = rungs(6, 18, 72, least=1)
    assert ladder.ranks == (1, 2, 3, 4, 5, 6)
    assert ladder.costs == (18, 36, 54, 72, 72, 72)
    assert [ladder.is_dense(rung) for rung in range(6)] == [False] * 3 + [True] * 3
    assert rungs(6, 18, 72, least=1, step=4).ranks == (1, 4, 6)
    assert rungs(1, 3, 2).ranks == (1,)


@pytest.mark.parametrize("rule", RULES)
@given(cases(), st.floats(0, 1))
def test_the_budget_is_used_up_but_for_one_step(rule: str, case: Case, share: float) -> None:
    budget = budget_of(case, share)
    at = RULES[rule](case, budget)
    cost = case.cost(at)
    assert cost <= budget
    steps = [
        min(cost for cost in ladder.costs if cost > ladder.costs[rung]) - ladder.costs[rung]
        for ladder, rung in zip(case.ladders, at, strict=True)
        if not ladder.is_dense(rung)
    ]
    assert not steps or budget - cost < max(steps)


@pytest.mark.parametrize("rule", RULES)
@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_more_budget_takes_nothing_away(rule: str, case: Case, share: float, other: float) -> None:
    less, more = (RULES[rule](case, budget_of(case, each)) for each in sorted((share, other)))
    assert all(a <= b for a, b in zip(less, more, strict=True))


@pytest.mark.parametrize("rule", RULES)
@given(cases(), st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_order_of_matrices_is_no_matter(
    rule: str, case: Case, share: float, random: object
) -> None:
    # Of matrices of the same dense cost the first one may take what only one can have.
    sizes = [ladder.dense for ladder in case.ladders]
    assume(len(set(sizes)) == len(sizes))
    everything = [e for energies in case.energies for e in energies]
    assume(len(set(everything)) == len(everything))
    order = list(range(len(case.ladders)))
    random.shuffle(order)  # type: ignore[attr-defined]
    turned = Case([case.ladders[i] for i in order], [case.energies[i] for i in order])
    budget = budget_of(case, share)
    first, second = RULES[rule](case, budget), RULES[rule](turned, budget)
    assert [first[i] for i in order] == second


@given(cases(), st.floats(0, 1))
def test_shares_are_even(case: Case, share: float) -> None:
    at = even(case.ladders, budget_of(case, share))
    shares = [x.costs[r] / x.dense for x, r in zip(case.ladders, at, strict=True)]
    following = [
        min((cost for cost in x.costs if cost > x.costs[r]), default=math.inf) / x.dense
        for x, r in zip(case.ladders, at, strict=True)
    ]
    above_the_floor = [s for s, r in zip(shares, at, strict=True) if r > 0]
    assert max(above_the_floor, default=0.0) <= min(following) + 1e-12


@given(cases(most=3, sides=7), st.floats(0, 1))
@settings(max_examples=40)
def test_nothing_of_the_same_cost_loses_less(case: Case, share: float) -> None:
    """Where a budget ends at corners of the hulls, as it does before the first step over it."""
    budget = budget_of(case, share)
    at = by_loss(case.ladders, case.losses(), budget)
    everywhere = itertools.product(*(ladder.ascents for ladder in case.ladders))
    best = min(case.loss(each) for each in everywhere if case.cost(each) <= budget)
    # One step of one matrix may be left undone, and with it no more than all that it could keep.
    undone = max(losses[rung] for losses, rung in zip(case.losses(), at, strict=True))
    assert best - 1e-9 <= case.loss(at) <= best + undone + 1e-9


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_least_loss_of_convex_spectra(share: float) -> None:
    """Of matrices of one shape, below break-even, the greedy choice is the best there is."""
    energies = [[16.0, 8, 4, 2, 1, 1], [9.0, 9, 1, 1, 1, 1], [30.0, 1, 1, 1, 1, 1]]
    ladders = [Rungs((1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6)) for _ in energies]
    case = Case(ladders, energies)
    budget = budget_of(case, share)
    at = by_loss(ladders, case.losses(), budget)
    everywhere = itertools.product(range(6), repeat=3)
    best = min(case.loss(each) for each in everywhere if case.cost(each) <= budget)
    assert case.loss(at) == best


def test_a_step_over_break_even_is_cheap() -> None:
    """The last step brings the whole rest of the spectrum, so it is taken before finer ones."""
    ladders = [rungs(4, 8, 17), rungs(4, 8, 24)]  # the first is dense for 1 more than rank 2
    losses = [[3.0, 2.9, 1.0, 0.0], [3.0, 1.9, 1.0, 0.0]]
    assert by_loss(ladders, losses, 25) == [3, 0]


def test_changes_of_the_loss_cancel() -> None:
    ladders = [Rungs((1, 2, 3), (1.0, 2.0, 3.0)), Rungs((1, 2, 3), (1.0, 2.0, 3.0))]
    changes = [[0.0, 0.5, 0.3], [0.0, -0.4, -0.25]]
    # 0.3 first, since nothing is lost so far; then -0.25, which takes the sum back, then -0.4.
    assert [zero_sum(ladders, changes, budget) for budget in (6, 5, 4, 3)] == [
        [2, 2],
        [1, 2],
        [1, 1],
        [1, 0],
    ]


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_below_the_lowest_rungs(rule: str) -> None:
    case = Case([rungs(6, 18, 72, least=2)], [[1.0] * 6])
    with pytest.raises(ValueError, match="at least, got 35"):
        RULES[rule](case, 35)
