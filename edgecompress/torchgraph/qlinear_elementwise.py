"""onnxruntime's operators on quantized tensors that are not products: real numbers in between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.errors import ModelError
from edgecompress.torchgraph.activation import softmax, softmax_matrix
from edgecompress.torchgraph.pooling import average_pool, global_average_pool
from edgecompress.torchgraph.qlinear import requantize
from edgecompress.torchgraph.quantize import centred, dequantize_linear
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported

_ORT = "com.microsoft"


def _quantize(real: Tensor, scale: Tensor, zero_point: Tensor | None, like: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=like.dtype) if zero_point is None else zero_point
    return requantize(real / scale, zero)


def _centred(x: Tensor, zero_point: Tensor | None) -> Tensor:
    return centred(x, zero_point, 0).to(torch.float32)


@op("QLinearAdd", since=1, domain=_ORT)
def qlinear_add(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    c_scale: Tensor,
    c_zero_point: Tensor | None = None,
) -> Tensor:
    """Sum with broadcasting.

    All zero points are one constant, and the sum is rounded together with it, as onnxruntime does:
    real numbers halfway between two integers are frequent where the scales are alike.
    """
    zero_a, zero_b, zero_c = (
        torch.zeros(()) if zero is None else zero.float()
        for zero in (a_zero_point, b_zero_point, c_zero_point)
    )
    ratio_a, ratio_b = a_scale / c_scale, b_scale / c_scale
    shift = zero_c - (ratio_a * zero_a + ratio_b * zero_b)
    partial = _fused(b, ratio_b, shift)
    return _rounded(_fused(a, ratio_a, partial), a.dtype)


def _fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """``x * factor + addend`` with one rounding to float32."""
    return (x.double() * factor + addend).float()


def _rounded(real: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    return real.round().clamp(info.min, info.max).to(dtype)


@op("QLinearMul", since=1, domain=_ORT)
def qlinear_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    c_scale: Tensor,
    c_zero_point: Tensor | None = None,
) -> Tensor:
    """Product with broadcasting; rounded together with the zero point, as :func:`qlinear_add`."""
    product = _centred(a, a_zero_point) * _centred(b, b_zero_point)
    zero = torch.zeros(()) if c_zero_point is None else c_zero_point.float()
    return _rounded(_fused(product, a_scale * b_scale / c_scale, zero), a.dtype)


@op("QLinearConcat", since=1, domain=_ORT)
def qlinear_concat(scale: Tensor, zero_point: Tensor, *inputs: Tensor, axis: int) -> Tensor:
    """Concatenation; the inputs come as triples of values, scale and zero point."""
    if len(inputs) % 3:
        raise ModelError(f"expected triples of values, scale, zero point, got {len(inputs)} inputs")
    parts = [
        _quantize(_centred(x, zero) * s, scale, zero_point, x)
        for x, s, zero in zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
    ]
    return torch.cat(parts, axis)


@op("QLinearWhere", since=1, domain=_ORT)
def qlinear_where(
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    z_scale: Tensor,
    z_zero_point: Tensor,
) -> Tensor:
    """Elements of ``x`` where the condition holds, else of ``y``."""
    return torch.where(
        condition,
        _quantize(_centred(x, x_zero_point) * x_scale, z_scale, z_zero_point, x),
        _quantize(_centred(y, y_zero_point) * y_scale, z_scale, z_zero_point, y),
    )


def _through(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None,
) -> Tensor:
    """A function of the real numbers that the integers stand for."""
    real = dequantize_linear(x, x_scale, x_zero_point)
    return _quantize(function(real), y_scale, y_zero_point, x)


@op("QLinearLeakyRelu", since=1, domain=_ORT)
def qlinear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """Slope ``alpha`` below zero."""

    def slope(real: Tensor) -> Tensor:
        return functional.leaky_relu(real, alpha)

    return _through(slope, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearSigmoid", since=1, domain=_ORT)
def qlinear_sigmoid(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return _through(torch.sigmoid, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearSoftmax", since=1, domain=_ORT)
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> Tensor:
    """Softmax over one axis, or before opset 13 over all from ``axis`` on.

    onnxruntime takes exponentials from a table and may be one step away.
    """

    def over_axis(real: Tensor) -> Tensor:
        return softmax_matrix(real, axis=axis) if opset < 13 else softmax(real, axis=axis)

    return _through(over_axis, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearReduceMean", since=1, domain=_ORT)
def qlinear_reduce_mean(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axes: tuple[int, ...],
    keepdims: int,
) -> Tensor:
    """Mean over axes."""

    def mean(real: Tensor) -> Tensor:
        return real.mean(list(axes) or None, keepdim=bool(keepdims))

    return _through(mean, x, x_scale, x_zero_point, y_scale, y_zero_point)


def _refuse_channels_last(channels_last: int) -> None:
    if channels_last:
        raise unsupported("a pool with channels_last")


@op("QLinearGlobalAveragePool", since=1, domain=_ORT)
def qlinear_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    """Mean over the spatial axes, which stay with length 1.

    Raises:
        ModelError: ``channels_last``, which onnxruntime makes for itself only.
    """
    _refuse_channels_last(channels_last)
    mean = global_average_pool(centred(x, x_zero_point, 1)).to(torch.float32)
    return requantize(mean * (x_scale / y_scale), y_zero_point)


@op("QLinearAveragePool", since=1, domain=_ORT)
def qlinear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Mean of each window.

    Raises:
        ModelError: ``channels_last``, which onnxruntime makes for itself only.
    """
    _refuse_channels_last(channels_last)

    def pool(real: Tensor) -> Tensor:
        return average_pool(
            real,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            kernel_shape=kernel_shape,
            pads=pads,
            strides=strides,
        )

    return _through(pool, x, x_scale, x_zero_point, y_scale, y_zero_point)
