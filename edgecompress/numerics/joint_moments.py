"""Second moments of what a layer reads, together with what its output is to be."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["JointMoments", "Products", "joint_products"]

# Sums of up to so many elements are kept in float64. Above, where a second copy would count, in
# float32: what the products of single batches are rounded to anyway.
_WIDE = 2**23
# Batches that are summed up in float32 before they are added in float64, which takes longer.
_TOGETHER = 16
# Columns from which on half of what is symmetric is not computed.
_LARGE, _PIECES = 768, 4


@dataclass(frozen=True)
class Products:
    """Sums over the places of one batch, float32.

    Attributes:
        gram: [groups, n, n], of ``b b^T``.
        cross: [groups, t, n], of ``a b^T``; None where ``a`` is ``b``.
        power: [groups, t], of ``a^2`` by channel.
        sum_b: [groups, n].
        sum_a: [groups, t]; None where ``a`` is ``b``.
        places: How many there are.
    """

    gram: Tensor
    cross: Tensor | None
    power: Tensor
    sum_b: Tensor
    sum_a: Tensor | None
    places: int


def joint_products(b: Tensor, a: Tensor | None = None) -> Products:
    """Sums of products of a layer's input and of what its output is to be told from.

    Args:
        b: float [groups, places, n], what the layer reads.
        a: float [groups, places, t], the target side: what the layer reads in the original graph
            (then t is n), or what it puts out there, without bias, which is less work where
            outputs are fewer. None where it is ``b``.

    Raises:
        ValueError: ``a`` and ``b`` are not of the same groups and places.
    """
    if a is not None and a.shape[:2] != b.shape[:2]:
        raise ValueError(
            f"expected the same [groups, places] of both, got {list(b.shape[:2])} of b and "
            f"{list(a.shape[:2])} of a"
        )
    b = b.float()
    a = None if a is None else a.float()
    side = b if a is None else a
    ones = b.new_ones(b.shape[1])
    return Products(
        gram=_squares(b),
        cross=None if a is None else a.transpose(1, 2) @ b,
        power=torch.linalg.vector_norm(side, dim=1).square(),
        sum_b=ones @ b,
        sum_a=None if a is None else ones @ a,
        places=b.shape[1],
    )


class JointMoments:
    """Means over places of ``b b^T`` and ``a b^T``, of all batches.

    The same bits for the same batches in the same order. See :func:`joint_products` for a and b.

    Attributes:
        places: Over how many places they are.
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}
        self.places = 0

    def add(self, products: Products) -> None:
        """Take in a batch; its tensors are not changed and not kept."""
        found = {name: x for name, x in vars(products).items() if isinstance(x, Tensor)}
        if self._sums and found.keys() != self._sums.keys():
            raise ValueError("expected a target side in all batches or in none")
        self.places += products.places
        for name, summand in found.items():
            if name in self._sums:
                self._sums[name].add(summand)
            else:
                self._sums[name] = _Sum(summand)

    def gram(self, *, centred: bool = False) -> Tensor:
        """Mean of ``b b^T``, [groups, n, n]; ``centred`` about the mean over all places.

        It is float64, or float32 where that is what it was summed up in.

        Raises:
            ValueError: There is no batch yet.
        """
        sums = self._there("gram")
        return self._mean(sums, self.mean_b if centred else None, sums.dtype)

    def cross(self, *, centred: bool = False) -> Tensor:
        """Mean of ``a b^T``, float64 [groups, t, n]; :meth:`gram` where ``a`` is ``b``.

        Raises:
            ValueError: There is no batch yet.
        """
        sums = self._there("cross" if "cross" in self._sums else "gram")
        return self._mean(sums, self.mean_a if centred else None)

    def power(self, *, centred: bool = False) -> Tensor:
        """Mean of ``a^2`` by channel, float64 [groups, t].

        Raises:
            ValueError: There is no batch yet.
        """
        mean = self._there("power") / max(self.places, 1)
        return (mean - self.mean_a.square()).clamp_min_(0) if centred else mean

    @property
    def mean_b(self) -> Tensor:
        """Mean of ``b``, float64 [groups, n]."""
        return self._there("sum_b") / max(self.places, 1)

    @property
    def mean_a(self) -> Tensor:
        """Mean of ``a``, float64 [groups, t]."""
        return self._there("sum_a") / max(self.places, 1) if "sum_a" in self._sums else self.mean_b

    def finite(self) -> bool:
        """Whether there is no NaN and no overflow in any of the sums."""
        # |E a b| <= sqrt(E a^2 E b^2), and a NaN in a or b is one in the sum of its squares.
        diagonal = self._there("gram").diagonal(dim1=1, dim2=2)
        power = self._there("power")
        return bool(torch.isfinite(diagonal).all()) and bool(torch.isfinite(power).all())

    def _there(self, name: str) -> Tensor:
        if not self._sums:
            raise ValueError("there is no batch to sum up")
        return self._sums[name].value

    def _mean(
        self, sums: Tensor, of_a: Tensor | None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        mean = sums.to(dtype, copy=True).div_(max(self.places, 1))
        if of_a is not None:
            mean.baddbmm_(of_a[..., None].to(dtype), self.mean_b[:, None].to(dtype), alpha=-1)
        return mean


class _Sum:
    """Of float32 tensors, in float64 where that is small; some of them in float32 at first."""

    def __init__(self, first: Tensor) -> None:
        self._wide = first.numel() <= _WIDE
        self._part, self._parts = first.clone(), 1
        self._total: Tensor | None = None

    def add(self, summand: Tensor) -> None:
        if self._wide and self._parts == _TOGETHER:
            self._total, self._part, self._parts = self.value, summand.clone(), 1
        else:
            self._part += summand
            self._parts += 1

    @property
    def value(self) -> Tensor:
        if not self._wide:
            return self._part
        part = self._part.double()
        return part if self._total is None else part.add_(self._total)


def _squares(b: Tensor) -> Tensor:
    """``b b^T``; what is symmetric is computed once, in pieces."""
    columns = b.shape[2]
    if columns < _LARGE:
        return b.mT @ b
    found = b.new_empty(len(b), columns, columns)
    edges = [columns * i // _PIECES for i in range(_PIECES + 1)]
    pieces = [slice(*ends) for ends in pairwise(edges)]
    for i, first in enumerate(pieces):
        for second in pieces[i:]:
            found[:, first, second] = b[:, :, first].mT @ b[:, :, second]
            found[:, second, first] = found[:, first, second].mT
    return found
