"""Shapes and layout: nothing here computes with the elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, dims, integers, scalar, torch_dtype


@op("Identity", since=1)
def identity(x: Tensor) -> Tensor:
    """The value itself."""
    return x


@op("Shape", since=1)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The shape, or a slice of it, as int64 on the host."""
    return dims(x.shape[start:end])


@op("Size", since=1)
def size(x: Tensor) -> Tensor:
    """Number of elements, as int64 on the host."""
    return torch.tensor(x.numel())


@op("Reshape", since=5, host=(1,))
def reshape(x: Tensor, to: Tensor, *, allowzero: int = 0) -> Tensor:
    """0 copies the dimension (unless ``allowzero``), -1 takes what is left."""
    wanted = integers(to)
    if not allowzero:
        wanted = [x.shape[i] if d == 0 else d for i, d in enumerate(wanted)]
    return x.reshape(wanted)


@op("Flatten", since=1)
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """Axes before ``axis`` as rows, the others as columns."""
    cut = axis if axis >= 0 else axis + x.ndim
    return x.reshape(math.prod(x.shape[:cut]), math.prod(x.shape[cut:]))


@op("Transpose", since=1)
def transpose(x: Tensor, *, perm: tuple[int, ...] | None = None) -> Tensor:
    """Permute the axes; without ``perm`` reverse them."""
    return x.permute(tuple(reversed(range(x.ndim))) if perm is None else perm)


@op("Squeeze", since=1)
def squeeze_attribute(x: Tensor, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """Drop axes of length 1; without ``axes`` all of them.

    Raises:
        ModelError: A named axis is longer.
    """
    if axes is None:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise ModelError(f"expected length 1 along axes {list(axes)}, got {list(x.shape)}")
    return x.squeeze(tuple(axes))


@op("Squeeze", since=13, host=(1,))
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """As :func:`squeeze_attribute`, with the axes as an input."""
    return squeeze_attribute(x, axes=None if axes is None else tuple(integers(axes)))


@op("Unsqueeze", since=1)
def unsqueeze_attribute(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """Insert axes of length 1; ``axes`` count in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis_of(axis, rank) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@op("Unsqueeze", since=13, host=(1,))
def unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    """As :func:`unsqueeze_attribute`, with the axes as an input."""
    return unsqueeze_attribute(x, axes=tuple(integers(axes)))


@op("Concat", since=4)
def concat(*inputs: Tensor, axis: int) -> Tensor:
    """Join along an axis."""
    return torch.cat(inputs, axis)


@op("Split", since=2)
def split_attribute(
    x: Tensor, *, axis: int = 0, split: tuple[int, ...] | None = None, n_outputs: int
) -> tuple[Tensor, ...]:
    """Cut into parts of the given lengths, or into as many equal ones as there are outputs.

    Raises:
        ModelError: The length cannot be divided so.
    """
    if split is not None:
        return torch.split(x, list(split), axis)
    length = x.shape[axis]
    if length % n_outputs:
        raise ModelError(f"cannot cut {length} elements into {n_outputs} equal parts")
    return torch.split(x, length // n_outputs, axis) if length else (x,) * n_outputs


@op("Split", since=13, host=(1,))
def split_13(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, n_outputs: int
) -> tuple[Tensor, ...]:
    """As :func:`split_attribute`, with the lengths as an input."""
    lengths = None if split is None else tuple(integers(split))
    return split_attribute(x, axis=axis, split=lengths, n_outputs=n_outputs)


@op("Split", since=18, host=(1,))
def split_18(
    x: Tensor,
    split: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int,
) -> tuple[Tensor, ...]:
    """As :func:`split_13`, but ``num_outputs`` parts may have a shorter last one."""
    if split is not None or num_outputs is None:
        return split_13(x, split, axis=axis, n_outputs=n_outputs)
    part = -(-x.shape[axis] // num_outputs)
    last = x.shape[axis] - part * (num_outputs - 1)
    return torch.split(x, [part] * (num_outputs - 1) + [last], axis)


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int]:
    rank = max(len(a), len(b))
    pairs = zip([1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b), strict=True)
    return [m if n == 1 else n for m, n in pairs]


@op("Expand", since=8, host=(1,))
def expand(x: Tensor, to: Tensor) -> Tensor:
    """Broadcast in both directions: a 1 in ``to`` keeps the dimension."""
    return x.expand(_broadcast(x.shape, integers(to)))


@op("Tile", since=6, host=(1,))
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(integers(repeats))


@op("Range", since=11, host=(0, 1, 2))
def range_(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Numbers from ``start`` up to but not including ``limit``, on the host."""
    first, last, step = scalar(start), scalar(limit), scalar(delta)
    count = max(math.ceil((last - first) / step), 0)
    exact = torch.float64 if start.is_floating_point() else torch.int64
    return (torch.arange(count, dtype=exact) * step + first).to(start.dtype)


@op("ConstantOfShape", since=9, host=(0,))
def constant_of_shape(to: Tensor, *, value: Tensor | None = None) -> Tensor:
    """One value everywhere; float32 zero by default."""
    shape_ = integers(to)
    return torch.zeros(shape_) if value is None else value.reshape(()).expand(shape_)


@op("EyeLike", since=9)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on the ``k``-th diagonal, in the shape of ``x``."""
    ones = torch.ones(x.shape, device=x.device)
    diagonal = torch.tril(torch.triu(ones, k), k)
    return diagonal.to(x.dtype if dtype is None else torch_dtype(dtype))


@op("DepthToSpace", since=1)
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels into blocks of pixels; x [n, c, h, w]."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, depth, h * b, w * b)


@op("SpaceToDepth", since=1)
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Blocks of pixels into channels; x [n, c, h, w]."""
    n, c, h, w = x.shape
    b = blocksize
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    blocks = x.reshape(n, c, h // b, b, w // b, b).permute(order)
    return blocks.reshape(n, c * b * b, h // b, w // b)
