"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op

op("MatMul", since=1)(torch.matmul)


@op("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803  (ONNX's name)
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """``alpha * a @ b + beta * c``, each of a and b transposed if asked for."""
    a = a.t() if transA else a
    if alpha == 1.0 and beta == 1.0 and (c is None or c.ndim == 1) and a.is_floating_point():
        return functional.linear(a, b if transB else b.t(), c)
    product = a @ (b.t() if transB else b)
    if alpha != 1.0:
        product = (product * alpha).to(a.dtype)
    if c is None:
        return product
    return product + (c if beta == 1.0 else (c * beta).to(c.dtype))


@op("Einsum", since=12)
def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Einstein's sum convention."""
    return torch.einsum(equation, *inputs)
