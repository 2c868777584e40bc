"""What 16-bit floating point can hold: float16 (5 + 10 bits) and bfloat16 (8 + 7 bits)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HALF_TYPES", "half_limit", "half_problem"]

HALF_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Rounding to nearest leaves a relative error of about 0.3 eps in the root mean square.
_MOST_ERROR_IN_EPS = 1.0


def half_limit(dtype: str) -> float:
    """Largest finite number of the type."""
    return torch.finfo(HALF_TYPES[dtype]).max


def half_problem(values: Tensor, dtype: str, *, each: bool = False) -> str:
    """Why float32 values cannot be stored in 16 bits, or an empty string.

    Infinities and NaN can; numbers past the largest finite one cannot, nor numbers so small that
    they lose their digits or become zero.

    Args:
        values: float32, of any shape.
        dtype: ``float16`` or ``bfloat16``.
        each: Whether each number must keep its digits, as one that something is divided by must,
            or only their sum of squares, as weights must.
    """
    exact = values[torch.isfinite(values)]
    if exact.numel() == 0:
        return ""
    largest = float(exact.abs().max())
    if largest > half_limit(dtype):
        return f"reaches {largest:.3g}, {dtype} ends at {half_limit(dtype):.3g}"
    rounded = exact.to(HALF_TYPES[dtype]).float()
    most = _MOST_ERROR_IN_EPS * torch.finfo(HALF_TYPES[dtype]).eps
    wrong = (rounded - exact).abs()
    if each:
        lost = wrong > most * exact.abs()
        if bool(lost.any()):
            return f"holds {float(exact[lost].abs().min()):.3g}, too small for {dtype}"
        return ""
    total = float(exact.double().square().sum())
    if float(wrong.double().square().sum()) > most**2 * total:
        return f"holds numbers of about {(total / exact.numel()) ** 0.5:.3g}, too small for {dtype}"
    return ""
