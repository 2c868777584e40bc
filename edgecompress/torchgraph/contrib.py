"""Activations, products and convolutions that onnxruntime has fused, in its own domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.convolution import conv
from edgecompress.torchgraph.linear import gemm
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported

_ORT = "com.microsoft"


@op("Gelu", since=1, domain=_ORT)
def gelu(x: Tensor) -> Tensor:
    """The exact form."""
    return functional.gelu(x)


@op("BiasGelu", since=1, domain=_ORT)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Gelu of a sum."""
    return functional.gelu(x + bias)


@op("FastGelu", since=1, domain=_ORT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh approximation, of a sum if there is a bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@op("QuickGelu", since=1, domain=_ORT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """``x * sigmoid(alpha * x)``."""
    return x * torch.sigmoid(alpha * x)


def _operand(x: Tensor, swap_last: int, first_to_rows: int) -> Tensor:
    """An operand of FusedMatMul: its first axis moved before the last, the last two swapped."""
    if first_to_rows:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if swap_last and x.ndim > 1 else x


@op("FusedMatMul", since=1, domain=_ORT)
@op("TransposeMatMul", since=1, domain=_ORT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803  (the operator's name)
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a @ b``, the axes of each of the two permuted as asked for."""
    product = torch.matmul(_operand(a, transA, transBatchA), _operand(b, transB, transBatchB))
    return product if alpha == 1.0 else product * alpha


@op("Inverse", since=1, domain=_ORT)
def inverse(x: Tensor) -> Tensor:
    """Inverse of the matrices in the last two axes."""
    inverted: Tensor = torch.linalg.inv(x)
    return inverted


# Parameters are alpha and beta, of Clip the two bounds.
_ACTIVATIONS: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "": lambda x, _: x,
    "Clip": lambda x, p: torch.clamp(x, p[0], p[1]),
    "Elu": lambda x, p: functional.elu(x, p[0]),
    "HardSigmoid": lambda x, p: torch.clamp(x * p[0] + p[1], 0, 1),
    "LeakyRelu": lambda x, p: functional.leaky_relu(x, p[0]),
    "Relu": lambda x, _: torch.relu(x),
    "Sigmoid": lambda x, _: torch.sigmoid(x),
    "Softplus": lambda x, _: functional.softplus(x),
    "Softsign": lambda x, _: functional.softsign(x),
    "Tanh": lambda x, _: torch.tanh(x),
}


def _activate(x: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    if name not in _ACTIVATIONS:
        raise unsupported(f"activation={name!r}")
    try:
        return _ACTIVATIONS[name](x, parameters)
    except IndexError:
        raise unsupported(f"activation={name!r} with {len(parameters)} parameters") from None


@op("FusedConv", since=1, domain=_ORT)
def fused_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    addend: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: tuple[float, ...] = (),
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """An activation of a convolution, to which a tensor may be added before.

    Raises:
        ModelError: The activation is unknown.
    """
    y = conv(
        x,
        weight,
        bias,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return _activate(y if addend is None else y + addend, activation, activation_params)


@op("FusedGemm", since=1, domain=_ORT)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  (the operator's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """An activation of a general matrix product.

    Raises:
        ModelError: The activation is unknown.
    """
    given = (activation_alpha, activation_beta, activation_gamma)
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _activate(y, activation, [p for p in given if p is not None])
