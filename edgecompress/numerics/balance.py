"""How a product of two factors is split between them, where both will be stored as integers.

``W' = U V`` is ``(U A^-1) (A V)`` for every invertible A: the layer stays what it is, but
``z = A V x`` becomes an activation with one scale for all of its channels, and both factors become
weights with a scale for each output channel. Three things are rounded: rows of ``A V``, z, and rows
of ``U A^-1``. Where A mixes channels well, so that rows and channels are alike without outliers,
steps follow their mean power, and the error of the output is in proportion to

    tr(A M A^T) tr(A^-T U^T U A^-1),    M = V (S + c mean(diag S)) V^T,

S the second moments of x: the first factor is the power of z and, with the share c, that of the
rows of ``A V``. It is least, the square of the nuclear norm of ``U M^(1/2)``, where the singular
values of that are split in equal parts. An orthogonal A behind that changes neither trace, so it is
free to do the mixing that was taken for granted. (Rotations against outliers: "QuaRot", Ashkboos et
al. 2024, arXiv 2404.00456.)

The share c has another use: directions that no row has shown have power, too, so no channel of z is
blown up to where new rows would leave its range.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Balance", "balanced", "mixing_rotation"]

Balance = Literal["left", "sqrt", "right", "rotated"]
"""With sigma, the singular values of the product on the inputs seen: ``left``: all of sigma in the
second factor, channels of z equally strong; ``sqrt``: its root in each; ``right``: all of it in the
first, columns of the second factor equally long; ``rotated``: what is best for int8, see above."""

_FLOOR, _LEAST = 1e-10, 1e-6
# Steps reach to about 3 standard deviations of a row of weights and to 5 of an activation:
# 3^2 for rows of A V, over 3^2 for rows of U A^-1 and 5^2 for z.
_WEIGHT_SHARE = 0.25


def balanced(
    left: Tensor, right: Tensor, gram: Tensor | None = None, how: Balance = "rotated"
) -> tuple[Tensor, Tensor]:
    """Split a product of factors anew; the product stays.

    Args:
        left: float [groups, rows, rank].
        right: float [groups, rank, columns], which is multiplied by the inputs first.
        gram: [groups, columns, columns], second moments of the inputs; None: as if all were
            independent and equally strong.
        how: See :data:`Balance`.

    Returns:
        Factors of the same shapes and types.

    Raises:
        ValueError: ``how`` is none of them.
    """
    if how not in get_args(Balance):
        raise ValueError(f"expected one of {', '.join(get_args(Balance))}, got {how!r}")
    second, first = left.double(), right.double()
    power = first @ first.mT
    if gram is not None:
        mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        share = _WEIGHT_SHARE * mean if how == "rotated" else 0.0
        power = (first.to(gram) @ gram).to(first) @ first.mT + share * power
    values, vectors = torch.linalg.eigh((power + power.mT) / 2)
    most = values.amax(-1, keepdim=True)
    values = torch.where(most > 0, torch.maximum(values, _FLOOR * most), torch.ones_like(values))
    root = values.sqrt()[..., None, :]
    # Whatever the floor did, what one factor is multiplied by the other is divided by.
    second, first = second @ (vectors * root), (vectors / root).mT @ first
    _, sigma, turn = torch.linalg.svd(second, full_matrices=False)
    turn = _completed(turn)
    second, first = second @ turn.mT, turn @ first
    exponent = {"left": 0.0, "right": 1.0}.get(how, 0.5)
    scale = _scales(sigma, first.shape[-2]) ** exponent
    second, first = second / scale[..., None, :], scale[..., None] * first
    if how == "rotated":
        rotation = mixing_rotation(first.shape[-2]).to(first.device)
        second, first = second @ rotation.T, rotation @ first
    return second.to(left.dtype), first.to(right.dtype)


def mixing_rotation(size: int) -> Tensor:
    """An orthogonal matrix of any size whose entries are all at most ``sqrt(2 / size)``.

    A Hadamard matrix (Sylvester) of the largest power of two in ``size``, times a Hartley matrix,
    ``cos + sin`` of all frequencies, of the rest.

    Returns:
        float64 [size, size].
    """
    power = size & -size
    sylvester = torch.ones(1, 1, dtype=torch.float64)
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    while len(sylvester) < power:
        sylvester = torch.kron(sylvester, step)
    rest = torch.arange(size // power, dtype=torch.float64)
    angles = torch.outer(rest, rest) * (2 * math.pi / len(rest))
    hartley = (torch.cos(angles) + torch.sin(angles)) / math.sqrt(len(rest))
    rotation: Tensor = torch.kron(hartley, sylvester)
    return rotation


def _completed(turn: Tensor) -> Tensor:
    """Rows that are orthonormal, with more of them until they are as many as columns."""
    rows, columns = turn.shape[-2:]
    if rows == columns:
        return turn
    basis: Tensor = torch.linalg.qr(turn.mT, mode="complete").Q
    return basis.mT


def _scales(sigma: Tensor, rank: int) -> Tensor:
    """Positive [groups, rank]: singular values, those that vanish as the least that do not."""
    most = sigma.amax(-1, keepdim=True)
    kept = torch.where(most > 0, torch.maximum(sigma, _LEAST * most), torch.ones_like(sigma))
    least = kept.amin(-1, keepdim=True)
    return torch.cat([kept, least.expand(*kept.shape[:-1], rank - kept.shape[-1])], -1)
