"""Clipping ranges of activations, chosen on a histogram.

- ``minmax``: the smallest and largest value seen.
- ``moving_average``: the extremes of a batch, on average over the batches, as observers of that
  name approach them; here the order of the batches does not matter.
- ``percentile``: cuts the same share of values off each end.
- ``entropy``: least Kullback-Leibler divergence between the clipped distribution and its
  quantized form (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
- ``mse``: least expected squared error of clipping and rounding together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from edgecompress.numerics.affine import Affine, IntegerRange, fake_quantize
from edgecompress.numerics.histogram import Histogram

__all__ = ["RangeMethod", "choose_range"]

RangeMethod = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]

_Score = Callable[[Tensor, Tensor, Affine, IntegerRange], float]
"""Badness of quantizing a distribution (bin centers, counts) with given parameters."""

_SHARES = torch.linspace(0.2, 1.0, 81, dtype=torch.float64).tolist()


def choose_range(
    method: RangeMethod,
    histogram: Histogram,
    low: float,
    high: float,
    integers: IntegerRange,
    *,
    averaged: tuple[float, float] | None = None,
    percentile: float = 99.999,
    symmetric: bool = False,
) -> tuple[float, float]:
    """The range ``(low, high)`` to quantize a tensor with.

    Args:
        method: One of those above.
        histogram: Of the tensor's values; may hold a sample of them.
        low: Exact smallest value.
        high: Exact largest value.
        integers: What the range will be mapped onto.
        averaged: Extremes of a batch, on average; only for ``moving_average``.
        percentile: Share of values kept, in percent; only for ``percentile``.
        symmetric: Whether the quantizer is symmetric around zero.
    """
    if method == "minmax" or low == high or not histogram.counts.any():
        return low, high
    if method == "moving_average":
        return (low, high) if averaged is None else averaged
    if method == "percentile":
        return _percentile(histogram, low, high, percentile)
    counts = histogram.counts
    if method == "entropy":
        counts = _without_zeros(counts)
    used = counts > 0
    centers = histogram.centers[used].clamp(low, high)
    weights = counts[used].double()
    score = _squared_error if method == "mse" else _divergence
    if low >= 0 or high <= 0 or symmetric:
        candidates = [(low * share, high * share) for share in _SHARES]
        return _least(score, candidates, centers, weights, integers, symmetric)
    # Both ends move: first together, then each on its own around the best.
    best = _least(
        score, [(low * s, high * s) for s in _SHARES], centers, weights, integers, symmetric
    )
    for _ in range(2):
        best = _least(
            score, [(low * s, best[1]) for s in _SHARES], centers, weights, integers, symmetric
        )
        best = _least(
            score, [(best[0], high * s) for s in _SHARES], centers, weights, integers, symmetric
        )
    return best


def _without_zeros(counts: Tensor) -> Tensor:
    """Level the peak at zero that ReLU makes: zero is exact on every grid, so it tells nothing."""
    half = counts.numel() // 2
    levelled = counts.clone()
    levelled[half] = torch.minimum(counts[half], counts[half + 1])
    return levelled


def _least(
    score: _Score,
    candidates: list[tuple[float, float]],
    centers: Tensor,
    weights: Tensor,
    integers: IntegerRange,
    symmetric: bool,
) -> tuple[float, float]:
    # Ties go to the widest range: it is last in the list, and clips least.
    errors = [
        score(centers, weights, Affine.from_range(lo, hi, integers, symmetric=symmetric), integers)
        for lo, hi in candidates
    ]
    least = min(errors)
    return candidates[max(i for i, e in enumerate(errors) if e == least)]


def _percentile(
    histogram: Histogram, low: float, high: float, percentile: float
) -> tuple[float, float]:
    cumulative = histogram.counts.cumsum(0).double() / histogram.counts.sum()
    one_sided = low >= 0 or high <= 0
    tail = (1 - percentile / 100) / (1 if one_sided else 2)
    edges = histogram.centers
    lower = float(edges[int((cumulative < tail).sum())]) - histogram.width / 2
    upper = float(edges[min(int((cumulative < 1 - tail).sum()), len(edges) - 1)])
    upper += histogram.width / 2
    return (
        max(low, lower) if low < 0 else low,
        min(high, upper) if high > 0 else high,
    )


def _squared_error(
    centers: Tensor, weights: Tensor, affine: Affine, integers: IntegerRange
) -> float:
    scale = torch.tensor(affine.scale, dtype=torch.float64)
    error = fake_quantize(centers, scale, affine.zero_point, integers) - centers
    return float((weights * error.square()).sum())


def _divergence(centers: Tensor, weights: Tensor, affine: Affine, integers: IntegerRange) -> float:
    """KL divergence of the distribution from its clipped and quantized form.

    Each integer level spreads its mass over the bins that it stands for, in proportion to none
    but their number; clipped mass sits in the outermost levels, where few bins share it.
    """
    scale = affine.scale
    low = (integers.low - affine.zero_point - 0.5) * scale
    high = (integers.high - affine.zero_point + 0.5) * scale
    inside = (centers >= low) & (centers <= high)
    if not bool(inside.any()):
        return float("inf")
    kept = weights[inside].clone()
    reference = kept.clone()
    reference[0] += weights[centers < low].sum()
    reference[-1] += weights[centers > high].sum()
    level = torch.round(centers[inside] / scale).to(torch.int64)
    level -= level.min()
    mass = torch.zeros(int(level.max()) + 1, dtype=torch.float64).index_add_(0, level, kept)
    bins = torch.zeros_like(mass).index_add_(0, level, torch.ones_like(kept))
    quantized = mass[level] / bins[level]
    p = reference / reference.sum()
    q = quantized / quantized.sum()
    return float((p * (p / q).log()).sum())
