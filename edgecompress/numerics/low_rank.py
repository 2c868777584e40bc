"""The best matrix of a low rank in place of a layer's weight, in closed form.

A layer reads b and is to put out y. Of all ``W'`` of rank k, the one that makes ``E|y - W' b|^2``
least follows from three things: ``T = E[y b^T]``, ``S = E[b b^T]`` and ``p = E|y|^2``. With any L
for which ``S = L L^T`` and ``M = T L^-T`` it is ``SVD_k(M) L^-1``, and the error that it leaves is
``p`` less the squares of M's first k singular values (Sinha & Fleuret, "AA-SVD", 2026, arXiv
2604.02119, theorem 3.2, in the form with one triangular solve). M itself is never decomposed:
eigenvectors of the smaller of ``M M^T`` and ``M^T M`` are enough, and the former is the projection
of outputs of "Swift-SVD" (2026, arXiv 2604.01609), which for a layer's own outputs needs no L.

What is wanted of factors differs in y alone: ``W b`` of the same b, what the layer put out in the
original graph, or a mix of both (which is "SAES-SVD", 2026, arXiv 2602.03051: with weight a of the
second it is the share ``a / (1 + a)`` here).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from edgecompress.numerics.gram import Gram
from edgecompress.numerics.low_rank_problem import Kind, Problem, inner, objective

__all__ = [
    "Balance",
    "Gram",
    "Kind",
    "LowRank",
    "Problem",
    "Side",
    "best_mix",
    "bias_shift",
    "objective",
    "squared_error",
]

Side = Literal["auto", "input", "output"]
Balance = Literal["sqrt", "even", "left", "right"]

_SAME = 1e-9  # shares of energy that differ by no more are the same but for rounding


class LowRank:
    """All best approximations of a layer, one for each rank.

    Args:
        target: T, [groups, m, n]; None for ``weight S``.
        gram: S.
        power: p, [groups]; None for the power of what W' can reach.
        weight: [groups, m, n], in place of the target.
        side: Whether eigenvectors are of ``M^T M`` (input) or ``M M^T`` (output); auto takes the
            smaller.
        vectors: False where only energies and errors are asked for, which is less work.

    Attributes:
        energies: float64 [groups, min(m, n)], squares of M's singular values, descending.
    """

    def __init__(
        self,
        target: Tensor | None,
        gram: Gram,
        power: Tensor | None,
        weight: Tensor | None = None,
        *,
        side: Side = "auto",
        vectors: bool = True,
    ) -> None:
        given = target if weight is None else weight
        if given is None or (target is not None and weight is not None):
            raise ValueError("expected either a target or a weight")
        rows, columns = given.shape[1:]
        self._output = rows <= columns if side == "auto" else side == "output"
        self._gram = gram
        self._weight = None if weight is None else weight.double()
        self._whitened: Tensor | None = None
        if self._weight is not None and self._output:
            squares = gram.times(self._weight) @ self._weight.mT
        else:
            if self._weight is not None:
                whitened = gram.through(self._weight)
            else:
                whitened = gram.whitened(given.double())
            self._whitened = whitened
            squares = whitened @ whitened.mT if self._output else whitened.mT @ whitened
        values, self._vectors = _eigen(squares, vectors)
        self.energies = values[:, : min(rows, columns)]
        total = self.energies.sum(1)
        self._out_of_reach = total.new_zeros(len(total))
        if power is not None:
            reached = power.double().reshape(len(total), -1).sum(1)
            self._out_of_reach = (reached - total).clamp_min_(0)

    def error(self, rank: int) -> float:
        """The least ``E|y - W' b|^2`` of any W' of a rank, summed over groups; never below 0."""
        return float(self._out_of_reach.sum() + self.energies[:, rank:].sum())

    @property
    def power(self) -> float:
        """``E|y|^2``, summed over groups: the error at rank 0."""
        return self.error(0)

    def factors(self, rank: int, *, balance: Balance = "sqrt") -> tuple[Tensor, Tensor]:
        """The best W' of a rank, in two.

        Args:
            rank: From 1 to min(m, n).
            balance: Where singular values go: ``sqrt``: a square root to either side; ``left``:
                what lies between the factors has unit power on the inputs seen; ``right``: the left
                factor has orthonormal columns; ``even``: columns of the left factor are as long as
                rows of the right one.

        Returns:
            float32 [groups, m, rank] and [groups, rank, n], the left and the right one.

        Raises:
            ValueError: The rank is out of range, or the vectors were not asked for.
        """
        if self._vectors is None:
            raise ValueError("expected vectors=True for factors")
        if not 1 <= rank <= self.energies.shape[1]:
            raise ValueError(f"expected a rank of 1 to {self.energies.shape[1]}, got {rank}")
        basis = self._vectors[:, :, :rank]
        singular = self.energies[:, :rank].sqrt()
        # Components of no energy are zero but for rounding, and stay so.
        singular = singular.clamp_min(torch.finfo(torch.float64).eps * float(singular.max()) or 1.0)
        if self._output:
            left, right, share = basis, self._projected(basis), 0.0
        else:
            left, right, share = self._there() @ basis, self._gram.unwhitened(basis.mT), 1.0
        if balance == "even":
            scale = (_lengths(right, 2) / _lengths(left, 1)).sqrt()
        else:
            scale = singular ** ({"sqrt": 0.5, "left": 1.0, "right": 0.0}[balance] - share)
        return (left * scale[:, None]).float(), (right / scale[..., None]).float()

    def _projected(self, basis: Tensor) -> Tensor:
        """``basis^T`` times the best matrix of full rank."""
        if self._weight is not None:
            return basis.mT @ self._weight
        return self._gram.unwhitened(basis.mT @ self._there())

    def _there(self) -> Tensor:
        if self._whitened is None:
            raise ValueError("M is not known where outputs are projected")
        return self._whitened


def best_mix(
    weight: Tensor,
    gram: Tensor | Gram,
    rank: int,
    *,
    cross: Tensor | None = None,
    target: Tensor | None = None,
    damping: float = 0.0,
    span: tuple[float, float] = (0.25, 0.75),
    steps: int = 4,
) -> float:
    """The mix of which a rank keeps the largest share of what can be reached at all.

    It makes ``sum_{i <= k} s_i^2 / sum s_i^2`` of M's singular values largest (SAES-SVD, 2026,
    arXiv 2602.03051, which calls it adaptive). That share says how well a rank fits what is wanted,
    not whether that is worth wanting, and by itself runs to either end. Hence the span: of what an
    end lowers its own error by, at full rank, a mix of c loses ``(1 - c)^2`` or ``c^2``, so neither
    loses much more than half.

    Args:
        weight: As in :func:`objective`, and so are the others.
        gram: See there.
        rank: k.
        cross: See there.
        target: See there.
        damping: See there.
        span: The mixes looked at, from the least to the most.
        steps: In how many steps.

    Returns:
        The middle of the span where no mix is better than others.
    """
    gram = gram if isinstance(gram, Gram) else Gram(gram, damping=damping)
    weight = weight.double()
    anchored = objective(weight, gram, kind="anchored", cross=cross, target=target).target
    if anchored is None:
        raise ValueError("expected target or cross, got neither")
    ends = gram.through(weight), gram.whitened(anchored)
    if weight.shape[1] > weight.shape[2]:
        ends = ends[0].mT, ends[1].mT
    own, wanted = (end @ end.mT for end in ends)
    both = ends[0] @ ends[1].mT
    both = both + both.mT
    low, high = span
    middle = (low + high) / 2
    mixes = [low + (high - low) * step / steps for step in range(steps + 1)]
    best, most = middle, 0.0
    for c in sorted({*mixes, middle}, key=lambda mix: (abs(mix - middle), mix)):
        squares = c * c * wanted + c * (1 - c) * both + (1 - c) ** 2 * own
        values = _eigen(squares, vectors=False)[0]
        kept = float(values[:, :rank].sum()) / (float(values.sum()) or 1.0)
        if kept > most + _SAME:
            best, most = c, kept
    return best


def squared_error(
    left: Tensor, right: Tensor, target: Tensor, gram: Tensor, power: Tensor
) -> Tensor:
    """``E|y - left right b|^2`` of any factors, from moments that are not damped.

    Args:
        left: [groups, m, k].
        right: [groups, k, n].
        target: [groups, m, n], mean of ``y b^T``.
        gram: [groups, n, n], mean of ``b b^T``.
        power: [groups] or [groups, m], mean of ``y^2``.

    Returns:
        float64 [groups].
    """
    left, right = left.double(), right.double()
    crossed = inner(left, target.double() @ right.mT)
    own = inner(left.mT @ left, right @ gram.double() @ right.mT)
    return power.double().reshape(len(left), -1).sum(1) - 2 * crossed + own


def bias_shift(left: Tensor, right: Tensor, mean_y: Tensor, mean_b: Tensor) -> Tensor:
    """What to add to the bias of a layer of which factors were found on centred moments.

    Args:
        left: [groups, m, k].
        right: [groups, k, n].
        mean_y: [groups, m], of the outputs wanted, without the bias.
        mean_b: [groups, n], of the inputs that the factors read.

    Returns:
        float32 [groups * m].
    """
    put_out = left.double() @ (right.double() @ mean_b.double()[..., None])
    return (mean_y.double() - put_out[..., 0]).flatten().float()


def _eigen(squares: Tensor, vectors: bool) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues, descending and not below 0, and vectors of which the largest element is > 0."""
    if not vectors:
        return torch.linalg.eigvalsh(squares).flip(1).clamp_min(0), None
    values, basis = torch.linalg.eigh(squares)
    basis = basis.flip(2)
    peaks = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    return values.flip(1).clamp_min(0), basis * peaks.sign()


def _lengths(tensor: Tensor, dim: int) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=dim)
    return lengths.clamp_min(torch.finfo(torch.float64).eps * float(lengths.max()) or 1.0)
