"""Arithmetic, comparison and logic, element by element with numpy's broadcasting."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import scalar

Unary = Callable[[Tensor], Tensor]
Binary = Callable[[Tensor, Tensor], Tensor]

# torch stores these but hardly computes with them; int64 holds all their values.
_STORED_ONLY = (torch.uint16, torch.uint32)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


# No type of torch's holds the values of uint64 and computes with them as well.
_NUMPY: dict[Binary, Callable[..., Any]] = {
    torch.add: np.add,
    _divide: np.floor_divide,
    torch.bitwise_left_shift: np.left_shift,
    torch.bitwise_right_shift: np.right_shift,
    torch.fmod: np.fmod,
    torch.ge: np.greater_equal,
    torch.gt: np.greater,
    torch.le: np.less_equal,
    torch.lt: np.less,
    torch.maximum: np.maximum,
    torch.minimum: np.minimum,
    torch.mul: np.multiply,
    torch.remainder: np.remainder,
    torch.sub: np.subtract,
}


def _by_numpy(function: Binary, a: Tensor, b: Tensor) -> Tensor:
    result = _NUMPY[function](a.cpu().numpy(), b.cpu().numpy())
    return torch.from_numpy(np.asarray(result)).to(a.device)


def _widened(function: Binary) -> Binary:
    """Compute on int64, or by numpy, where torch has no kernels for the unsigned type."""

    @functools.wraps(function)
    def run(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == torch.uint64 and function in _NUMPY:
            return _by_numpy(function, a, b)
        if a.dtype not in _STORED_ONLY:
            return function(a, b)
        result = function(a.long(), b.long())
        return result.to(a.dtype) if result.dtype == torch.int64 else result

    return run


def _bitwise_not(x: Tensor) -> Tensor:
    if x.dtype in (*_STORED_ONLY, torch.uint64):
        return _widened(torch.bitwise_xor)(x, torch.full_like(x, torch.iinfo(x.dtype).max))
    return torch.bitwise_not(x)


_UNARY: dict[str, Unary] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": _bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

_BINARY: dict[str, Binary] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

# Opset of the first version with the meaning above; 1 where it never changed.
_SINCE = {
    "Add": 7,
    "And": 7,
    "BitwiseAnd": 18,
    "BitwiseNot": 18,
    "BitwiseOr": 18,
    "BitwiseXor": 18,
    "Det": 11,
    "Div": 7,
    "Equal": 7,
    "Greater": 7,
    "GreaterOrEqual": 12,
    "IsNaN": 9,
    "Less": 7,
    "LessOrEqual": 12,
    "Mul": 7,
    "Or": 7,
    "Round": 11,
    "Sub": 7,
    "Xor": 7,
}

for _op_type, _unary in _UNARY.items():
    op(_op_type, _SINCE.get(_op_type, 1))(_unary)
for _op_type, _binary in _BINARY.items():
    op(_op_type, _SINCE.get(_op_type, 1))(_widened(_binary))


@op("Pow", since=7)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base, whatever the exponent's."""
    if exponent.ndim == 0 and exponent.device.type == "cpu" and not exponent.requires_grad:
        return base.pow(scalar(exponent)).to(base.dtype)
    if base.is_floating_point() and not exponent.is_floating_point():
        exponent = exponent.to(base.dtype)
    return base.pow(exponent).to(base.dtype)


@op("Mod", since=10)
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Sign of the divisor, or with ``fmod`` of the dividend."""
    return _widened(torch.fmod if fmod else torch.remainder)(a, b)


@op("BitShift", since=11)
def bit_shift(x: Tensor, by: Tensor, *, direction: str) -> Tensor:
    """Logical shift of unsigned integers."""
    shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
    return _widened(shift)(x, by)


def _fold(function: Binary) -> Callable[..., Tensor]:
    def run(*inputs: Tensor) -> Tensor:
        return functools.reduce(_widened(function), inputs)

    return run


op("Max", since=8)(_fold(torch.maximum))
op("Min", since=8)(_fold(torch.minimum))
op("Sum", since=8)(_fold(torch.add))


@op("Mean", since=8)
def mean(*inputs: Tensor) -> Tensor:
    """Mean over the inputs, not over elements."""
    return functools.reduce(operator.add, inputs) / len(inputs)


@op("IsInf", since=10)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Infinite, with the sign that is asked for."""
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_negative:
        return torch.isneginf(x)
    return torch.isposinf(x) if detect_positive else torch.zeros_like(x, dtype=torch.bool)


@op("Where", since=9)
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Elements of ``a`` where the condition holds, else of ``b``."""
    return torch.where(condition, a, b)


@op("Clip", since=1)
def clip_attributes(x: Tensor, *, min_: float | None = None, max_: float | None = None) -> Tensor:
    """Clip before opset 11: the bounds are attributes."""
    return x if min_ is None and max_ is None else torch.clamp(x, min_, max_)


@op("Clip", since=11, host=(1, 2))
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip to bounds that are inputs, each of them optional."""
    if _is_number(low) and _is_number(high):
        bounds = [None if bound is None else scalar(bound) for bound in (low, high)]
        return x if bounds == [None, None] else _clamp(x, *bounds)
    if low is not None:
        x = torch.maximum(x, low.to(x.device))
    return x if high is None else torch.minimum(x, high.to(x.device))


def _is_number(bound: Tensor | None) -> bool:
    return bound is None or (bound.device.type == "cpu" and not bound.requires_grad)


def _clamp(x: Tensor, low: float | None, high: float | None) -> Tensor:
    if x.dtype in _STORED_ONLY:
        return torch.clamp(x.long(), low, high).to(x.dtype)
    return torch.clamp(x, low, high)
