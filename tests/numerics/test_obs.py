"""The OBS loop: equal to the textbook's steps, and never worse than rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.errors import PassError
from edgecompress.numerics.obs import inverse_factor, obs_round


def rounded(column: Tensor, index: int) -> Tensor:
    del index
    return torch.round(column)


def inputs(columns: int, rows: int = 200, seed: int = 0) -> Tensor:
    """Correlated inputs [rows, columns]."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=g)
    return torch.randn(rows, columns, generator=g) @ mixed


def output_error(weight: Tensor, other: Tensor, x: Tensor) -> float:
    return float((x @ (weight - other).T).square().sum())


def textbook(weight: Tensor, hessian: Tensor) -> Tensor:
    """OBS without Cholesky: after each column the inverse loses a row and a column."""
    left, inverse = weight.double().clone(), torch.linalg.inv(hessian.double())
    result = torch.empty_like(left)
    for j in range(weight.shape[1]):
        result[:, j] = torch.round(left[:, j])
        step = (left[:, j] - result[:, j]) / inverse[j, j]
        left -= torch.outer(step, inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return result.float()


@pytest.mark.parametrize("block", [1, 3, 128])
def test_equals_the_textbook(block: int) -> None:
    x = inputs(12)
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(1)) * 3
    hessian = x.T @ x
    found = obs_round(weight, hessian, rounded, damping=0.0, block=block)
    assert torch.equal(found, textbook(weight, hessian))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), columns=st.integers(8, 40), turned=st.booleans())
def test_beats_the_nearest(seed: int, columns: int, turned: bool) -> None:
    x = inputs(columns, seed=seed)
    weight = torch.randn(32, columns, generator=torch.Generator().manual_seed(seed)) * 2
    hessian = x.T @ x
    order = torch.argsort(hessian.diagonal(), descending=True) if turned else None
    found = obs_round(weight, hessian, rounded, order=order)
    assert output_error(weight, found, x) < output_error(weight, torch.round(weight), x)


def test_order_changes_the_order_only() -> None:
    """With a diagonal Hessian all columns are independent; the indices are the original ones."""
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 3
    seen: list[int] = []

    def note(column: Tensor, index: int) -> Tensor:
        seen.append(index)
        assert torch.equal(column, weight[:, index])
        return torch.round(column)

    order = torch.tensor([3, 1, 5, 0, 4, 2])
    found = obs_round(weight, torch.eye(6), note, block=4, order=order)
    assert torch.equal(found, torch.round(weight))
    assert seen == order.tolist()


def test_dead_columns_are_rounded_to_the_nearest() -> None:
    x = inputs(10)
    x[:, [0, 7]] = 0
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)) * 3
    found = obs_round(weight, x.T @ x, rounded)
    assert torch.equal(found[:, [0, 7]], torch.round(weight[:, [0, 7]]))
    alive = [i for i in range(10) if i not in (0, 7)]
    others = obs_round(weight[:, alive], (x.T @ x)[alive][:, alive], rounded)
    assert torch.equal(found[:, alive], others)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_few_rows(rank: int) -> None:
    """A Hessian without full rank, or without anything at all, is damped until it can be used."""
    x = inputs(16, rows=max(rank, 1)) * bool(rank)
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * 3
    found = obs_round(weight, x.T @ x, rounded, damping=0.0)
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, torch.round(found))


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_factor(damping: float) -> None:
    x = inputs(9).double()
    hessian = x.T @ x
    factor = inverse_factor(hessian, damping)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(9)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(9).double())


def test_infinite_inputs_are_refused() -> None:
    hessian = torch.eye(4)
    hessian[1, 1] = torch.inf
    with pytest.raises(PassError, match="not finite"):
        obs_round(torch.ones(2, 4), hessian, rounded)
