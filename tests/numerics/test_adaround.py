"""Rounding as a variable: its ends, its start, its regulariser and its schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.numerics.adaround import Schedule, SoftRounding, indecision, rectified_sigmoid
from edgecompress.numerics.affine import IntegerRange

INT4 = IntegerRange.of("int8", 4, symmetric=True)


def test_the_rectified_sigmoid_reaches_both_ends() -> None:
    h = rectified_sigmoid(torch.tensor([-20.0, -2.5, 0.0, 2.5, 20.0]))
    torch.testing.assert_close(h, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 10))
def test_it_starts_at_the_float_weight_where_the_grid_reaches(seed: int, scale: float) -> None:
    weight = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed)) * 3
    rounding = SoftRounding(weight, torch.tensor(scale), INT4)
    start = rounding.soft(rounding.share()).detach()
    reached = weight.clamp(-7 * scale, 7 * scale)
    torch.testing.assert_close(start, reached, atol=1e-5 * scale, rtol=1e-5)


@given(seed=st.integers(0, 1000))
def test_without_a_step_it_decides_for_the_nearest(seed: int) -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)) * 4
    found = SoftRounding(weight, torch.tensor(0.7), INT4).hard()
    assert torch.equal(found, torch.round(weight / 0.7).clamp(-7, 7))


def test_zeros_and_ties_stay_finite() -> None:
    weight = torch.tensor([0.0, 0.5, 1.0, -0.5, 1e30])
    rounding = SoftRounding(weight, torch.tensor(1.0), INT4)
    assert torch.isfinite(rounding.v).all()
    assert rounding.hard().tolist() == [0, 0, 1, -1, 7]


def test_gradients_reach_the_variable_but_where_the_grid_ends() -> None:
    rounding = SoftRounding(torch.tensor([0.3, 100.0]), torch.tensor(1.0), INT4)
    rounding.soft(rounding.share()).sum().backward()
    assert rounding.v.grad is not None
    assert rounding.v.grad[0] > 0
    assert rounding.v.grad[1] == 0


def test_indecision_is_zero_at_the_ends_and_one_in_the_middle() -> None:
    assert float(indecision(torch.tensor([0.0, 1.0]), 2)) == 0
    assert float(indecision(torch.tensor([0.5]), 20)) == 1
    assert float(indecision(torch.tensor([0.25]), 2)) == pytest.approx(0.75)


def test_the_exponent_falls_from_twenty_to_two_behind_the_warm_up() -> None:
    schedule = Schedule(100)
    assert schedule.exponent(19) is None
    found = [schedule.exponent(step) for step in range(20, 100)]
    assert found[0] == pytest.approx(20)
    assert found[-1] == pytest.approx(2)
    assert found == sorted(found, reverse=True)


def test_a_schedule_of_one_step_has_an_exponent() -> None:
    assert Schedule(1).exponent(0) == pytest.approx(20)
