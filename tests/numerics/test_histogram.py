"""The histogram: exact whatever the order of its values, and right about where they lie."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgecompress.numerics.histogram import HALF, Histogram

magnitudes = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-2, 2, width=32)
values = arrays(np.float32, array_shapes(max_dims=2, max_side=12), elements=magnitudes)


def of(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(torch.from_numpy(batch), float(np.abs(batch).max()))
    return histogram


def assert_same(a: Histogram, b: Histogram) -> None:
    assert a.exponent == b.exponent
    assert torch.equal(a.counts, b.counts)


def edges(histogram: Histogram) -> np.ndarray:
    return np.arange(-HALF, HALF + 1, dtype=np.float64) * histogram.width


@given(values)
def test_values_land_in_their_bins(x: np.ndarray) -> None:
    histogram = of(x)
    assert int(histogram.counts.sum()) == x.size
    # numpy closes its last bin on the right; no value lies on that edge.
    expected, _ = np.histogram(x.astype(np.float64), edges(histogram))
    np.testing.assert_array_equal(histogram.counts, expected)


@given(values)
def test_bins_are_as_fine_as_the_largest_value_allows(x: np.ndarray) -> None:
    histogram, largest = of(x), float(np.abs(x).max())
    assert largest < HALF * histogram.width
    assert histogram.exponent == -149 or largest >= HALF * histogram.width / 2


@given(st.lists(values, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_order_and_batches_do_not_matter(batches: list[np.ndarray], random: object) -> None:
    flat = np.concatenate([b.ravel() for b in batches])
    random.shuffle(batches)  # type: ignore[attr-defined]
    assert_same(of(*batches), of(flat))
    assert_same(of(*flat[:, None]), of(flat[::-1].copy()))


@given(st.lists(values, min_size=3, max_size=3))
def test_merging_is_exact_commutative_and_associative(batches: list[np.ndarray]) -> None:
    a, b, c = (of(batch) for batch in batches)
    whole = of(*batches)
    before = a.counts.clone()
    assert_same(a.merge(b).merge(c), whole)
    assert_same(a.merge(b.merge(c)), whole)
    assert_same(functools.reduce(Histogram.merge, (c, a, b)), whole)
    assert torch.equal(a.counts, before)


@pytest.mark.parametrize("largest", [1e-30, 1.0, 1e30])
def test_coarsening_keeps_counts_and_signs(largest: float) -> None:
    small = np.float32([-1e-38, -0.0, 0.0, 1e-38])
    histogram = of(small)
    histogram.add(torch.tensor([largest]), largest)
    assert int(histogram.counts.sum()) == 5
    assert int(histogram.counts[:HALF].sum()) == 1
    assert int(histogram.counts[HALF]) == 3


def test_zeros_alone() -> None:
    histogram = of(np.zeros((3, 4), np.float32))
    assert histogram.exponent == -149
    assert int(histogram.counts[HALF]) == 12 == int(histogram.counts.sum())
    assert_same(histogram.merge(Histogram()), histogram)
    assert_same(Histogram().merge(of(np.float32([1]))), of(np.float32([1])))


def test_an_upper_bound_instead_of_the_largest_value() -> None:
    histogram = Histogram()
    histogram.add(torch.tensor([0.25, -0.25]), 1000.0)
    assert histogram.exponent == math.ceil(math.log2(1000)) - 11
    assert int(histogram.counts[HALF]) == int(histogram.counts[HALF - 1]) == 1


def test_centers_lie_between_the_edges() -> None:
    histogram = of(np.float32([3.0]))
    bounds = edges(histogram)
    np.testing.assert_array_equal(histogram.centers, (bounds[1:] + bounds[:-1]) / 2)


def test_memory_is_constant() -> None:
    histogram = of(*(np.float32([10.0**e]) for e in range(-30, 31)))
    assert histogram.counts.shape == (2 * HALF,)
    assert int(histogram.counts.sum()) == 61
