"""Layouts of activations: as ONNX has them, or with channels last, as TFLite's kernels want them.

Channels are axis 1 of ONNX's activations of rank 3 and more. ``LAST`` is the same tensor with that
axis moved to the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["LAST", "PLAIN", "Layout", "axis_in", "free_move", "permutation", "shape_in", "to_plain"]

Layout = Literal["plain", "last"]
PLAIN: Layout = "plain"
LAST: Layout = "last"


def permutation(rank: int) -> list[int]:
    """Axes of a plain tensor in the order that channels last has them."""
    return [0, *range(2, rank), 1]


def to_plain(rank: int) -> list[int]:
    """The way back."""
    return [0, rank - 1, *range(1, rank - 1)]


def shape_in(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    """Dimensions of a tensor of plain dimensions ``shape`` in a layout."""
    if layout == PLAIN:
        return tuple(shape)
    return tuple(shape[axis] for axis in permutation(len(shape)))


def axis_in(axis: int, rank: int, layout: Layout) -> int:
    """Where a plain axis, perhaps counted from the end, is in a layout."""
    axis %= rank
    return axis if layout == PLAIN else permutation(rank).index(axis)


def free_move(shape: Sequence[int]) -> bool:
    """Whether both layouts of plain dimensions ``shape`` have their values in the same order."""
    return shape[1] == 1 or math.prod(shape[2:]) == 1
