"""Which values of a tensor belong to real positions of padded sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["position_mask", "real_values"]

Mask = TypeVar("Mask", "npt.NDArray[np.bool_]", "Tensor")


def position_mask(shape: tuple[int, ...], mask: Mask) -> Mask | None:
    """Which positions of a tensor are real, broadcastable to its shape; None where all are.

    The axes that count positions are found by their size, since a graph gives them no names:

    * ``[rows, ..., length, ...]``: the first axis of that size behind the rows. In a tensor of
      four axes or more whose last two have that size (attention scores), both.
    * ``[rows * length, ...]`` and ``[rows * heads, length, length]``: rows folded together with
      positions or heads, as exported graphs have them around matrix products.
    * ``[1, length, ...]`` and ``[length, ...]``: shared by all rows; a position is real where it
      is real in any row.

    Where another axis happens to be as long (hidden size or heads equal to the length), the rules
    above still decide; a ``max_length`` that equals no size of the model avoids the question.

    Args:
        shape: Of the tensor.
        mask: ``[rows, length]``, true for real positions; a numpy array or a torch tensor.
    """
    rows, length = mask.shape
    if not shape:
        return None
    if shape[0] == rows and length in shape[1:]:
        return _by_row(shape, mask)
    if shape[0] == rows * length:
        return mask.reshape(-1, *[1] * (len(shape) - 1))
    if shape[0] == 1 and length in shape[1:]:
        return _by_row(shape, mask.any(0).reshape(1, length))
    if shape[0] == length:
        return mask.any(0).reshape(-1, *[1] * (len(shape) - 1))
    if len(shape) > 2 and shape[0] % rows == 0 and shape[-2:] == (length, length):
        heads = [row for row in range(rows) for _ in range(shape[0] // rows)]
        return _both(shape, mask[heads])
    return None


def real_values(values: Tensor, mask: Tensor) -> Tensor:
    """Values at real positions, flat; the tensor itself where it has no axis of positions.

    Args:
        values: Any tensor of a graph that ran on padded rows; see :func:`position_mask`.
        mask: Bool ``[rows, length]``, true for real positions.
    """
    found = position_mask(tuple(values.shape), mask.to(values.device))
    return values if found is None else values[found.expand(values.shape)]


def _by_row(shape: tuple[int, ...], mask: Mask) -> Mask:
    length = mask.shape[1]
    if len(shape) > 3 and shape[-2:] == (length, length):
        return _both(shape, mask)
    axis = shape.index(length, 1)
    return mask.reshape(len(mask), *(length if a == axis else 1 for a in range(1, len(shape))))


def _both(shape: tuple[int, ...], mask: Mask) -> Mask:
    """Last two axes count positions: queries and keys."""
    rows, length = mask.shape
    ones = [1] * (len(shape) - 3)
    return mask.reshape(rows, *ones, length, 1) & mask.reshape(rows, *ones, 1, length)
