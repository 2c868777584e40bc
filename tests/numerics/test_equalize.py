"""Factors of channels: published formulas, and what must not happen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgecompress.numerics.equalize import cross_layer_scales, powers_of_two, smoothing_scales

sizes = arrays("float32", 6, elements=st.floats(0, 2.0**100, width=32))


def test_half_evens_out_both_sides() -> None:
    x, w = torch.tensor([100.0, 1.0, 4.0]), torch.tensor([1.0, 1.0, 0.25])
    s = smoothing_scales(x, w, 0.5)
    torch.testing.assert_close(s.log().mean(), torch.tensor(0.0, dtype=torch.float64))
    product = (x * w).sqrt().double()
    for side in (x / s, w * s):
        torch.testing.assert_close(side / side[1], product / product[1])


@pytest.mark.parametrize(("alpha", "even"), [(0.0, "weights"), (1.0, "activations")])
def test_the_ends_even_out_one_side(alpha: float, even: str) -> None:
    x, w = torch.tensor([100.0, 1.0, 4.0]), torch.tensor([1.0, 3.0, 0.25])
    s = smoothing_scales(x, w, alpha)
    found = w * s if even == "weights" else x / s
    torch.testing.assert_close(found, found[0].expand(3))


def test_cross_layer_makes_ranges_equal() -> None:
    first, second = torch.tensor([8.0, 0.5, 2.0]), torch.tensor([0.5, 0.5, 2.0])
    s = cross_layer_scales(first, second)
    torch.testing.assert_close(first / s, second * s)


@given(sizes, sizes, st.floats(0, 1))
def test_all_factors_are_usable(x: object, w: object, alpha: float) -> None:
    over, under = torch.tensor(x), torch.tensor(w)
    for s in (smoothing_scales(over, under, alpha), cross_layer_scales(over, under)):
        assert bool((s > 0).all())
        assert bool(torch.isfinite(s).all())
        dead = (over == 0) | (under == 0)
        assert bool((s[dead] == 1).all())


@given(arrays("float64", 5, elements=st.floats(2.0**-20, 2.0**20)))
def test_powers_of_two_are_near(values: object) -> None:
    s = torch.tensor(values)
    rounded = powers_of_two(s)
    assert bool((torch.frexp(rounded)[0] == 0.5).all())
    assert bool(((rounded / s).log2().abs() <= 0.5 + 1e-9).all())
