"""Gradients across QuantizeLinear -> DequantizeLinear: the clipped straight-through estimator.

Rounding has no useful derivative. Where both nodes share scale and zero point, the gradient of the
dequantized value is handed to the float value as if the pair were the identity, and is zero where
the integer saturates (Bengio et al. 2013; clipped as in Hubara et al. 2016). Values are those of
the two nodes, bit by bit; scales and zero points are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.torchgraph.constants import constant_tensor, is_fixed
from edgecompress.torchgraph.quantize import _spread as spread

__all__ = ["float_side", "straight_through"]

_SHARED = ("axis", "block_size")


def float_side(node: ir.Node) -> ir.Value | None:
    """The float value that a DequantizeLinear brings back, if a QuantizeLinear made its input.

    None where the parameters of the two differ, or cannot be compared.
    """
    quantizer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
    if node.op_type != "DequantizeLinear" or quantizer is None:
        return None
    if quantizer.op_type != "QuantizeLinear":
        return None
    same_form = all(_integer(node, name) == _integer(quantizer, name) for name in _SHARED)
    same_numbers = all(_same(_input(node, i), _input(quantizer, i)) for i in (1, 2))
    return quantizer.inputs[0] if same_form and same_numbers else None


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _integer(node: ir.Node, name: str) -> int:
    if name in node.attributes:
        return node.attributes[name].as_int()
    return 1 if name == "axis" else 0


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    """The same value, or constants of the same numbers; no zero point is one of zeros."""
    if a is b:
        return True
    given = [value for value in (a, b) if value is not None]
    if not all(is_fixed(value) for value in given):
        return False
    first, *others = (constant_tensor(value).numpy() for value in given)
    if not others:
        return not first.any()
    second = others[0]
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


def straight_through(
    dequantize: Callable[..., Any],
    quantized: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    x: Tensor,
    *,
    axis: int = 1,
    block_size: int = 0,
) -> Tensor:
    """What ``dequantize`` gives, with a gradient to ``x``, of which ``quantized`` was made."""
    y: Tensor = dequantize(quantized, scale, zero_point)
    if not x.requires_grad:
        return y
    with torch.no_grad():
        unsaturated = _unsaturated(quantized, scale, zero_point, x, axis, block_size)
    result: Tensor = _StraightThrough.apply(y, x, unsaturated)  # type: ignore[no-untyped-call]
    return result


def _unsaturated(
    quantized: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    x: Tensor,
    axis: int,
    block_size: int,
) -> Tensor:
    """Where the integer is the nearest one: at most half a step away, up to the rounding of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    ratio = x.to(wide) / spread(scale, x, axis, block_size).to(wide)
    if quantized.dtype.is_floating_point:
        return ratio.abs() <= torch.finfo(quantized.dtype).max
    level = quantized.to(wide)
    if zero_point is not None:
        level = level - spread(zero_point, x, axis, block_size).to(wide)
    return (ratio - level).abs() <= 0.5 + ratio.abs() * torch.finfo(x.dtype).eps


class _StraightThrough(torch.autograd.Function):
    """``y`` as it is; its gradient goes to ``y`` and, where nothing saturates, to ``x``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, unsaturated: Tensor) -> Tensor:
        ctx.save_for_backward(unsaturated)
        ctx.dtype = x.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        (unsaturated,) = ctx.saved_tensors
        return gradient, (gradient * unsaturated).to(ctx.dtype), None
