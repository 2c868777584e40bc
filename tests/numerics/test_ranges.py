"""Clipping ranges: exact where they are defined exactly, never worse than no clipping else."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgecompress.numerics.affine import Affine, IntegerRange, fake_quantize
from edgecompress.numerics.histogram import Histogram
from edgecompress.numerics.ranges import RangeMethod, choose_range

METHODS = get_args(RangeMethod)
U8, S8, S8_SYMMETRIC = IntegerRange(0, 255), IntegerRange(-128, 127), IntegerRange(-127, 127)


def histogram_of(x: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(torch.from_numpy(x), float(np.abs(x).max()))
    return histogram


def chosen(
    method: RangeMethod,
    x: np.ndarray,
    integers: IntegerRange = U8,
    *,
    symmetric: bool = False,
    percentile: float = 99.999,
) -> tuple[float, float]:
    return choose_range(
        method,
        histogram_of(x),
        float(x.min()),
        float(x.max()),
        integers,
        percentile=percentile,
        symmetric=symmetric,
    )


def squared_error(
    x: np.ndarray, ends: tuple[float, float], integers: IntegerRange, symmetric: bool = False
) -> float:
    affine = Affine.from_range(*ends, integers, symmetric=symmetric)
    values = torch.from_numpy(x).double()
    back = fake_quantize(values, torch.tensor(affine.scale).double(), affine.zero_point, integers)
    return float((back - values).square().sum())


def draw(kind: str, seed: int = 0, size: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, size)
    made = {
        "normal": x,
        "shifted": x + 3,
        "heavy tails": rng.standard_t(2, size),
        "relu": np.maximum(x, 0),
        "relu6": np.clip(rng.normal(0, 6, size), 0, 6),
        "uniform": rng.uniform(-1, 2, size),
        "negative": -np.abs(x),
        "one outlier": np.append(x, 100.0),
        "tiny": x * 1e-20,
        "huge": x * 1e20,
        "two spikes": rng.choice([-1.0, 5.0], size),
    }
    return made[kind].astype(np.float32)


KINDS = ["normal", "shifted", "heavy tails", "relu", "relu6", "uniform", "negative", "one outlier"]
KINDS += ["tiny", "huge", "two spikes"]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranges_lie_inside_the_values_seen(kind: str, method: RangeMethod, symmetric: bool) -> None:
    x = draw(kind)
    low, high = chosen(method, x, S8_SYMMETRIC if symmetric else S8, symmetric=symmetric)
    assert min(x.min(), 0) <= low < high <= max(x.max(), 0)


@settings(max_examples=25)
@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_any_values(x: np.ndarray) -> None:
    for method in METHODS:
        low, high = chosen(method, x)
        assert min(x.min(), 0) <= low <= high <= max(x.max(), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_exact(kind: str) -> None:
    x = draw(kind)
    assert chosen("minmax", x) == (x.min(), x.max())


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_clipped_stays(method: RangeMethod) -> None:
    same = np.full(9, 3.5, np.float32)
    assert chosen(method, same) == (3.5, 3.5)
    assert chosen(method, np.zeros(4, np.float32)) == (0.0, 0.0)
    assert choose_range(method, Histogram(), -1.0, 2.0, U8) == (-1.0, 2.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "uniform"])
def test_percentiles_are_those_of_numpy(kind: str, percentile: float) -> None:
    x = draw(kind)
    low, high = chosen("percentile", x, percentile=percentile)
    width, ordered = histogram_of(x).width, np.sort(x)
    # numpy interpolates between neighbours, so the neighbours on either side bound both.
    rank = (100 - percentile) / 200 * len(x)
    below, above = max(int(rank) - 2, 0), min(int(rank) + 2, len(x) - 1)
    assert ordered[below] - width <= low <= ordered[above] + width
    assert ordered[-1 - above] - width <= high <= ordered[-1 - below] + width


@pytest.mark.parametrize("kind", ["relu", "relu6", "negative"])
def test_one_sided_percentiles_cut_one_end(kind: str) -> None:
    x = draw(kind)
    low, high = chosen("percentile", x, percentile=99)
    width = histogram_of(x).width
    if kind == "negative":
        assert high == x.max()
        np.testing.assert_allclose(low, np.percentile(x, 1), atol=width)
    else:
        assert low == 0
        np.testing.assert_allclose(high, np.percentile(x, 99), atol=width)


@pytest.mark.parametrize("integers", [U8, S8, IntegerRange(0, 15)], ids=["u8", "s8", "u4"])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_never_worse_than_no_clipping(kind: str, integers: IntegerRange) -> None:
    x = draw(kind)
    best = squared_error(x, chosen("mse", x, integers), integers)
    full = squared_error(x, (float(x.min()), float(x.max())), integers)
    # The choice is made on bins, the error taken on the values themselves: hence the percent.
    assert best <= full * 1.01


@settings(max_examples=30)
@given(
    arrays(np.float32, 400, elements=st.floats(-8, 8, width=32)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_mse_on_drawn_values(x: np.ndarray, seed: int, symmetric: bool) -> None:
    x = x + np.random.default_rng(seed).normal(0, 1, x.shape).astype(np.float32)
    integers = S8_SYMMETRIC if symmetric else S8
    best = squared_error(x, chosen("mse", x, integers, symmetric=symmetric), integers, symmetric)
    full = squared_error(x, (float(x.min()), float(x.max())), integers, symmetric)
    # Bins again; 400 values are few, so where each lies in its bin counts for more.
    assert best <= full * 1.05


def test_mse_cuts_an_outlier_off_at_four_bits() -> None:
    x = draw("one outlier")
    _, high = chosen("mse", x, IntegerRange(0, 15))
    assert high < 50


def test_mse_of_a_uniform_distribution_keeps_it_whole() -> None:
    x = draw("uniform")
    low, high = chosen("mse", x)
    assert low == pytest.approx(-1, rel=0.02)
    assert high == pytest.approx(2, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_does_not_collapse_on_relu6(seed: int) -> None:
    x = draw("relu6", seed)
    assert 0.3 < np.mean(x == 0) < 0.7
    assert np.mean(x == 6) > 0.1
    low, high = chosen("entropy", x)
    assert low == 0
    assert high > 3


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "relu"])
def test_entropy_keeps_nearly_all_of_the_mass(kind: str) -> None:
    x = draw(kind)
    low, high = chosen("entropy", x)
    assert np.mean((x >= low) & (x <= high)) > 0.98


@pytest.mark.parametrize("method", ["mse", "entropy", "percentile"])
@pytest.mark.parametrize("kind", ["normal", "heavy tails", "relu6"])
def test_scale_does_not_matter(method: RangeMethod, kind: str) -> None:
    x = draw(kind)
    low, high = chosen(method, x)
    for power in (-40, 40):
        scaled = chosen(method, np.ldexp(x, power))
        np.testing.assert_allclose(scaled, np.ldexp([low, high], power), rtol=1e-6)
