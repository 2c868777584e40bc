"""Pools over regions of interest of a feature map."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported


class _Samples(NamedTuple):
    """Samples along one axis: pixels around each, how far it lies from the lower, validity."""

    per_bin: int
    low: Tensor
    high: Tensor
    over: Tensor
    valid: Tensor


def _samples(start: Tensor, size: Tensor, bins: int, ratio: int, length: int) -> _Samples:
    """A place up to one pixel outside reads the border; one further outside counts as zero."""
    per_bin = ratio or max(math.ceil(float(size) / bins), 0)
    place = torch.arange(bins * per_bin, device=start.device, dtype=start.dtype)
    where = start + (place + 0.5) * (size / max(bins * per_bin, 1))
    valid = (where >= -1) & (where <= length)
    where = where.clamp(0, length - 1)
    low = where.detach().floor()
    high = (low + 1).clamp(max=length - 1)
    return _Samples(per_bin, low.long(), high.long(), where - low, valid)


def _pooled(plane: Tensor, box: Tensor, bins: tuple[int, int], ratio: int, mode: str) -> Tensor:
    """One region of one sample: plane [c, h, w], box x1, y1, x2, y2 in pixels -> [c, *bins]."""
    y = _samples(box[1], box[3] - box[1], bins[0], ratio, plane.shape[1])
    x = _samples(box[0], box[2] - box[0], bins[1], ratio, plane.shape[2])
    if not (y.per_bin and x.per_bin):  # a region without pixels
        return plane.new_zeros(plane.shape[0], *bins)
    down = y.over.unsqueeze(1)
    top, bottom = plane[:, y.low], plane[:, y.high]
    corners = torch.stack(
        [
            top[:, :, x.low] * (1 - down) * (1 - x.over),
            top[:, :, x.high] * (1 - down) * x.over,
            bottom[:, :, x.low] * down * (1 - x.over),
            bottom[:, :, x.high] * down * x.over,
        ]
    )
    inside = y.valid.unsqueeze(1) & x.valid
    shape = (-1, bins[0], y.per_bin, bins[1], x.per_bin)
    if mode == "avg":
        return (corners.sum(0) * inside).reshape(shape).mean((2, 4))
    # The maximum is over the weighted corners, not over the interpolated values: so do the
    # specification's tests and onnxruntime.
    return (corners.amax(0) * inside).reshape(shape).amax((2, 4))


def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    half_pixel: bool,
    bins: tuple[int, int],
    ratio: int,
    scale: float,
    mode: str,
) -> Tensor:
    if mode not in ("avg", "max"):
        raise unsupported(f"mode={mode!r}")
    boxes = rois * scale - (0.5 if half_pixel else 0.0)
    if not half_pixel:  # a region that has no size is one pixel large
        boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], 1)
    found = [
        _pooled(x[sample], box, bins, ratio, mode)
        for box, sample in zip(boxes, batch_indices.tolist(), strict=True)
    ]
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1], *bins)


@op("RoiAlign", since=10)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Mean or maximum of bilinear samples in each bin of each region.

    Args:
        x: [n, c, h, w].
        rois: [regions, 4]: x1, y1, x2, y2.
        batch_indices: [regions]: the sample that each region lies in.
        mode: ``avg`` or ``max``.
        output_height: Bins along the height.
        output_width: Bins along the width.
        sampling_ratio: Samples per bin and axis; 0: as many as the bin has pixels.
        spatial_scale: Factor from the coordinates of ``rois`` to pixels.
    """
    bins = output_height, output_width
    return _roi_align(x, rois, batch_indices, False, bins, sampling_ratio, spatial_scale, mode)


@op("RoiAlign", since=16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """As :func:`roi_align_10`, the coordinates being moved by half a pixel by default."""
    bins = output_height, output_width
    half_pixel = coordinate_transformation_mode == "half_pixel"
    return _roi_align(x, rois, batch_indices, half_pixel, bins, sampling_ratio, spatial_scale, mode)


@op("MaxRoiPool", since=1)
def max_roi_pool(
    x: Tensor, rois: Tensor, *, pooled_shape: tuple[int, ...], spatial_scale: float = 1.0
) -> Tensor:
    """Maximum of the whole pixels in each bin of each region; 0 in an empty bin.

    Args:
        x: [n, c, h, w].
        rois: [regions, 5]: sample, x1, y1, x2, y2.
        pooled_shape: Bins along height and width.
        spatial_scale: Factor from the coordinates of ``rois`` to pixels.
    """
    height, width = x.shape[2:]
    found = []
    for sample, *corners in rois.tolist():
        # Rounds half away from zero, as C does, and not half to even.
        left, top, right, bottom = (math.floor(c * spatial_scale + 0.5) for c in corners)
        rows = _edges(top, bottom, pooled_shape[0], height)
        columns = _edges(left, right, pooled_shape[1], width)
        plane = x[int(sample)]
        found.append(
            torch.stack(
                [
                    torch.stack([_largest(plane[:, a:b, c:d]) for c, d in columns], -1)
                    for a, b in rows
                ],
                -2,
            )
        )
    return torch.stack(found) if found else x.new_zeros(0, x.shape[1], *pooled_shape)


def _edges(first: int, last: int, bins: int, length: int) -> list[tuple[int, int]]:
    step = max(last - first + 1, 1) / bins
    return [
        (
            min(max(math.floor(i * step) + first, 0), length),
            min(max(math.ceil((i + 1) * step) + first, 0), length),
        )
        for i in range(bins)
    ]


def _largest(part: Tensor) -> Tensor:
    return part.amax((1, 2)) if part.numel() else part.new_zeros(part.shape[0])
