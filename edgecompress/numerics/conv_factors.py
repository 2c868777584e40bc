"""A convolution's weight as a basis of its input and the rest, fitted to its outputs.

The weight ``[out, in, *kernel]`` becomes ``sum_q rest[out, t, q] basis[q, a]``: ``a`` runs over the
input channels and the taps along those axes that the basis takes, ``t`` over the taps of the axes
that are kept for the rest. With all axes kept, and the rest of low rank itself, that is Tucker-2
(Kim et al. 2016, arXiv 1511.06530); with one axis for either it is a k x 1 and a 1 x k convolution
(Jaderberg et al. 2014, arXiv 1405.3866).

What is made small is ``E|y - W' b|^2``, not the distance of the weights, by turns: for a given
basis the rest has a closed form on moments of what the basis puts out; for a given rest the basis
is a linear least-squares problem, which a few steps of conjugate gradients come close to solving
(distribution-aware decomposition, 2025, arXiv 2511.04494).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgecompress.numerics.low_rank import Gram, LowRank

__all__ = ["ConvMoments", "Factors", "Unfolded", "composed", "conv_weights"]

# What one sweep gains, below which further ones are not worth their time.
_LEAST_GAIN = 1e-3
# Of eigenvalues: moments of float64 factors are sums in float64.
_FLOOR = 1e-11


@dataclass(frozen=True)
class ConvMoments:
    """What the quadratic loss of a convolution without groups is made of.

    Attributes:
        weight: float64 [out, n], n the size of a column: input channels, then taps.
        target: float64 [out, n], ``E[y b^T]`` of wanted outputs and columns.
        gram: float64 [n, n], ``E[b b^T]``.
        power: ``E|y|^2``.
    """

    weight: Tensor
    target: Tensor
    gram: Tensor
    power: float


@dataclass(frozen=True)
class Factors:
    """A weight in two or three; see the module.

    Attributes:
        basis: float64 [q, a].
        rest: float64 [r, t, q].
        left: float64 [out, r], orthonormal columns; None where the rest has all outputs.
        loss: ``E|y - W' b|^2``.
    """

    basis: Tensor
    rest: Tensor
    left: Tensor | None
    loss: float


class Unfolded:
    """A convolution whose columns are laid out for a basis and the rest."""

    def __init__(self, moments: ConvMoments, shape: Sequence[int], kept: Sequence[int]) -> None:
        """Lay out the moments; takes a copy of them.

        Args:
            moments: Of the layer.
            shape: Of the weight, [out, in, *kernel].
            kept: Axes of the kernel that are kept for the rest; the basis takes the others.
        """
        kernel = shape[2:]
        taken = [axis for axis in range(len(kernel)) if axis not in kept]
        places = torch.arange(moments.gram.shape[0], device=moments.gram.device)
        axes = [*(axis + 1 for axis in kept), 0, *(axis + 1 for axis in taken)]
        order = places.reshape(shape[1], *kernel).permute(axes).flatten()
        self._taps = math.prod(kernel[axis] for axis in kept)
        self._width = len(order) // self._taps
        self._gram = moments.gram[order][:, order]
        self._weight = self._split(moments.weight[:, order])
        self._target = self._split(moments.target[:, order])
        self._power = moments.power
        # Partial traces: the second moments of either part, averaged over the other.
        four = self._gram.reshape(self._taps, self._width, self._taps, self._width)
        self._tap_gram = torch.einsum("tava->tv", four)
        self._width_gram = torch.einsum("tatb->ab", four)

    @property
    def outputs(self) -> int:
        """Output channels."""
        return len(self._target)

    @property
    def widest(self) -> int:
        """Rank of the basis beyond which nothing is gained."""
        return min(self._width, self.outputs * self._taps)

    def start(self, ranks: Sequence[tuple[int, int]]) -> list[Factors]:
        """Factors to start from: the basis from singular vectors, the rest in closed form.

        The singular vectors are those of the unfolded weight, as if the second moments were the
        product of one over taps and one over what the basis takes.

        Args:
            ranks: Of the basis, 1 to :attr:`widest`, and of the rest: 1 to :attr:`outputs`, where
                the latter leaves it whole.
        """
        seen = Gram(self._tap_gram[None]).through(self._weight.permute(2, 0, 1).flatten(0, 1)[None])
        rows = seen.reshape(self._width, -1).mT[None]
        solver = LowRank(None, Gram(self._width_gram[None]), None, weight=rows)
        most = max(rank for rank, _ in ranks)
        # Those of lower ranks are its first rows.
        basis = _orthonormal_rows(solver.factors(most)[1][0].double())
        target, gram = self._reduced(basis)
        wide = gram.reshape(self._taps, most, self._taps, most)
        found = []
        for rank, outputs in ranks:
            part = wide[:, :rank, :, :rank].reshape(self._taps * rank, -1)
            rest = target.reshape(-1, self._taps, most)[..., :rank].flatten(1)
            found.append(self._rest(basis[:rank], outputs, rest, part))
        return found

    def improve(self, factors: Factors, sweeps: int, steps: int = 3) -> Factors:
        """Fit basis and rest by turns, until little is gained. The loss never rises.

        Args:
            factors: Where to start.
            sweeps: How often, at most.
            steps: Of conjugate gradients for the basis, each time.
        """
        for _ in range(sweeps):
            basis = _orthonormal_rows(self._next_basis(factors, steps))
            found = self._rest(basis, factors.rest.shape[0], *self._reduced(basis))
            before = factors.loss
            if found.loss < before:
                factors = found
            if found.loss >= before * (1 - _LEAST_GAIN):
                break
        return factors

    def _split(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(len(matrix), self._taps, self._width)

    def _reduced(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Target [out, t * q] and gram [t * q, t * q] of what the basis puts out."""
        blocks = self._gram.reshape(self._taps, self._width, -1)
        half = (basis @ blocks).reshape(-1, self._taps, self._width)
        size = self._taps * len(basis)
        return (self._target @ basis.mT).flatten(1), (half @ basis.mT).reshape(size, size)

    def _rest(self, basis: Tensor, rank: int, target: Tensor, gram: Tensor) -> Factors:
        """The best rest, and what it leaves, for what :meth:`_reduced` found of a basis."""
        solver, left = Gram(gram[None], floor=_FLOOR), None
        if rank < self.outputs:
            found = LowRank(target[None], solver, None, side="output").factors(rank)[0]
            left = torch.linalg.qr(found[0].double())[0]
            target = left.mT @ target
        rest = _solved(solver, target)
        loss = _loss(rest, target, gram, self._power)
        return Factors(basis, rest.reshape(len(rest), self._taps, -1), left, loss)

    def _next_basis(self, factors: Factors, steps: int) -> Tensor:
        """A better basis for a rest: preconditioned conjugate gradients from the one there is."""
        target = self._target
        if factors.left is not None:
            target = torch.einsum("or,ota->rta", factors.left, target)
        rest = factors.rest.transpose(0, 1).contiguous()

        def pulled(product: Tensor) -> Tensor:
            return (rest.mT @ product.transpose(0, 1)).sum(0)

        def applied(basis: Tensor) -> Tensor:
            product = (rest @ basis).transpose(0, 1).flatten(1)
            return pulled(self._split(product @ self._gram))

        precondition = self._preconditioner(rest)
        basis = factors.basis
        residual = pulled(target) - applied(basis)
        direction = preconditioned = precondition(residual)
        size = (residual * preconditioned).sum()
        for _ in range(steps):
            image = applied(direction)
            curvature = (direction * image).sum()
            if not (size > 0 and curvature > 0):
                break
            basis = basis + size / curvature * direction
            residual = residual - size / curvature * image
            preconditioned = precondition(residual)
            before, size = size, (residual * preconditioned).sum()
            direction = preconditioned + size / before * direction
        return basis

    def _preconditioner(self, rest: Tensor) -> Callable[[Tensor], Tensor]:
        """The inverse of a product of two matrices that is near the quadratic form of a basis.

        The form is ``sum_tu G[t, u] x S[t, u]`` of blocks of the rest's and of the columns' second
        moments; either is averaged over the taps, weighted by the traces of the other's blocks.

        Args:
            rest: [t, r, q].
        """
        ranks = rest.shape[2]
        flat = rest.transpose(0, 1).flatten(1)
        own = (flat.mT @ flat).reshape(self._taps, ranks, self._taps, ranks)
        weights = torch.einsum("tquq->tu", own)
        blocks = self._gram.reshape(self._taps, self._width, self._taps, self._width)
        columns = Gram(torch.einsum("tu,taub->ab", weights, blocks)[None], floor=_FLOOR)
        rows = Gram(torch.einsum("tu,tqur->qr", self._tap_gram, own)[None], floor=_FLOOR)
        return lambda residual: _solved(rows, _solved(columns, residual).mT).mT


def conv_weights(
    factors: Factors, kernel: Sequence[int], kept: Sequence[int]
) -> tuple[Tensor, ...]:
    """Factors as weights of convolutions.

    Args:
        factors: Of an :class:`Unfolded` layer.
        kernel: Sizes of its kernel.
        kept: Axes of the kernel that were kept for the rest.

    Returns:
        Two or three [out, in, *kernel], in the order of the data.
    """
    inner, outer = (
        [size if (axis in kept) == rest else 1 for axis, size in enumerate(kernel)]
        for rest in (False, True)
    )
    basis = factors.basis.reshape(len(factors.basis), -1, *inner)
    rest = factors.rest.mT.reshape(len(factors.rest), len(basis), *outer)
    if factors.left is None:
        return basis, rest
    return basis, rest, factors.left.reshape(*factors.left.shape, *(1 for _ in kernel))


def composed(weights: Sequence[Tensor], groups: int = 1) -> Tensor:
    """The weight [groups, out / groups, n] of one convolution that does what some do in turn.

    Args:
        weights: [out, in / groups, *kernel] in the order of the data; along each axis, at most one
            has a kernel larger than 1.
        groups: Of each of them.
    """
    found = weights[0].reshape(groups, -1, *weights[0].shape[1:])
    for weight in weights[1:]:
        wide = weight.reshape(groups, -1, *weight.shape[1:])
        found = torch.einsum("gor...,grc...->goc...", wide, found)
    return found.flatten(2)


def _solved(gram: Gram, target: Tensor) -> Tensor:
    """``target S^-1`` of one group."""
    return gram.unwhitened(gram.whitened(target[None]))[0]


def _orthonormal_rows(basis: Tensor) -> Tensor:
    """Rows of which the first k span what the first k did, for each k."""
    spanning: Tensor = torch.linalg.qr(basis.mT)[0]
    return spanning.mT.contiguous()


def _loss(product: Tensor, target: Tensor, gram: Tensor, power: float) -> float:
    gain = (product * (2 * target - product @ gram)).sum()
    return max(power - float(gain), 0.0)
