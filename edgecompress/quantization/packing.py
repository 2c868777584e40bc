"""Integers of a few bits as runtimes store them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import pad

from edgecompress.numerics.blockwise import Blocks

__all__ = ["nbits_weight", "nbits_zero_points", "pack", "pack_halves", "table"]

Bytes = npt.NDArray[np.uint8]


def pack(numbers: Tensor, bits: int) -> Bytes:
    """Unsigned numbers [..., n] -> uint8 [..., ceil(n * bits / 8)], the lowest bits first."""
    if bits == 8:
        return np.ascontiguousarray(numbers.numpy())
    per_byte = 8 // bits
    whole = pad(numbers, (0, -numbers.shape[-1] % per_byte))
    parts = whole.reshape(*whole.shape[:-1], -1, per_byte).numpy()
    packed: Bytes = parts[..., 0].copy()
    for place in range(1, per_byte):
        packed |= parts[..., place] << (place * bits)
    return packed


def pack_halves(numbers: Tensor) -> Bytes:
    """4-bit numbers [..., n], n even -> uint8 [..., n / 2]: the first half in the low bits.

    Standard operators unpack it without moving single elements: BitwiseAnd and BitShift give the
    halves, and Concat puts them together.
    """
    half = numbers.shape[-1] // 2
    low, high = numbers[..., :half].numpy(), numbers[..., half:].numpy()
    packed: Bytes = low | high << 4
    return packed


def nbits_weight(blocks: Blocks) -> Bytes:
    """As MatMulNBits takes it: uint8 [rows, blocks, size * bits / 8].

    What fills up a last block that is short counts as zero.
    """
    grid, columns = blocks.grid, blocks.integers.shape[1]
    whole = grid.split(blocks.integers).clone()
    behind = columns - (whole.shape[1] - 1) * grid.size
    whole[:, -1, behind:] = blocks.zero_points[:, -1:]
    return pack(whole, grid.bits)


def nbits_zero_points(blocks: Blocks) -> Bytes | None:
    """As MatMulNBits and GatherBlockQuantized take them; None where they are the middle."""
    return None if blocks.grid.symmetric else pack(blocks.zero_points, blocks.grid.bits)


def table(blocks: Blocks) -> Bytes:
    """As GatherBlockQuantized takes it: uint8 [rows, columns * bits / 8]."""
    return pack(blocks.integers, blocks.grid.bits)
