from __future__ import annotations

import math

import pytest
import torch

from edgecompress.numerics.half import half_limit, half_problem


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_limits() -> None:
    assert half_limit("float16") == 65504
    assert half_limit("bfloat16") == pytest.approx(3.39e38, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "dtype", "each", "said"),
    [
        (numbers(1.0, -65504.0), "float16", False, ""),
        (numbers(1.0, -65536.0), "float16", False, "reaches 6.55e+04"),
        (numbers(-3.4e38), "float16", True, "ends at 6.55e+04"),
        (numbers(-3.4e38), "bfloat16", True, "ends at 3.39e+38"),
        (numbers(1e30, 1e-30), "bfloat16", True, ""),
        (numbers(math.inf, -math.inf, math.nan), "float16", True, ""),
        (numbers(0.0), "float16", True, ""),
        (numbers(), "float16", True, ""),
        (numbers(1e-12), "float16", True, "holds 1e-12, too small for float16"),
        (numbers(1e-12), "bfloat16", True, ""),
        (numbers(1.0, 1e-12), "float16", False, ""),
        (numbers(1.0, 1e-12), "float16", True, "holds 1e-12"),
        (numbers(1e-7, 1.3e-7), "float16", False, "numbers of about 1.16e-07"),
        (torch.linspace(-3, 3, 999), "float16", False, ""),
        (torch.linspace(-3, 3, 999), "bfloat16", False, ""),
    ],
)
def test_what_cannot_be_held_is_named(
    values: torch.Tensor, dtype: str, each: bool, said: str
) -> None:
    found = half_problem(values, dtype, each=each)
    assert said in found
    assert bool(said) == bool(found)
