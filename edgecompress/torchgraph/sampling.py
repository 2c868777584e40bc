"""Reading images between their pixels: grids, affine maps, deformed convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import integers, unsupported
from edgecompress.torchgraph.windows import window

_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "cubic": "bicubic",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


@op("GridSample", since=16)
@op("GridSample", since=1, domain="com.microsoft")
def grid_sample_16(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    """Values of ``x`` at the places of a grid in [-1, 1]; 2 or 3 spatial axes.

    Raises:
        ModelError: Another number of spatial axes, or cubic interpolation in three of them.
    """
    if mode not in _MODES:
        raise unsupported(f"mode={mode!r}")
    if x.ndim not in (4, 5) or (x.ndim == 5 and _MODES[mode] == "bicubic"):
        raise unsupported(f"{mode} sampling of an input of rank {x.ndim}")
    return functional.grid_sample(
        x, grid, mode=_MODES[mode], padding_mode=padding_mode, align_corners=bool(align_corners)
    )


@op("GridSample", since=20)
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Tensor:
    """As :func:`grid_sample_16`, the modes being called ``linear`` and ``cubic``."""
    return grid_sample_16(
        x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode
    )


@op("AffineGrid", since=20, host=(1,))
def affine_grid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """The grid that an affine map [n, r, r + 1] makes for an output of a size."""
    return functional.affine_grid(theta, integers(size), align_corners=bool(align_corners))


def _at(planes: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Bilinear values, zero outside; planes [p, h, w], places [p, k] -> [p, k]."""
    height, width = planes.shape[1:]
    flat = planes.flatten(1)
    top, left = row.detach().floor(), column.detach().floor()
    total = torch.zeros_like(row)
    for down in (0, 1):
        for right in (0, 1):
            y, x = top + down, left + right
            weight = (1 - (row - y).abs()) * (1 - (column - x).abs())
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            index = (y * width + x).masked_fill(~inside, 0).long()
            total = total + flat.gather(1, index) * weight * inside
    return total


@op("DeformConv", since=19)
def deform_conv(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    offset_group: int = 1,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution whose kernel elements are moved by offsets, and scaled by a mask.

    Args:
        x: [n, c, h, w].
        weight: [out, c / group, kh, kw].
        offset: [n, offset_group * kh * kw * 2, oh, ow]; row, then column.
        bias: [out].
        mask: [n, offset_group * kh * kw, oh, ow].
        dilations: Steps between kernel elements.
        group: Groups of channels that are convolved apart.
        kernel_shape: As the weight's.
        offset_group: Groups of input channels with offsets of their own.
        pads: Padding before, then behind the two axes.
        strides: Steps of the kernel.

    Raises:
        ModelError: More or fewer than two spatial axes.
    """
    if x.ndim != 4:
        raise unsupported(f"DeformConv of an input of rank {x.ndim}")
    n, channels, *_ = x.shape
    out, _, *kernel = weight.shape
    win = window(x.shape[2:], kernel, strides, dilations, pads, "NOTSET")
    size, (oh, ow) = math.prod(kernel), offset.shape[2:]
    moved = offset.reshape(n, offset_group, size, 2, oh, ow)
    places = []
    for axis, count in ((0, oh), (1, ow)):
        element = torch.arange(kernel[axis], device=x.device) * win.dilation[axis]
        step = torch.arange(count, device=x.device) * win.stride[axis] - win.before[axis]
        spread = [1, 1]
        spread[axis] = -1
        element = element.reshape(spread).expand(*kernel).reshape(size, 1, 1)
        places.append(moved[:, :, :, axis] + element + step.reshape(spread))
    each = channels // offset_group
    rows, columns = (
        p.repeat_interleave(each, 1).reshape(n * channels, size * oh * ow) for p in places
    )
    values = _at(x.flatten(0, 1), rows, columns).reshape(n, channels, size, oh, ow)
    if mask is not None:
        scale = mask.reshape(n, offset_group, size, oh, ow)
        values = values * scale.repeat_interleave(each, 1)
    columns_in = values.reshape(n, group, channels // group * size, oh * ow)
    kernels = weight.reshape(group, out // group, channels // group * size)
    y = torch.matmul(kernels, columns_in).reshape(n, out, oh, ow)
    return y if bias is None else y + bias.reshape(-1, 1, 1)
