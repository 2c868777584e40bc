"""Bytes of packed weights: bit by bit, and as onnxruntime and the bridge read them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.numerics.blockwise import BlockGrid, quantize_blocks
from edgecompress.quantization.packing import nbits_weight, nbits_zero_points, pack, pack_halves


@given(st.lists(st.integers(0, 15), min_size=1, max_size=9))
def test_four_bits(numbers: list[int]) -> None:
    packed = pack(torch.tensor(numbers, dtype=torch.uint8), 4)
    assert len(packed) == -(-len(numbers) // 2)
    whole = [int(byte) >> shift & 15 for byte in packed for shift in (0, 4)]
    assert whole == numbers + [0] * (len(numbers) % 2)


def test_eight_bits_stay() -> None:
    numbers = torch.arange(200, dtype=torch.uint8).reshape(2, 100)
    assert np.array_equal(pack(numbers, 8), numbers.numpy())


def test_halves() -> None:
    packed = pack_halves(torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8))
    assert packed.tolist() == [[1 | 3 << 4, 2 | 4 << 4]]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 40])
def test_weight_of_matmulnbits(bits: int, columns: int) -> None:
    """What fills up a short last block is the zero point, so that it counts as zero."""
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)) + 1
    blocks = quantize_blocks(weight, BlockGrid(bits, 16))
    packed = nbits_weight(blocks)
    count = -(-columns // 16)
    assert packed.shape == (3, count, 16 * bits // 8)
    shifts = range(0, 8, bits)
    numbers = np.stack([packed >> s & (2**bits - 1) for s in shifts], -1).reshape(3, count * 16)
    assert np.array_equal(numbers[:, :columns], blocks.integers.numpy())
    filled = numbers[:, columns:]
    assert np.array_equal(filled, np.broadcast_to(blocks.zero_points.numpy()[:, -1:], filled.shape))
    zeros = nbits_zero_points(blocks)
    assert zeros is not None
    assert zeros.shape == (3, -(-count * bits // 8))


def test_symmetric_weights_have_no_zero_points() -> None:
    assert nbits_zero_points(quantize_blocks(torch.ones(2, 16), BlockGrid(8, 16, True))) is None
