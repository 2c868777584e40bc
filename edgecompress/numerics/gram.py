"""A layer's second moments of inputs, factorized once for all layers that read the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Form", "Gram", "Shape"]

Form = Literal["auto", "cholesky", "eigen"]
Shape = Literal["identity", "diagonal"]

# Columns up to which eigenvectors are looked for where Cholesky fails: they take 30 times as long.
_EIGEN_COLUMNS = 2048


class Gram:
    """``S = E[b b^T]``, damped, and an L with ``S = L L^T``, made when it is first asked for.

    Inputs are brought to one scale first (``S = D R D``, R's diagonal is 1), so that a few inputs
    that are far larger than the others decide neither what is singular nor what is floored: float32
    sums are wrong by a share of each input's own size. Where the Cholesky decomposition of R fails
    or has pivots below ``floor``, R's eigenvalues are lifted to the floor; where there are too many
    columns for that, all of them are, tenfold until it is enough. Moments that are all zero count
    as those of inputs that know nothing of one another, so what follows is input-agnostic.

    Args:
        gram: [groups, n, n], symmetric and finite; not changed, and kept.
        damping: What is added to the diagonal, as a share of its mean (``identity``) or of itself
            (``diagonal``, where inputs that were hardly seen count as 1 % of the mean).
        shape: See ``damping``.
        floor: Of R's eigenvalues, the mean of which is 1. The default is what sums in float32 are
            good for.
        form: ``eigen`` takes eigenvectors from the start, ``cholesky`` never.
    """

    def __init__(
        self,
        gram: Tensor,
        *,
        damping: float = 0.0,
        shape: Shape = "identity",
        floor: float = 1e-6,
        form: Form = "auto",
    ) -> None:
        self._gram: Tensor | None = gram
        self._floor, self._form = floor, form
        diagonal = gram.diagonal(dim1=1, dim2=2).double().clamp_min(0)
        mean = diagonal.mean(1, keepdim=True)
        base = mean if shape == "identity" else torch.maximum(diagonal, 0.01 * mean)
        # Groups without any input: of a scale that neither drowns nor drowns the others.
        lost = mean.max() if bool((mean > 0).any()) else mean.new_ones(())
        self._ridge = torch.where(mean > 0, damping * base, lost).expand_as(diagonal)
        scale = diagonal + self._ridge
        # An input that was never seen, and is not damped, gets the scale of the others.
        self._scale = torch.where(scale > 0, scale, scale.mean(1, keepdim=True)).sqrt()

    @classmethod
    def identity(cls, groups: int, columns: int, device: torch.device | None = None) -> Gram:
        """Of inputs of which nothing is known; it takes no memory for the columns squared."""
        gram = cls(torch.ones(groups, 1, 1, dtype=torch.float64, device=device))
        gram._gram = None
        return gram

    def product(self, weight: Tensor) -> Tensor:
        """``weight S`` without what damping adds; float64 [groups, m, n]."""
        weight = weight.double()
        return weight if self._gram is None else weight @ self._gram.double()

    def times(self, weight: Tensor) -> Tensor:
        """``weight S``, which needs no L and floors nothing; float64 [groups, m, n]."""
        weight = weight.double()
        if self._gram is None:
            return weight
        return self.product(weight).addcmul_(weight, self._ridge[:, None])

    def lifted(self, weight: Tensor) -> Tensor:
        """``weight A`` for the A that damping and the floor added; float64 [groups, m, n]."""
        weight = weight.double()
        if self._gram is None:
            return torch.zeros_like(weight)
        factor = self._factor
        if isinstance(factor, _Triangular):
            return weight * (self._ridge + factor.lift * self._scale.square())[:, None]
        scaled = factor.lifted(weight * self._scale[:, None]).mul_(self._scale[:, None])
        return scaled.addcmul_(weight, self._ridge[:, None])

    def through(self, weight: Tensor) -> Tensor:
        """``weight L``: float64 [groups, m, n]."""
        weight = weight.double()
        if self._gram is None:
            return weight
        return self._factor.times(weight * self._scale[:, None])

    def whitened(self, target: Tensor) -> Tensor:
        """``target L^-T``: float64 [groups, m, n]."""
        target = target.double()
        if self._gram is None:
            return target
        return self._factor.divided_by_transpose(target / self._scale[:, None])

    def unwhitened(self, rows: Tensor) -> Tensor:
        """``rows L^-1``: float64 [groups, k, n]."""
        rows = rows.double()
        if self._gram is None:
            return rows
        return self._factor.divided(rows) / self._scale[:, None]

    @cached_property
    def _factor(self) -> _Triangular | _Eigen:
        """Of R, damped and lifted."""
        if self._form == "eigen":
            return self._eigen()
        enough = self._form == "auto" and self._scale.shape[1] <= _EIGEN_COLUMNS
        lift = 0.0
        while True:
            matrix = self._one_scale()
            matrix.diagonal(dim1=1, dim2=2).add_(lift)
            lower = _cholesky(matrix, self._floor)
            if lower is not None:
                return _Triangular(lower, lift)
            if enough:
                return self._eigen()
            lift = lift * 10 or self._floor

    def _one_scale(self) -> Tensor:
        """R: float64 [groups, n, n], a tensor of its own."""
        if self._gram is None:
            raise ValueError("inputs of which nothing is known have no moments")
        matrix = self._gram.to(torch.float64, copy=True)
        matrix.diagonal(dim1=1, dim2=2).add_(self._ridge)
        return matrix.div_(self._scale[:, None]).div_(self._scale[..., None])

    def _eigen(self) -> _Eigen:
        values, basis = torch.linalg.eigh(self._one_scale())
        kept = values.clamp_min(self._floor)
        return _Eigen(basis, kept.sqrt(), kept - values)


@dataclass(frozen=True)
class _Triangular:
    lower: Tensor
    lift: float

    def times(self, rows: Tensor) -> Tensor:
        return rows @ self.lower

    def divided(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.linalg.solve_triangular(self.lower, rows, upper=False, left=False)
        return found

    def divided_by_transpose(self, rows: Tensor) -> Tensor:
        found: Tensor = torch.linalg.solve_triangular(self.lower.mT, rows, upper=True, left=False)
        return found


@dataclass(frozen=True)
class _Eigen:
    basis: Tensor
    roots: Tensor
    lift: Tensor

    def times(self, rows: Tensor) -> Tensor:
        return (rows @ self.basis).mul_(self.roots[:, None])

    def divided(self, rows: Tensor) -> Tensor:
        return (rows / self.roots[:, None]) @ self.basis.mT

    def divided_by_transpose(self, rows: Tensor) -> Tensor:
        return (rows @ self.basis).div_(self.roots[:, None])

    def lifted(self, rows: Tensor) -> Tensor:
        return (rows @ self.basis).mul_(self.lift[:, None]) @ self.basis.mT


def _cholesky(matrix: Tensor, floor: float) -> Tensor | None:
    """The lower factor, in place of the matrix; None where a pivot is below the floor."""
    # The decomposition is of columns: of a symmetric matrix, those are the rows that are here.
    lower = matrix.mT
    failed = torch.empty(len(matrix), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    if bool(failed.any()) or float(lower.diagonal(dim1=1, dim2=2).min()) ** 2 < floor:
        return None
    return lower
