"""Operators whose result is a choice: the largest, the non-zero, the boxes that survive."""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, integers, scalar, unsupported


def _top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    # torch.topk leaves open which of equal elements comes first; ONNX wants the lower index.
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@op("TopK", since=10, host=(1,))
def top_k_10(x: Tensor, k: Tensor, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The ``k`` largest along an axis, in falling order, and where they are."""
    return _top_k(x, integers(k)[0], axis, True)


@op("TopK", since=11, host=(1,))
def top_k(
    x: Tensor,
    k: Tensor,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted_: int = 1,
) -> tuple[Tensor, Tensor]:
    """As :func:`top_k_10`, or the smallest; unsorted results are sorted as well."""
    return _top_k(x, integers(k)[0], axis, bool(largest))


@op("NonZero", since=9)
def non_zero(x: Tensor) -> Tensor:
    """Index tuples of the elements that are not zero, [rank, count]."""
    return torch.nonzero(x).t().contiguous()


@op("Compress", since=9)
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """Slices along the axis (flattened without one) for which the condition holds."""
    chosen = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1)[chosen] if axis is None else x.index_select(axis, chosen)


@op("Unique", since=11)
def unique(x: Tensor, *, axis: int | None = None, sorted_: int = 1) -> tuple[Tensor, ...]:
    """Distinct elements or slices, where each comes first, which each element is, how often.

    Raises:
        ModelError: ``x`` holds NaN, which is or is not equal to itself depending on the library.
    """
    if x.is_floating_point() and bool(x.isnan().any()):
        raise unsupported("Unique of NaN")
    _, inverse, counts = torch.unique(
        x.detach(), sorted=True, return_inverse=True, return_counts=True, dim=axis
    )
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.numel(), device=x.device)
    first = places.new_full((counts.numel(),), inverse.numel())
    first = first.scatter_reduce(0, inverse, places, "amin")
    whole, along = (x.reshape(-1), 0) if axis is None else (x, axis)
    if sorted_:
        return whole.index_select(along, first), first, inverse, counts
    order = torch.argsort(first)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=x.device))
    first = first[order]
    return whole.index_select(along, first), first, rank[inverse], counts[order]


@op("OneHot", since=9, host=(1,))
def one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    """``values[1]`` at each index along a new axis, else ``values[0]``."""
    count = integers(depth.long())[0]
    place = axis_of(axis, indices.ndim + 1)
    index = indices.long()
    # An index out of [-depth, depth) matches nothing: all of its slice is off.
    index = torch.where((index >= -count) & (index < 0), index + count, index).unsqueeze(place)
    classes = torch.arange(count, device=indices.device)
    classes = classes.reshape([-1 if i == place else 1 for i in range(indices.ndim + 1)])
    return torch.where(index == classes, values[1], values[0])


@op("Trilu", since=14, host=(1,))
def trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    """Upper or lower triangle of the last two axes."""
    diagonal = 0 if k is None else int(scalar(k))
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op("ReverseSequence", since=10)
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first ``lengths[b]`` steps of each sample in reverse order."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    ends = lengths.reshape(-1, 1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    if time_axis < batch_axis:
        places = places.t()
    shape = [x.shape[i] if i in (batch_axis, time_axis) else 1 for i in range(x.ndim)]
    return torch.gather(x, time_axis, places.reshape(shape).expand(x.shape))


def _corners(boxes: Tensor, center_point_box: int) -> tuple[Tensor, Tensor]:
    """Lower and upper corners, each [n, 2]."""
    if center_point_box:
        half = boxes[:, 2:] / 2
        return boxes[:, :2] - half, boxes[:, :2] + half
    return torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])


def _survivors(
    low: Tensor, high: Tensor, scores: Tensor, limit: int, iou: float, least: float | None
) -> list[int]:
    """Greedy suppression for one class: the best box first, and none that overlaps a kept one."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if least is not None:
        order = order[scores[order] > least]
    area = (high - low).clamp(min=0).prod(1)
    kept: list[int] = []
    while len(kept) < limit and order.numel():
        best, order = order[0], order[1:]
        kept.append(int(best))
        sides = torch.minimum(high[order], high[best]) - torch.maximum(low[order], low[best])
        shared = sides.clamp(min=0).prod(1)
        union = area[order] + area[best] - shared
        order = order[~((shared > 0) & (shared / union > iou))]
    return kept


@op("NonMaxSuppression", since=10, host=(2, 3, 4))
def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Tensor | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Triples (batch, class, box) of the boxes kept.

    Args:
        boxes: [batches, boxes, 4], corners or, with ``center_point_box``, centres and sizes.
        scores: [batches, classes, boxes].
        max_output_boxes_per_class: Default 0: none at all.
        iou_threshold: Overlap above which the worse box goes; default 0.
        score_threshold: Boxes that are not better than this go.
        center_point_box: How boxes are written.
    """
    limit = 0 if max_output_boxes_per_class is None else integers(max_output_boxes_per_class)[0]
    iou = 0.0 if iou_threshold is None else scalar(iou_threshold)
    least = None if score_threshold is None else scalar(score_threshold)
    kept: list[tuple[int, int, int]] = []
    for batch in range(scores.shape[0]):
        low, high = _corners(boxes[batch].detach(), center_point_box)
        for label in range(scores.shape[1]):
            column = scores[batch, label].detach()
            found = _survivors(low, high, column, limit, iou, least)
            kept.extend((batch, label, box) for box in found)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device).reshape(-1, 3)
