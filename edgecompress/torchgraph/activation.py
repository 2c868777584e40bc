"""Activation functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, unsupported

op("Relu", since=1)(torch.relu)
op("Sigmoid", since=1)(torch.sigmoid)
op("Tanh", since=1)(torch.tanh)


@op("LeakyRelu", since=1)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Slope ``alpha`` below zero."""
    return functional.leaky_relu(x, alpha)


@op("PRelu", since=7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Slope below zero, broadcast to ``x`` from the right."""
    return torch.where(x < 0, x * slope, x)


@op("Elu", since=1)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha * (exp(x) - 1)`` below zero."""
    return functional.elu(x, alpha)


@op("Celu", since=12)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``alpha * (exp(x / alpha) - 1)`` below zero."""
    return functional.celu(x, alpha)


@op("Selu", since=1)
def selu(
    x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    """``gamma`` times :func:`elu`."""
    return gamma * functional.elu(x, alpha)


@op("Gelu", since=20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``x * Phi(x)``, or its tanh approximation."""
    return functional.gelu(x, approximate=approximate)


@op("HardSigmoid", since=1)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha * x + beta`` clipped to [0, 1]."""
    return torch.clamp(x * alpha + beta, 0, 1)


@op("HardSwish", since=14)
def hard_swish(x: Tensor) -> Tensor:
    """``x * clip(x / 6 + 0.5, 0, 1)``."""
    return functional.hardswish(x)


@op("Mish", since=18)
def mish(x: Tensor) -> Tensor:
    """``x * tanh(softplus(x))``."""
    return functional.mish(x)


@op("Swish", since=24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x * sigmoid(alpha * x)``."""
    return functional.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("SwiGLU", since=28)
def swiglu(gate: Tensor, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``swish(gate) * x``."""
    return swish(gate, alpha=alpha) * x


@op("Softplus", since=1)
def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``."""
    return functional.softplus(x)


@op("Softsign", since=1)
def softsign(x: Tensor) -> Tensor:
    """``x / (1 + |x|)``."""
    return functional.softsign(x)


@op("ThresholdedRelu", since=10)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` above ``alpha``, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op("Shrink", since=9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """``x`` moved towards zero by ``bias`` outside of [-lambd, lambd], else 0."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def _as_matrix(x: Tensor, axis: int) -> Tensor:
    """Axes before ``axis`` as rows, the others as columns; the form before opset 13."""
    return x.reshape(math.prod(x.shape[: axis_of(axis, x.ndim)]), -1)


@op("Softmax", since=1)
def softmax_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax before opset 13: over all axes from ``axis`` on, taken as one."""
    return torch.softmax(_as_matrix(x, axis), -1).reshape(x.shape)


@op("Softmax", since=13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax over one axis."""
    return torch.softmax(x, axis)


@op("LogSoftmax", since=1)
def log_softmax_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """LogSoftmax before opset 13: over all axes from ``axis`` on, taken as one."""
    return torch.log_softmax(_as_matrix(x, axis), -1).reshape(x.shape)


@op("LogSoftmax", since=13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax over one axis."""
    return torch.log_softmax(x, axis)


@op("Hardmax", since=1)
def hardmax_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Hardmax before opset 13: over all axes from ``axis`` on, taken as one."""
    return hardmax(_as_matrix(x, axis)).reshape(x.shape)


@op("Hardmax", since=13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """1 at the first largest element along the axis, else 0."""
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


@op("Dropout", since=7)
def dropout_attribute(
    x: Tensor, *, ratio: float = 0.5, n_outputs: int = 1
) -> Tensor | tuple[Tensor, Tensor]:
    """Inference: the input as it is, and a mask that keeps everything."""
    return (x, torch.ones_like(x, dtype=torch.bool)) if n_outputs > 1 else x


@op("Dropout", since=12, host=(1, 2))
def dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int = 0,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """As :func:`dropout_attribute`; a node that trains is random, and refused unless it keeps all.

    Raises:
        ModelError: ``training_mode`` is true and ``ratio`` is not zero.
    """
    if training_mode is not None and bool(training_mode) and (ratio is None or float(ratio) > 0):
        raise unsupported("Dropout in training mode draws random numbers")
    return dropout_attribute(x, n_outputs=n_outputs)
