"""Affine (uniform) quantization: ``q = clip(round(x / scale) + zero_point)``.

Follows ONNX QuantizeLinear: round half to even, saturate. Scales are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["IntegerRange", "Affine", "fake_quantize", "quantize", "suit_biases", "weight_scales"]

# A bias is stored in steps of input scale x weight scale: so many of them at most, which leaves
# room for its correction, and so many where no weight has a say.
_MOST_BIAS_STEPS = 2**30
_GOOD_BIAS_STEPS = 2**20
_LEAST_SCALE = torch.finfo(torch.float32).tiny  # runtimes may flush smaller numbers to zero
_ELEMENTS_AT_ONCE = 2**17  # what a search goes over many times stays in the processor's cache


@dataclass(frozen=True)
class IntegerRange:
    """Integers that a quantized tensor may take, both ends included."""

    low: int
    high: int

    @classmethod
    def of(cls, dtype: str, bits: int | None = None, *, symmetric: bool = False) -> IntegerRange:
        """Range of an integer type, perhaps narrowed.

        Args:
            dtype: ``uint4``, ``int8``, ``uint16`` and the like.
            bits: Width, at most the type's own, which is the default.
            symmetric: Leave out the lowest number of a signed type.
        """
        bits = int(dtype.removeprefix("u").removeprefix("int")) if bits is None else bits
        if dtype.startswith("u"):
            return cls(0, 2**bits - 1)
        low = -(2 ** (bits - 1))
        return cls(low + 1 if symmetric else low, 2 ** (bits - 1) - 1)


@dataclass(frozen=True)
class Affine:
    """Scale and zero point of a tensor."""

    scale: float
    zero_point: int

    @classmethod
    def from_range(
        cls, low: float, high: float, integers: IntegerRange, *, symmetric: bool = False
    ) -> Affine:
        """Parameters whose representable range covers ``[min(low, 0), max(high, 0)]``.

        Zero is always represented exactly, since padding and ReLU produce it. Where one end of
        the range is zero, the representable range does not exceed the other end: a runtime may
        then drop a ReLU or Clip in front of the quantizer. Ranges too narrow for a normal float32
        scale count as zero.

        Args:
            low: Smallest value to represent.
            high: Largest value to represent.
            integers: The integers to map onto.
            symmetric: Put the zero point in the middle of the type's range.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        steps = integers.high - integers.low
        if symmetric:
            middle = (integers.low + integers.high + 1) // 2
            reach = max(abs(low), abs(high))
            scale = _float32(reach / (integers.high - middle))
            return cls(scale if scale >= _LEAST_SCALE else 1.0, middle)
        scale = _float32((high - low) / steps)
        if scale < _LEAST_SCALE:
            return cls(1.0, integers.low)
        if low == 0.0:
            return cls(_at_most(scale, steps, high), integers.low)
        if high == 0.0:
            return cls(_at_most(scale, steps, -low), integers.high)
        zero_point = integers.low + round(-low / scale)
        return cls(scale, max(integers.low, min(integers.high, zero_point)))


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _at_most(scale: float, steps: int, reach: float) -> float:
    """The largest float32 scale not above ``scale`` whose ``steps`` do not pass ``reach``."""
    candidate = torch.tensor(scale, dtype=torch.float32)
    limit = torch.tensor(reach, dtype=torch.float32)
    while candidate * steps > limit:
        candidate = torch.nextafter(candidate, torch.zeros(()))
    return float(candidate)


def quantize(x: Tensor, scale: Tensor, zero_point: int, integers: IntegerRange) -> Tensor:
    """Integers of ``x`` as float values; ``scale`` broadcasts against ``x``."""
    return torch.clamp(torch.round(x / scale) + zero_point, integers.low, integers.high)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: int, integers: IntegerRange) -> Tensor:
    """``x`` after quantization and back."""
    return (quantize(x, scale, zero_point, integers) - zero_point) * scale


def weight_scales(weight: Tensor, integers: IntegerRange, *, method: str = "mse") -> Tensor:
    """Symmetric scale of each row of a weight matrix.

    Args:
        weight: float [channels, elements].
        integers: Symmetric range, e.g. -127..127.
        method: ``minmax`` (largest absolute value), or ``mse`` (the clipping, of 40 between 0.6
            and 1 times the largest absolute value, with the least squared error).

    Returns:
        float32 [channels], positive; 1 for a row of zeros.
    """
    largest = weight.abs().amax(1).float()
    full = largest / integers.high
    full = torch.where(full >= _LEAST_SCALE, full, torch.ones_like(full))
    if method == "minmax":
        return full
    rows = max(1, _ELEMENTS_AT_ONCE // max(1, weight.shape[1]))
    parts = zip(torch.split(weight, rows), torch.split(full, rows), strict=True)
    return torch.cat([_least_squares(part, scales, integers) for part, scales in parts])


def _least_squares(weight: Tensor, full: Tensor, integers: IntegerRange) -> Tensor:
    """The scales between 0.6 and 1 times ``full`` that leave the least squared error."""
    best, least = full.clone(), torch.full_like(full, torch.inf)
    rounded = torch.empty_like(weight)
    for share in torch.linspace(1.0, 0.6, 41).tolist():
        scale = full * share
        torch.div(weight, scale[:, None], out=rounded)
        rounded.round_().clamp_(integers.low, integers.high).mul_(scale[:, None])
        error = rounded.sub_(weight).square_().sum(1)
        better = error < least
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
    return best


def suit_biases(
    scales: Tensor, largest: Tensor, biases: Sequence[tuple[Tensor | None, float]]
) -> Tensor:
    """Weight scales with which int32 biases neither overflow nor lose their precision.

    Args:
        scales: float32 [channels], or [1] for the whole weight.
        largest: float32 [channels], largest absolute weight.
        biases: Bias [channels] and input scale of each layer that uses the weight.

    Returns:
        float32 of the shape of ``scales``; larger where a bias would overflow, and chosen for the
        bias alone where all weights round to zero.
    """
    reach = torch.zeros_like(largest, dtype=torch.float64)
    least = _LEAST_SCALE / min(input_scale for _, input_scale in biases)
    for bias, input_scale in biases:
        if bias is not None:
            reach = torch.maximum(reach, bias.double().abs() / input_scale)
    if scales.numel() == 1:
        largest, reach = largest.max().reshape(1), reach.max().reshape(1)
    suited = scales.double().clamp(min=least)
    dead = (largest < suited / 2) & (reach > 0)
    suited = torch.where(dead, reach / _GOOD_BIAS_STEPS, suited)
    return torch.maximum(suited, reach / _MOST_BIAS_STEPS).clamp(min=least).float()
