"""Quantization and its inverse, and products of quantized matrices.

Rounding is half to even, integers saturate; both as the specification has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.torchgraph.casting import cast_to
from edgecompress.torchgraph.convolution import conv
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, torch_dtype

__all__ = ["centred", "dequantize_linear", "dynamic_quantize_linear", "quantize_linear"]


def _spread(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """Scale or zero point in a shape that broadcasts against ``x``: per tensor, axis or block."""
    if parameter.numel() == 1 and not block_size:
        return parameter.reshape(())
    along = axis_of(axis, x.ndim)
    if block_size:
        return parameter.repeat_interleave(block_size, along).narrow(along, 0, x.shape[along])
    return parameter.reshape([-1 if i == along else 1 for i in range(x.ndim)])


@op("QuantizeLinear", since=10)
@op("QuantizeLinear", since=1, domain="com.microsoft")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """``saturate(round(x / scale) + zero_point)``; the rounding lets no gradient through.

    Raises:
        ModelError: The output type has no torch counterpart (4-bit types among them).
    """
    dtype = zero_point.dtype if zero_point is not None else torch.uint8
    if zero_point is None and output_dtype:
        dtype = torch_dtype(output_dtype)
    compute = torch_dtype(precision) if precision else torch.promote_types(x.dtype, torch.float32)
    if not precision and x.dtype in (torch.float16, torch.bfloat16) and scale.dtype == x.dtype:
        compute = x.dtype
    ratio = x.to(compute) / _spread(scale, x, axis, block_size).to(compute)
    if dtype.is_floating_point:
        return cast_to(ratio, dtype, saturate=bool(saturate))
    # In place, since most of the time goes into memory: the ratio is nobody else's.
    rounded = ratio.to(torch.promote_types(compute, torch.float32)).round_()
    if zero_point is not None:
        rounded.add_(_spread(zero_point, x, axis, block_size).to(rounded.dtype))
    info = torch.iinfo(dtype)
    return rounded.clamp_(info.min, info.max).to(dtype)


@op("DequantizeLinear", since=10, widens=True)
@op("DequantizeLinear", since=1, domain="com.microsoft", widens=True)
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """``(x - zero_point) * scale``; differentiable in the scale."""
    dtype = torch_dtype(output_dtype) if output_dtype else scale.dtype
    wide = torch.promote_types(scale.dtype, torch.float32)
    y = x.to(wide, copy=True)
    if zero_point is not None:
        y.sub_(_spread(zero_point, x, axis, block_size).to(wide))
    step = _spread(scale, x, axis, block_size).to(wide)
    return (y * step if step.requires_grad else y.mul_(step)).to(dtype)


@op("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 values, scale and zero point of the range of ``x``, widened to hold zero."""
    low = x.min().clamp(max=0)
    high = x.max().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round((0 - low) / scale).clamp(0, 255).to(torch.uint8)
    return quantize_linear(x, scale, zero_point), scale, zero_point


def centred(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Integers minus their zero point, in float64, which is exact for sums of int32 size."""
    y = x.to(torch.float64)
    if zero_point is None:
        return y
    zero = zero_point.to(torch.float64)
    if zero.numel() == 1:
        return y - zero.reshape(())
    if zero.ndim > 1:
        return y - zero
    return y - zero.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


@op("MatMulInteger", since=10)
def matmul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """int32 product of 8-bit matrices; zero points per tensor, row of a or column of b."""
    product = centred(a, a_zero_point, -2) @ centred(b, b_zero_point, -1)
    return product.to(torch.int32)


@op("ConvInteger", since=10)
def conv_integer(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """int32 convolution of 8-bit tensors; the padding stands for the real number 0."""
    y = conv(
        centred(x, x_zero_point, 1),
        centred(weight, w_zero_point, 0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return y.to(torch.int32)
