"""Weights in blocks: neighbouring inputs of one output share a scale and a zero point.

``w = (q - zero_point) * scale`` with ``q`` and ``zero_point`` from ``0 .. 2^bits - 1``, as
onnxruntime's MatMulNBits and ONNX's blockwise DequantizeLinear have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["BlockMethod", "BlockGrid", "Blocks", "choose_scales", "quantize_blocks"]

BlockMethod = Literal["minmax", "mse"]

_ROUNDS = 4
_MOST_ELEMENTS = 1 << 21  # of a weight looked at at once: a few copies of them fit into any memory
# Shares of a block's range that are tried: coarse grids gain from clipping, fine ones hardly do.
_SHARES = {True: torch.linspace(1.0, 0.6, 17).tolist(), False: [1.0, 0.98, 0.96, 0.94]}
_COARSE_BITS = 4


@dataclass(frozen=True)
class BlockGrid:
    """The numbers that a weight may be stored as.

    Attributes:
        bits: Of one number.
        size: Inputs that share a scale.
        symmetric: The zero point is the middle, and is not stored.
        half: Scales are rounded to float16.
    """

    bits: int
    size: int
    symmetric: bool = False
    half: bool = False

    @property
    def high(self) -> int:
        """The largest number."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return int(2 ** (self.bits - 1))

    def count(self, columns: int) -> int:
        """Blocks that so many inputs make; the last one may be short."""
        return -(-columns // self.size)

    def split(self, weight: Tensor) -> Tensor:
        """[rows, columns] -> [rows, blocks, size], zeros behind the last column."""
        rows, columns = weight.shape
        whole = pad(weight, (0, self.count(columns) * self.size - columns))
        return whole.reshape(rows, -1, self.size)

    def storable(self, scales: Tensor) -> Tensor:
        """Scales as they can be stored: in their type, and not so small that they are zero."""
        kind = torch.float16 if self.half else torch.float32
        least = torch.finfo(kind).tiny
        kept = scales.to(kind).float()
        # A scale may be negative: the sign says which end of a symmetric range reaches further.
        return torch.where(kept.abs() >= least, kept, torch.ones_like(kept))


@dataclass(frozen=True)
class Blocks:
    """A weight in blocks.

    Attributes:
        grid: What it is stored as.
        integers: uint8 [rows, columns].
        scales: float32 [rows, blocks].
        zero_points: uint8 [rows, blocks].
    """

    grid: BlockGrid
    integers: Tensor
    scales: Tensor
    zero_points: Tensor

    def dequantized(self) -> Tensor:
        """float32 [rows, columns]."""
        numbers = self.grid.split(self.integers).float() - self.zero_points[..., None].float()
        columns = self.integers.shape[1]
        return (numbers * self.scales[..., None]).flatten(1)[:, :columns]

    def column(self, values: Tensor, index: int) -> Tensor:
        """A column of the weight, rounded to what can be stored: [rows] -> float32 [rows]."""
        block = index // self.grid.size
        scale, zero = self.scales[:, block], self.zero_points[:, block].float()
        return (torch.clamp(torch.round(values / scale) + zero, 0, self.grid.high) - zero) * scale


def quantize_blocks(
    weight: Tensor,
    grid: BlockGrid,
    method: BlockMethod = "mse",
    importance: Tensor | None = None,
) -> Blocks:
    """Round a weight to the nearest, with scales by :func:`choose_scales`.

    Args:
        weight: float [rows, columns], one row for each output.
        grid: What it is stored as.
        method: How scales are chosen.
        importance: [columns], see :func:`choose_scales`.
    """
    scales, zero_points = choose_scales(weight, grid, method, importance)
    return round_to(weight, grid, scales, zero_points)


def round_to(weight: Tensor, grid: BlockGrid, scales: Tensor, zero_points: Tensor) -> Blocks:
    """Round a weight to the nearest numbers with given scales and zero points."""
    integers = torch.empty(weight.shape, dtype=torch.uint8)
    for rows in _pieces(weight):
        blocks = grid.split(weight[rows].float())
        found = _round(blocks, scales[rows][..., None], zero_points[rows][..., None], grid)
        integers[rows] = found.flatten(1)[:, : weight.shape[1]].to(torch.uint8)
    return Blocks(grid, integers, scales, zero_points)


def choose_scales(
    weight: Tensor,
    grid: BlockGrid,
    method: BlockMethod = "mse",
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each block.

    ``minmax`` covers all weights of the block. ``mse`` takes the clipping with the least squared
    error, then alternates between rounding and the least-squares scale for the rounded numbers, as
    HQQ and llama.cpp's k-quants do; no data are needed. Zero is represented exactly. The zero
    points of symmetric blocks are the middle, and their scales may be negative, so that the one
    number more on the lower side serves the side that reaches further.

    Args:
        weight: float [rows, columns].
        grid: What the weight is stored as.
        method: ``minmax`` or ``mse``.
        importance: [columns], not negative: weights of the squared errors, such as the mean square
            of each input. Default: all alike.

    Returns:
        float32 and uint8, both [rows, blocks]; scale 1 where all weights of a block are zero.
    """
    rows, columns = weight.shape
    scales = torch.empty(rows, grid.count(columns))
    zero_points = torch.empty(rows, grid.count(columns), dtype=torch.uint8)
    cost = None if importance is None else grid.split(importance.float()[None].cpu())
    for piece in _pieces(weight):
        blocks = grid.split(weight[piece].float())
        scale, zero = _best(blocks, grid, cost) if method == "mse" else _covering(blocks, grid, 1.0)
        scales[piece], zero_points[piece] = scale[..., 0], zero[..., 0].to(torch.uint8)
    return scales, zero_points


def _pieces(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight, so many at a time as are looked at at once."""
    rows, columns = weight.shape
    step = max(1, _MOST_ELEMENTS // max(columns, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _round(blocks: Tensor, scale: Tensor, zero: Tensor, grid: BlockGrid) -> Tensor:
    return torch.clamp(torch.round(blocks / scale) + zero, 0, grid.high)


def _covering(blocks: Tensor, grid: BlockGrid, share: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point for a share of each block's range, as [..., 1]."""
    low = blocks.amin(-1, keepdim=True).clamp(max=0) * share
    high = blocks.amax(-1, keepdim=True).clamp(min=0) * share
    if grid.symmetric:
        # The lowest number, -middle, goes to the end that reaches further.
        furthest = torch.where(high > -low, high, low)
        scale = grid.storable(-furthest / grid.middle)
        return scale, torch.full_like(scale, grid.middle)
    scale = grid.storable((high - low) / grid.high)
    return scale, torch.clamp(torch.round(-low / scale), 0, grid.high)


def _best(blocks: Tensor, grid: BlockGrid, cost: Tensor | None) -> tuple[Tensor, Tensor]:
    best_scale, best_zero = _covering(blocks, grid, 1.0)
    least = _error(blocks, best_scale, best_zero, grid, cost)
    for share in _SHARES[grid.bits <= _COARSE_BITS][1:]:
        scale, zero = _covering(blocks, grid, share)
        error = _error(blocks, scale, zero, grid, cost)
        better = error < least
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
        least = torch.where(better, error, least)
    for _ in range(_ROUNDS):
        scale = _fitted(blocks, best_scale, best_zero, grid, cost)
        error = _error(blocks, scale, best_zero, grid, cost)
        better = error < least
        if not bool(better.any()):
            break
        best_scale = torch.where(better, scale, best_scale)
        least = torch.where(better, error, least)
    return best_scale, best_zero


def _error(
    blocks: Tensor, scale: Tensor, zero: Tensor, grid: BlockGrid, cost: Tensor | None
) -> Tensor:
    error = _round(blocks, scale, zero, grid).sub_(zero).mul_(scale).sub_(blocks).square_()
    return (error if cost is None else error.mul_(cost)).sum(-1, keepdim=True)


def _fitted(
    blocks: Tensor, scale: Tensor, zero: Tensor, grid: BlockGrid, cost: Tensor | None
) -> Tensor:
    """The least-squares scale for the numbers that a scale gives."""
    numbers = _round(blocks, scale, zero, grid).sub_(zero)
    weighted = numbers if cost is None else numbers * cost
    power = (weighted * numbers).sum(-1, keepdim=True)
    fitted = (weighted * blocks).sum(-1, keepdim=True) / power
    return torch.where(power > 0, grid.storable(fitted), scale)
