"""Weights in blocks: errors within half a step, searches that never lose, odd blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.numerics.blockwise import BlockGrid, Blocks, choose_scales, quantize_blocks

GRIDS = [BlockGrid(bits, 16, symmetric) for bits in (4, 8) for symmetric in (False, True)]


def weights(rows: int, columns: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + shift


def errors(blocks: Blocks, weight: Tensor) -> Tensor:
    """Squared error of each block."""
    return blocks.grid.split(blocks.dequantized() - weight).square().sum(-1)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("columns", [16, 40, 7])
def test_minmax_is_off_by_a_step_at_most(grid: BlockGrid, columns: int) -> None:
    weight = weights(5, columns)
    blocks = quantize_blocks(weight, grid, "minmax")
    assert blocks.integers.shape == weight.shape
    assert blocks.scales.shape == blocks.zero_points.shape == (5, grid.count(columns))
    assert int(blocks.integers.max()) <= grid.high
    off = grid.split(blocks.dequantized() - weight).abs().amax(-1)
    # Inside the range half a step; a rounded zero point moves its ends by up to another half, and
    # symmetric blocks lack the last number on the side that reaches less far.
    assert bool((off <= blocks.scales.abs() * 1.001).all())


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    shift=st.floats(-2, 2),
    grid=st.sampled_from(GRIDS),
    columns=st.integers(1, 50),
    weighted=st.booleans(),
)
def test_search_never_loses(
    seed: int, shift: float, grid: BlockGrid, columns: int, weighted: bool
) -> None:
    weight = weights(4, columns, seed, shift)
    importance = torch.rand(columns) + 0.01 if weighted else None
    cost = torch.ones(columns) if importance is None else importance
    found, plain = (
        grid.split(
            (quantize_blocks(weight, grid, method, importance).dequantized() - weight) ** 2 * cost
        ).sum(-1)
        for method in ("mse", "minmax")
    )
    assert bool((found <= plain * 1.0001 + 1e-12).all())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("value", [0.0, 1e-42, 3.0, -3.0])
def test_constant_blocks(grid: BlockGrid, value: float) -> None:
    """Zeros and numbers too small for a scale become 0; others are as near as a step allows."""
    weight = torch.full((2, 32), value)
    blocks = quantize_blocks(weight, grid)
    assert bool(torch.isfinite(blocks.scales).all())
    torch.testing.assert_close(blocks.dequantized(), weight, rtol=1e-2, atol=1e-40)


def test_zero_is_exact() -> None:
    weight = weights(8, 64, shift=1.0)
    weight[:, ::5] = 0
    for grid in GRIDS:
        assert not quantize_blocks(weight, grid).dequantized()[:, ::5].any()


def test_large_weights_are_looked_at_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, grid = weights(40, 33), GRIDS[0]
    whole = quantize_blocks(weight, grid)
    monkeypatch.setattr("edgecompress.numerics.blockwise._MOST_ELEMENTS", 100)
    pieces = quantize_blocks(weight, grid)
    assert torch.equal(whole.integers, pieces.integers)
    assert torch.equal(whole.scales, pieces.scales)


def test_float16_scales_are_used_as_they_are_stored() -> None:
    scales, _ = choose_scales(weights(8, 64), BlockGrid(4, 32, half=True))
    assert torch.equal(scales, scales.half().float())


@pytest.mark.parametrize("grid", GRIDS)
def test_columns_round_as_the_whole(grid: BlockGrid) -> None:
    weight = weights(6, 40)
    blocks = quantize_blocks(weight, grid)
    columns = [blocks.column(weight[:, i], i) for i in range(40)]
    torch.testing.assert_close(torch.stack(columns, 1), blocks.dequantized(), rtol=0, atol=0)
