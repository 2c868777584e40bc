"""What rounding took from a weight, given back by two thin factors: ``W = Q(W) + L R``.

::

    x -> MatMulNBits(Q) -> y    becomes    x -> MatMulNBits(Q) ---------------> Add -> y
                                           x -> MatMul(R^T) -> MatMul(L^T) ----^

``L R`` is the best matrix of its rank in place of the rounding error E, on what the layer sees: of
``|E x - L R x|^2`` in the mean, which is the solver of factorization (QERA, Zhang et al. 2024,
arXiv 2410.06040; EoRA, Liu et al. 2024, arXiv 2410.21271). Where no calibration rows are looked at
it is the best for inputs that are all alike (LoRC of ZeroQuant-V2, Yao et al. 2023, arXiv
2303.08302). Factors lie in the file as float16 where the runtime takes it, cast to what the layer
computes in, which runtimes do once, when they load the file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.errors import PassError
from edgecompress.numerics.low_rank import Gram, LowRank
from edgecompress.quantization.weight_nodes import WeightNodes
from edgecompress.quantization.weight_plan import Matrix

__all__ = ["Residual", "put_residual", "residual"]


@dataclass(frozen=True)
class Residual:
    """Factors that make up for a weight's rounding.

    Attributes:
        left: [rows, rank], L in the type that it is stored in.
        right: [rank, columns], R likewise.
        before: Squared error of the layer's output over its power, rounded alone.
        after: The same with the factors as they are stored.
    """

    left: Tensor
    right: Tensor
    before: float
    after: float

    @property
    def rank(self) -> int:
        """Of the factors."""
        return len(self.right)

    @property
    def bytes(self) -> int:
        """Of both factors."""
        return self.left.nbytes + self.right.nbytes


def residual(
    weight: Tensor,
    rounded: Tensor,
    rank: int,
    moments: Tensor | None,
    *,
    damping: float = 0.0,
    half: bool = True,
) -> Residual | None:
    """The best correction of a rank for a rounded weight.

    Args:
        weight: float [rows, columns].
        rounded: The same as it is stored.
        rank: From 1 to the smaller of rows and columns.
        moments: [columns, columns], of the inputs: sum or mean of ``x x^T``; None: as if all inputs
            were independent and equally strong.
        damping: Share of the mean input power that is added to that of all inputs, so that what no
            row has shown counts, too.
        half: Store float16, unless a factor has no room in it.

    Returns:
        None where there is no error on the inputs seen.

    Raises:
        PassError: The moments are not finite.
    """
    if moments is not None and not bool(torch.isfinite(moments).all()):
        raise PassError(
            "the sum of products of a layer's inputs is not finite",
            cure="look for infinite activations with `edgecompress statistics`, or leave the "
            "layer out",
        )
    error = (weight.double() - rounded.double())[None]
    if moments is None:
        gram = Gram.identity(1, error.shape[-1])
    elif not bool((moments.diagonal() > 0).any()):
        return None  # no row reaches the layer
    else:
        moments = moments.double().cpu()
        gram = Gram(moments[None] / moments.diagonal().mean(), damping=damping)
    power, before = _power(weight.double(), moments), _power(error[0], moments)
    if min(before, power) <= 0:
        return None
    left, right = (factor[0] for factor in LowRank(None, gram, None, error).factors(rank))
    left, right = _stored(left.double(), right.double(), half)
    after = _power(error[0] - left.double() @ right.double(), moments)
    return Residual(left, right, before / power, after / power)


def _power(matrix: Tensor, moments: Tensor | None) -> float:
    """Squared outputs of a matrix on the inputs of these moments."""
    weighted = matrix if moments is None else matrix @ moments
    return float((weighted * matrix).sum())


def _stored(left: Tensor, right: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """Factors in their type, their largest elements evened out component by component."""
    ends = left.abs().amax(0), right.abs().amax(1)
    alive = (ends[0] > 0) & (ends[1] > 0)
    scale = torch.where(alive, (ends[1] / ends[0]).sqrt(), torch.ones_like(ends[0]))
    left, right = left * scale, right / scale[:, None]
    if (
        half
        and max(float(left.abs().max()), float(right.abs().max())) < torch.finfo(torch.float16).max
    ):
        return left.half(), right.half()
    return left.float(), right.float()


def put_residual(nodes: WeightNodes, matrix: Matrix, found: Residual) -> dict[str, str]:
    """Add a correction to what the layers of a matrix put out, each that asks for one.

    Args:
        nodes: The graph, in which the layers read integers already.
        matrix: The weight.
        found: Its factors, which all of them share.

    Returns:
        Outputs of the layers -> what those of their products with integers are called now.
    """
    users = [use for use in matrix.products if use.residual_rank]
    first = min((nodes.node(use.output) for use in users), key=nodes.graph.index)
    kind = ir.DataType.FLOAT16 if matrix.grid.half else ir.DataType.FLOAT
    factors = [
        _constant(nodes, first, f"{matrix.weight}_{name}", factor.T.contiguous().numpy(), kind)
        for name, factor in (("right", found.right), ("left", found.left))
    ]
    renamed = {}
    for use in users:
        value = nodes.value(use.input)
        for factor in factors:
            value = nodes.before(nodes.node(use.output), "MatMul", [value, factor], kind)
        renamed[use.output] = nodes.add_behind(use.output, value)
    return renamed


def _constant(
    nodes: WeightNodes,
    place: ir.Node,
    name: str,
    array: npt.NDArray[np.floating],
    kind: ir.DataType,
) -> ir.Value:
    """A constant in a type, whatever it is stored as."""
    stored = nodes.writer.initializer(name, array)
    if stored.dtype == kind:
        return stored
    return nodes.before(place, "Cast", [stored], kind, {"to": kind})
