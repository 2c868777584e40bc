"""Slices, gathers and scatters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, integers, unsupported


def _slice_axis(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    chosen = range(*slice(start, end, step).indices(x.shape[axis]))
    if step < 0:
        return x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    part = x.narrow(axis, chosen.start, max(chosen.stop - chosen.start, 0))
    return part if step == 1 else part[(slice(None),) * axis + (slice(None, None, step),)]


def _slice(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        step = 1 if steps is None else steps[i]
        x = _slice_axis(x, axis_of(axis, x.ndim), starts[i], ends[i], step)
    return x


@op("Slice", since=1)
def slice_attributes(
    x: Tensor,
    *,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...] | None = None,
) -> Tensor:
    """Slice before opset 10: everything is an attribute, steps are 1."""
    return _slice(x, starts, ends, axes, None)


@op("Slice", since=10, host=(1, 2, 3, 4))
def slice_(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Numpy's slices along some axes; steps may be negative."""
    return _slice(
        x,
        integers(starts),
        integers(ends),
        None if axes is None else integers(axes),
        None if steps is None else integers(steps),
    )


def _from_front(indices: Tensor, length: int) -> Tensor:
    """Negative indices counted from the front, as int64."""
    indices = indices.long()
    return torch.where(indices < 0, indices + length, indices)


@op("Gather", since=1)
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Whole slices along an axis."""
    along = axis_of(axis, x.ndim)
    if indices.ndim == 0 and indices.device.type == "cpu":
        return x.select(along, int(indices))
    indices = _from_front(indices, x.shape[along])
    picked = x.index_select(along, indices.reshape(-1))
    return picked.reshape(*x.shape[:along], *indices.shape, *x.shape[along + 1 :])


@op("GatherElements", since=11)
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Single elements along an axis."""
    return torch.gather(x, axis, _from_front(indices, x.shape[axis]))


def _row_index(indices: Tensor, lengths: Sequence[int]) -> Tensor:
    """Index tuples in the last axis -> positions among the flattened first axes."""
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, length in enumerate(lengths):
        row = row * length + _from_front(indices[..., i], length)
    return row


@op("GatherND", since=11)
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices at index tuples, batch by batch over the first ``batch_dims`` axes."""
    b, depth = batch_dims, indices.shape[-1]
    batch = x.shape[:b]
    lengths, rest = x.shape[b : b + depth], x.shape[b + depth :]
    rows = _row_index(indices, lengths).reshape(math.prod(batch), -1)
    offset = torch.arange(math.prod(batch), device=x.device).unsqueeze(1) * math.prod(lengths)
    flat = x.reshape(-1, *rest).index_select(0, (rows + offset).reshape(-1))
    return flat.reshape(*indices.shape[:-1], *rest)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter(x: Tensor, axis: int, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    if reduction == "add":
        return x.scatter_add(axis, indices, updates)
    if reduction not in _REDUCTIONS:
        raise unsupported(f"reduction={reduction!r}")
    return x.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction], include_self=True)


@op("ScatterElements", since=11)
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """A copy with single elements along an axis replaced, or combined with what is there."""
    return _scatter(x, axis, _from_front(indices, x.shape[axis]), updates, reduction)


@op("Scatter", since=9)
def scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    """The older name of :func:`scatter_elements`."""
    return scatter_elements(x, indices, updates, axis=axis)


@op("ScatterND", since=11)
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy with the slices at index tuples replaced, or combined with what is there."""
    depth = indices.shape[-1]
    lengths, rest = x.shape[:depth], x.shape[depth:]
    width = math.prod(rest)
    rows = _row_index(indices, lengths).reshape(-1, 1).expand(-1, width)
    flat = _scatter(
        x.reshape(math.prod(lengths), width), 0, rows, updates.reshape(-1, width), reduction
    )
    return flat.reshape(x.shape)


@op("TensorScatter", since=24)
def tensor_scatter(
    past: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A copy of a cache with new entries along the sequence axis, at one place per sample."""
    along = axis_of(axis, past.ndim)
    batch, length = update.shape[0], update.shape[along]
    places = torch.arange(length, device=past.device).repeat(batch, 1)
    if write_indices is not None:
        places = places + write_indices.reshape(-1, 1)
    if mode == "circular":
        places = places % past.shape[along]
    shape = [batch if i == 0 else length if i == along else 1 for i in range(past.ndim)]
    return past.scatter(along, places.reshape(shape).expand(update.shape), update)
