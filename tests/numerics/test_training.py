"""AdamW with its own gradients, masters and schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edgecompress.numerics.training import RateSchedule, Training


def constant(steps: int, rate: float) -> RateSchedule:
    return RateSchedule(steps, rate, warm_up=0, final=1)


def test_the_rate_rises_then_falls_as_a_cosine() -> None:
    rates = [RateSchedule(100, 2.0).rate(step) for step in range(100)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == rates[10] == 2.0
    assert rates[-1] == pytest.approx(0.2)
    middle = 10 + 89 / 2
    assert (rates[54] + rates[55]) / 2 == pytest.approx(2 * (0.1 + 0.9 / 2), abs=0.01), middle


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_few_steps_have_rates_too(steps: int) -> None:
    rates = [RateSchedule(steps, 1.0).rate(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_it_is_torchs_adamw_where_tensors_have_size_one() -> None:
    torch.manual_seed(0)
    start = torch.sign(torch.randn(4, 3))
    ours, theirs = start.clone(), start.clone().requires_grad_()
    training = Training([ours], constant(5, 0.1), weight_decay=0.2, clip=math.inf)
    peer = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.99), eps=1e-12, weight_decay=0.2)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        assert training.step([gradient])
        theirs.grad = gradient
        peer.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_steps_are_shares_of_each_tensors_size() -> None:
    small, large = torch.full((8,), 0.01), torch.full((8,), 100.0)
    training = Training([small, large], constant(1, 0.1), weight_decay=0)
    training.step([torch.ones(8), torch.ones(8)])
    torch.testing.assert_close(small, torch.full((8,), 0.009))
    torch.testing.assert_close(large, torch.full((8,), 90.0))


def test_weights_decay_by_shares_too() -> None:
    weights = [torch.full((8,), size) for size in (0.01, 100.0)]
    Training(weights, constant(1, 0.1), weight_decay=0.5).step([torch.zeros(8)] * 2)
    for weight, size in zip(weights, (0.01, 100.0), strict=True):
        torch.testing.assert_close(weight, torch.full((8,), size * 0.95))


def test_zeros_start_to_move() -> None:
    bias = torch.zeros(3)
    Training([bias], constant(1, 0.1)).step([torch.ones(3)])
    assert bool((bias < 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_steps_add_up_in_half_precision(dtype: torch.dtype) -> None:
    weight = torch.ones(4, dtype=dtype)
    training = Training([weight], constant(100, 1e-4), weight_decay=0)
    for _ in range(100):
        training.step([torch.ones(4)])
    assert float(weight[0]) == pytest.approx(0.99, abs=0.004)
    assert training.values()[0].dtype == torch.float32


def test_the_norm_is_cut_over_all_tensors() -> None:
    def moved(gradients: list[Tensor]) -> Tensor:
        weights = [torch.ones(2), torch.ones(2)]
        training = Training(weights, constant(2, 0.1), weight_decay=0, clip=1.0)
        training.step([torch.full((2,), 0.1)] * 2)
        training.step(gradients)
        return torch.cat(weights)

    torch.testing.assert_close(
        moved([torch.full((2,), 50.0), torch.zeros(2)]),
        moved([torch.full((2,), 0.5**0.5), torch.zeros(2)]),
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    weight = torch.ones(2)
    training = Training([weight], constant(2, 0.1))
    assert not training.step([torch.tensor([1.0, bad])])
    assert weight.tolist() == [1, 1]


def test_values_can_be_brought_back() -> None:
    weight, half = torch.ones(2), torch.ones(2, dtype=torch.float16)
    training = Training([weight, half], constant(2, 0.1))
    before = training.values()
    training.step([torch.ones(2), torch.ones(2)])
    assert weight[0] < 1
    assert half[0] < 1
    training.load(before)
    assert weight.tolist() == half.tolist() == [1, 1]
