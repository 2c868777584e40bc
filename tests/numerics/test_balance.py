"""Products of factors split anew: the product stays, and grids of integers take less from it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.numerics.balance import Balance, balanced, mixing_rotation

HOWS = get_args(Balance)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs(columns: int, places: int = 300, seed: int = 1) -> Tensor:
    """Of a few strong directions: [places, columns]."""
    strengths = torch.logspace(0, -3, columns, dtype=torch.float64)
    return drawn(places, columns, seed=seed) * strengths @ drawn(columns, columns, seed=seed + 1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    how=st.sampled_from(HOWS),
    groups=st.integers(1, 3),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    rank=st.integers(1, 9),
    seen=st.booleans(),
    places=st.integers(0, 20),
)
def test_the_product_stays(
    how: Balance, groups: int, rows: int, columns: int, rank: int, seen: bool, places: int
) -> None:
    """Also where ranks pass what rows, columns or inputs have."""
    left, right = drawn(groups, rows, rank), drawn(groups, rank, columns, seed=1)
    x = drawn(groups, places, columns, seed=2)
    second, first = balanced(left, right, x.mT @ x if seen else None, how)
    assert (second.shape, first.shape) == (left.shape, right.shape)
    scale = float((left @ right).abs().max())
    torch.testing.assert_close(second @ first, left @ right, atol=1e-6 * scale, rtol=0)


def test_float32_stays_float32() -> None:
    left, right = drawn(2, 6, 4).float(), drawn(2, 4, 9, seed=1).float()
    second, first = balanced(left, right)
    assert second.dtype == first.dtype == torch.float32
    torch.testing.assert_close(second @ first, left @ right, atol=1e-4, rtol=1e-4)


def test_where_singular_values_go() -> None:
    x = inputs(20)
    gram = (x.T @ x / len(x))[None]
    left, right = drawn(1, 15, 8), drawn(1, 8, 20, seed=4)
    sigma = torch.linalg.svdvals(left[0] @ right[0] @ x.T / len(x) ** 0.5)[:8]
    for how, share in (("left", 0.0), ("sqrt", 0.5), ("right", 1.0)):
        second, first = balanced(left, right, gram, how)  # type: ignore[arg-type]
        power = (first @ gram @ first.mT)[0]
        torch.testing.assert_close(power, torch.diag(sigma ** (2 * share)), atol=1e-6, rtol=1e-6)
        norms = second[0].mT @ second[0]
        torch.testing.assert_close(
            norms, torch.diag(sigma ** (2 - 2 * share)), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 12, 64, 72, 112])
def test_the_rotation_mixes_evenly(size: int) -> None:
    rotation = mixing_rotation(size)
    identity = torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, identity, atol=1e-12, rtol=0)
    assert float(rotation.abs().max()) <= (2 / size) ** 0.5 + 1e-12


def test_zeros_stay_zeros() -> None:
    second, first = balanced(torch.zeros(1, 5, 3), torch.zeros(1, 3, 6), torch.zeros(1, 6, 6))
    assert float((second @ first).abs().max()) == 0
    assert bool(torch.isfinite(second).all() and torch.isfinite(first).all())


def quantized(tensor: Tensor, dim: int | None) -> Tensor:
    """int8, symmetric, with a scale for each row, or for all."""
    most = tensor.abs().amax() if dim is None else tensor.abs().amax(dim, keepdim=True)
    step = most.clamp(min=1e-30) / 127
    return torch.round(tensor / step) * step


def error_of(how: Balance) -> float:
    """Of a layer on integers, weights per output channel, activations per tensor; in power."""
    x = inputs(64, places=2000)
    weight = drawn(96, 64, seed=5)
    gram = (x.T @ x / len(x))[None]
    u, s, v = torch.linalg.svd(weight @ torch.linalg.cholesky(gram[0]), full_matrices=False)
    right = v[:24] @ torch.linalg.inv(torch.linalg.cholesky(gram[0]))
    second, first = balanced((u[:, :24] * s[:24])[None], right[None], gram, how)
    z = quantized(quantized(x, None) @ quantized(first[0], 1).T, None)
    wanted = x @ (second[0] @ first[0]).T
    found = z @ quantized(second[0], 1).T
    return float((found - wanted).square().sum() / wanted.square().sum())


def test_the_default_loses_least_on_integers() -> None:
    errors = {how: error_of(how) for how in HOWS}
    default = error_of(balanced.__defaults__[1])  # type: ignore[index]
    assert default <= 1.05 * min(errors.values())
    assert errors["right"] > 1.5 * default


def test_directions_that_no_row_has_shown_are_not_blown_up() -> None:
    """Fewer places than columns; the rank reaches beyond them."""
    seen, new = inputs(64, places=10), inputs(64, places=50, seed=7)
    gram = (seen.T @ seen / len(seen))[None]
    left, right = drawn(1, 96, 32), drawn(1, 32, 64, seed=3)

    def reach(how: Balance) -> float:
        _, first = balanced(left, right, gram, how)
        ranges = [float((x @ first[0].T).abs().max()) for x in (new, seen)]
        return ranges[0] / ranges[1]

    assert reach("rotated") < 10
    assert reach("left") > 10 * reach("rotated")
