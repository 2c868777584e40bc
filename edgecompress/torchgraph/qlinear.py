"""Products of quantized tensors with a float or quantized result.

Sums run in float64, which holds every int32 exactly. What follows runs in float32, the format in
which onnxruntime computes the factor between the integer sums and the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.torchgraph.convolution import conv
from edgecompress.torchgraph.quantize import centred, dynamic_quantize_linear
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported

__all__ = ["requantize"]

_ORT = "com.microsoft"


def requantize(real: Tensor, zero_point: Tensor) -> Tensor:
    """Numbers in units of the scale -> rounded half to even, moved and clipped to the type."""
    info = torch.iinfo(zero_point.dtype)
    moved = torch.round(real) + zero_point.to(real.dtype)
    return moved.clamp(info.min, info.max).to(zero_point.dtype)


def _per_axis(scale: Tensor, rank: int, axis: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


@op("QLinearConv", since=10)
@op("QLinearConv", since=1, domain=_ORT)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution of 8-bit tensors; the bias is int32 in units of ``x_scale * w_scale``.

    Raises:
        ModelError: ``channels_last``, which onnxruntime makes for itself only.
    """
    if channels_last:
        raise unsupported("QLinearConv with channels_last")
    sums = conv(
        centred(x, x_zero_point, 1),
        centred(w, w_zero_point, 0),
        None if bias is None else bias.to(torch.float64),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    factor = _per_axis(x_scale * w_scale / y_scale, sums.ndim, 1)
    return requantize(sums.to(torch.float32) * factor, y_zero_point)


def _matrix_scale(scale: Tensor, rank: int, axis: int) -> Tensor:
    return scale if scale.ndim > 1 else _per_axis(scale, rank, axis)


@op("QLinearMatMul", since=10)
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """Product of 8-bit matrices; scales per tensor, row of a or column of b."""
    sums = centred(a, a_zero_point, -2) @ centred(b, b_zero_point, -1)
    rank = sums.ndim
    factor = _matrix_scale(a_scale.float(), rank, -2) * _matrix_scale(b_scale.float(), rank, -1)
    return requantize(sums.to(torch.float32) * (factor / y_scale.float()), y_zero_point)


@op("QGemm", since=1, domain=_ORT)
def qgemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803  (the operator's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """``a @ b + c`` of 8-bit matrices, c in units of ``alpha * a_scale * b_scale``; float32
    without ``y_scale``.
    """  # noqa: D205
    left = centred(a, a_zero_point, -2)
    right = centred(b, b_zero_point, 0 if transB else 1)
    sums = (left.t() if transA else left) @ (right.t() if transB else right)
    if c is not None:
        sums = sums + c
    factor = alpha * a_scale * b_scale
    if y_scale is None:
        return sums.to(torch.float32) * factor
    zero = torch.zeros((), dtype=a.dtype) if y_zero_point is None else y_zero_point
    return requantize(sums.to(torch.float32) * (factor / y_scale), zero)


@op("MatMulIntegerToFloat", since=1, domain=_ORT)
def matmul_integer_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero_point: Tensor | None = None,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Product of 8-bit matrices as real numbers; scales per tensor or column of b."""
    sums = centred(a, a_zero_point, -2) @ centred(b, b_zero_point, -1)
    y = sums.to(a_scale.dtype) * (a_scale * _matrix_scale(b_scale, sums.ndim, -1))
    return y if bias is None else y + bias


@op("DynamicQuantizeMatMul", since=1, domain=_ORT)
def dynamic_quantize_matmul(
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """:func:`matmul_integer_to_float` of a float matrix that is quantized to its own range."""
    values, scale, zero_point = dynamic_quantize_linear(a)
    return matmul_integer_to_float(values, b, scale, b_scale, zero_point, b_zero_point, bias)
