"""The optimal-brain-surgeon loop: change a weight column by column, let others make up for it.

A layer's output is ``W x``. Once a column of ``W`` is changed (rounded, or set to zero), the
columns that are still free are moved so that the output on the rows seen changes least (Frantar et
al., "GPTQ", ICLR 2023, arXiv 2210.17323, algorithm 1; "SparseGPT", ICML 2023, arXiv 2301.00774, is
the same loop with zeros).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgecompress.errors import PassError

__all__ = ["inverse_factor", "obs_round"]

_MOST_DAMPING = 1e6


def obs_round(
    weight: Tensor,
    hessian: Tensor,
    quantize_column: Callable[[Tensor, int], Tensor],
    *,
    damping: float = 0.01,
    block: int = 128,
    order: Tensor | None = None,
) -> Tensor:
    """Round a weight so that the layer's output on the rows seen changes least.

    Columns of inputs that were always zero are rounded to the nearest, and move no others.

    Args:
        weight: float [rows, columns], one row for each output; not changed.
        hessian: [columns, columns], sum or mean of ``x x^T`` over the rows seen, any scale.
        quantize_column: Gets a column [rows], as float32, and its index in ``weight``; returns what
            stands in its place (quantized and back), of the same shape.
        damping: Share of the mean of the Hessian's diagonal that is added to it. It is multiplied
            by 10 until the matrix can be factorized.
        block: Columns after which the rest of the matrix is brought up to date.
        order: int64 [columns], a permutation: which columns come first. Default: left to right.
            Large diagonal elements first is what is called act-order.

    Returns:
        float32 [rows, columns], in the original order of the columns.

    Raises:
        PassError: The Hessian is not finite.
    """
    columns = weight.shape[1]
    order = torch.arange(columns) if order is None else order.cpu()
    indices = order.tolist()
    factor = inverse_factor(hessian[order][:, order], damping).to(weight.device, torch.float32)
    left = weight.float()[:, order]  # a copy, in the order of the loop
    rounded = torch.empty_like(left)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty_like(left[:, start:stop])
        for j in range(start, stop):
            column = left[:, j]
            rounded[:, j] = quantize_column(column, indices[j])
            error = (column - rounded[:, j]) / factor[j, j]
            left[:, j + 1 : stop].addr_(error, factor[j, j + 1 : stop], alpha=-1)
            errors[:, j - start] = error
        left[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular ``R`` with ``R^T R = (H + damping)^-1``.

    Args:
        hessian: [n, n], symmetric and positive semi-definite but for rounding; not changed.
        damping: As in :func:`obs_round`.

    Returns:
        float64 [n, n].

    Raises:
        PassError: The Hessian is not finite.
    """
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    if not bool(torch.isfinite(matrix).all()):
        raise PassError(
            "the sum of products of a layer's inputs is not finite",
            cure="look for infinite activations with `edgecompress statistics`, or leave the "
            "layer out",
        )
    dead = diagonal <= 0
    matrix[dead] = 0
    matrix[:, dead] = 0
    mean = diagonal[~dead].mean() if not bool(dead.all()) else diagonal.new_ones(())
    diagonal[dead] = mean
    # H = U U^T with U upper triangular is the Cholesky decomposition of H turned by half a turn;
    # then R = U^-1, and H itself is never inverted.
    share = damping
    while True:
        damped = matrix.clone()
        damped.diagonal().add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            break
        if share > _MOST_DAMPING:
            raise PassError("the sum of products of a layer's inputs is not positive")
        share = max(share * 10, 1e-8)
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor
