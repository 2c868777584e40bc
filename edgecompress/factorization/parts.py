"""What the parts of factorization hand to one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from edgecompress.layer_matrix import LayerMatrix

__all__ = ["Layer", "Objective", "Pair", "Spectrum", "Split", "SplitKind", "held_out"]

Objective = Literal["input_agnostic", "input_aware", "shift_aware", "anchored", "mixed"]
"""What factors are to keep. W: the layer's weight, W': the factors' product, X: its input in the
original graph, X': its input behind what was factorized before. ``input_agnostic`` ||W - W'||,
``input_aware`` ||W X - W' X||, ``shift_aware`` ||W X' - W' X'||, ``anchored`` ||W X - W' X'||,
``mixed`` something between the last two, chosen for each layer."""

SplitKind = Literal["matrix", "output", "spatial", "tucker"]
"""``matrix``: two MatMul, Gemm or 1x1 Conv; ``output``: Conv of the same kernel with fewer output
channels, then 1x1; ``spatial``: k x 1 Conv, then 1 x k; ``tucker``: 1x1 Conv, a thinner Conv of the
same kernel, 1x1 Conv."""

Pair = tuple[int, ...]
"""Ranks of a split: one, or for ``tucker`` two, in the order of the data."""


@dataclass(frozen=True)
class Layer:
    """A layer with a constant weight that could be factorized.

    Attributes:
        output: Name of the node's output, which identifies it in both graphs.
        node: Name, for people.
        op: MatMul, Gemm or Conv.
        input: Name of the activation that it reads.
        weight: Initializer that holds the weight.
        form: The weight as a matrix [groups, rows, columns].
        bias: Whether a constant bias is added: by the node itself, or by an Add behind it that
            alone reads its output.
        macs: Multiply-accumulates for one row (one token of one sequence, where lengths are
            free; one image).
        lengths: Of a convolution: sizes of its input and of its output along the spatial axes,
            where they are known; else two times ().
    """

    output: str
    node: str
    op: str
    input: str
    weight: str
    form: LayerMatrix
    bias: bool
    macs: float
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def kernel(self) -> tuple[int, ...]:
        """Sizes of a convolution's kernel along its spatial axes; () for MatMul and Gemm."""
        return self.form.shape[2:] if self.op == "Conv" else ()

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.form.groups

    @property
    def rows(self) -> int:
        """Output channels of a group."""
        shape = self.form.shape
        return (shape[1] if self.form.transposed else shape[0]) // self.groups

    @property
    def columns(self) -> int:
        """Input channels of a group times the size of the kernel."""
        size = 1
        for length in self.form.shape:
            size *= length
        return size // (self.rows * self.groups)

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return self.groups * self.rows * self.columns


@dataclass(frozen=True)
class Spectrum:
    """What each rank of a layer is worth, from the original graph alone.

    Attributes:
        layer: The layer.
        energies: float64 [min(rows, columns)], of all groups together, descending: what each
            component adds to the power of the output (``input_aware`` singular values, squared).
        power: Of the output, so that ``(power - energies[:k].sum()) / power`` is the relative
            error at rank k.
        importance: Of its block for the model: 1 - cosine of what goes in and what comes out,
            averaged over places (ShortGPT, Men et al. 2024, arXiv 2403.03853).
        loss_change: float64 like ``energies``: what dropping each component, when those behind it
            are dropped, adds to the loss at the model's outputs, to second order; may be negative.
            None where no gradients were asked for.
    """

    layer: Layer
    energies: Tensor
    power: float
    importance: float = 0.0
    loss_change: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """A layer in two or three, as tensors.

    Attributes:
        kind: Of which form.
        ranks: See :data:`Pair`.
        weights: In the order of the data. ``matrix``: [groups, rank, columns] and [groups, rows,
            rank], to be multiplied as ``left @ (right @ x)``, right first in this tuple; the
            others: weights as Conv takes them, [out, in / groups, *kernel].
        shift: float [groups * rows] to add to the bias, so that the mean of the output stays; None
            where the layer has no bias.
        error: Predicted squared error of the output over its power, on calibration rows.
    """

    kind: SplitKind
    ranks: Pair
    weights: tuple[Tensor, ...]
    shift: Tensor | None = None
    error: float = 0.0

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(weight.numel() for weight in self.weights)


_HELD_OUT = 8


def held_out(place: int) -> bool:
    """Whether a batch of the walk is kept from all fitting and only judges: one in eight."""
    return place % _HELD_OUT == _HELD_OUT - 1
