"""Change of element type."""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import torch_dtype, unsupported

_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)


def cast_to(x: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    """Convert; to an 8-bit float either with clipping or with infinity and NaN.

    Raises:
        ModelError: Conversion to an 8-bit float without clipping: torch's overflow differs.
    """
    if dtype in _FLOAT8 and x.dtype not in _FLOAT8:
        if not saturate:
            raise unsupported("a cast to an 8-bit float without saturation")
        limit = torch.finfo(dtype).max
        return x.to(torch.float32).clamp(-limit, limit).to(dtype)
    if x.dtype in _FLOAT8 and dtype in _FLOAT8 and x.dtype != dtype:
        return cast_to(x.to(torch.float32), dtype, saturate=saturate)
    return x.to(dtype)


@op("Cast", since=6)
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
