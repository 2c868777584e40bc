"""Operators of onnxruntime's own domain that optimized files carry, and its unofficial ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.normalization import layer_norm, rms_norm
from edgecompress.torchgraph.registry import op

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


@op("FusedMatMul", since=1, domain=_ORT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803  (the operator's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a @ b``, each of the two with its last axes swapped if asked for."""
    a = a.transpose(-1, -2) if transA else a
    b = b.transpose(-1, -2) if transB else b
    return torch.matmul(a, b) * alpha


@op("SimplifiedLayerNormalization", since=1)
def simplified_layer_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """RMSNormalization under the name that onnxruntime used before opset 23."""
    return rms_norm(x, scale, axis=axis, epsilon=epsilon)


def _sum(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    return x + skip if bias is None else x + skip + bias


@op("SkipLayerNormalization", since=1, domain=_ORT)
def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """LayerNormalization of a sum, and the sum as the fourth output."""
    total = _sum(x, skip, bias)
    y, mean, inverse = layer_norm(total, gamma, beta, epsilon=epsilon, n_outputs=3)
    return y, mean, inverse, total


@op("SkipSimplifiedLayerNormalization", since=1, domain=_ORT)
def skip_simplified_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """RMSNormalization of a sum, and the sum as the fourth output."""
    total = _sum(x, skip, bias)
    empty = total.new_empty(0)
    return rms_norm(total, gamma, epsilon=epsilon), empty, empty, total
