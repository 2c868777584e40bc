"""Change of element type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import torch_dtype

# What overflow becomes without clipping, and the smallest magnitude that overflows: halfway between
# the largest number and the next step, where a tie goes to the even one.
_FLOAT8 = {
    torch.float8_e4m3fn: (math.nan, math.nextafter(464.0, math.inf)),
    torch.float8_e4m3fnuz: (math.nan, 248.0),
    torch.float8_e5m2: (math.inf, 61440.0),
    torch.float8_e5m2fnuz: (math.nan, 61440.0),
}


def cast_to(x: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    """Convert; to an 8-bit float either with clipping or with infinity and NaN."""
    if dtype not in _FLOAT8 or x.dtype == dtype:
        return x.to(dtype)
    wide = x.to(torch.float32) if x.dtype in _FLOAT8 or not x.is_floating_point() else x
    limit = torch.finfo(dtype).max
    narrow = wide.to(torch.float32).clamp(-limit, limit).to(dtype)
    if saturate:
        return narrow
    beyond, overflow = _FLOAT8[dtype]
    signed = torch.copysign(torch.full_like(wide, beyond, dtype=torch.float32), wide.float())
    return torch.where(wide.abs() >= overflow, signed.to(dtype), narrow)


@op("Cast", since=6, widens=True)
def cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """``round_mode`` only matters for the exponent-only type, which torch lacks."""
    return cast_to(x, torch_dtype(to), saturate=bool(saturate))


@op("CastLike", since=15)
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """Convert to the element type of another tensor."""
    return cast_to(x, target.dtype, saturate=bool(saturate))


@op("BitCast", since=26)
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    """The same bits under another type of the same width."""
    return x.view(torch_dtype(to))
