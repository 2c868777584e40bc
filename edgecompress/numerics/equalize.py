"""Factors that move magnitude between a tensor's channels and the weights that read them.

Dividing channel j of an activation by ``s_j`` and multiplying the weights that read it by ``s_j``
changes nothing in real numbers, but decides how well both fit on a grid of few integers.

- SmoothQuant (Xiao et al., ICML 2023, arXiv 2211.10438, equation 4):
  ``s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)``.
- Cross-layer equalization (Nagel et al., ICCV 2019, arXiv 1906.04721, equation 11):
  ``s_j = sqrt(r1_j r2_j) / r2_j``, with which both layers' weights span the same range.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_layer_scales", "powers_of_two", "smoothing_scales"]

# Factors past this would only move the outlier to the other side, and float32 sums notice.
_WIDEST = 2.0**12


def smoothing_scales(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """What to divide each channel of an activation by.

    Args:
        activations: float [channels], largest absolute value of each channel.
        weights: float [channels], largest absolute weight that reads the channel, over all layers.
        alpha: Share of the difficulty that moves to the weights: 0 evens out the weights alone, 1
            the activations alone.

    Returns:
        float64 [channels], positive, of geometric mean 1; a channel that is zero on either side
        gets 1.
    """
    return _ratio(activations, weights, alpha, 1.0 - alpha, centred=True)


def cross_layer_scales(first: Tensor, second: Tensor) -> Tensor:
    """What to divide the rows of a layer's weights by, and multiply the next one's columns by.

    Args:
        first: float [channels], largest absolute weight that makes the channel.
        second: float [channels], largest absolute weight that reads it.

    Returns:
        float64 [channels], positive; a channel that is zero on either side gets 1.
    """
    return _ratio(first, second, 0.5, 0.5)


def powers_of_two(scales: Tensor) -> Tensor:
    """The nearest powers of two (in the logarithm): multiplying by them loses no bit."""
    return torch.exp2(torch.round(torch.log2(scales.double())))


def _ratio(
    over: Tensor, under: Tensor, upper: float, lower: float, *, centred: bool = False
) -> Tensor:
    """``over**upper / under**lower`` where both are positive, and 1 elsewhere."""
    scales = torch.ones(over.shape, dtype=torch.float64)
    alive = (over > 0) & (under > 0)
    logs = upper * over[alive].double().log() - lower * under[alive].double().log()
    if centred and logs.numel():
        logs = logs - logs.mean()
    scales[alive] = logs.exp().clamp(1 / _WIDEST, _WIDEST)
    return scales
