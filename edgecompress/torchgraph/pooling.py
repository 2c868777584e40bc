"""Pools over windows and over the whole of the spatial axes; x is always [n, c, ...]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported
from edgecompress.torchgraph.windows import Window, pad_spatial, window

_MAX: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVERAGE: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


def _rank(x: Tensor) -> int:
    if x.ndim - 2 not in _CONV:
        raise unsupported(f"expected 1 to 3 spatial axes, got input {list(x.shape)}")
    return x.ndim - 2


def _padding_behind(win: Window, lengths: list[int], outputs: list[int]) -> list[int]:
    """Padding behind that gives exactly the wanted number of windows; may be negative."""
    return [
        (outputs[i] - 1) * win.stride[i]
        + (win.kernel[i] - 1) * win.dilation[i]
        + 1
        - win.before[i]
        - lengths[i]
        for i in range(len(lengths))
    ]


def _torch_pads(win: Window) -> bool:
    """Whether torch takes the padding: symmetric and at most half of the kernel."""
    return win.symmetric and all(2 * p <= k for p, k in zip(win.before, win.kernel, strict=True))


@op("MaxPool", since=1)
def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    storage_order: int = 0,
    strides: tuple[int, ...] | None = None,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """Largest element of each window, and where it lies in the flattened input."""
    if not x.is_floating_point():
        return _max_pool_integers(
            x,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            dilations=dilations,
            kernel_shape=kernel_shape,
            pads=pads,
            storage_order=storage_order,
            strides=strides,
            n_outputs=n_outputs,
        )
    function = _MAX[_rank(x)]
    win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if n_outputs == 1 and not ceil_mode and _torch_pads(win):
        return function(x, win.kernel, win.stride, win.before, win.dilation)
    lengths = list(x.shape[2:])
    outputs = win.outputs(lengths, ceil=bool(ceil_mode))
    after = _padding_behind(win, lengths, outputs)
    padded = pad_spatial(x, win.before, after, -math.inf)
    if n_outputs == 1:
        return function(padded, win.kernel, win.stride, 0, win.dilation)
    values, places = function(padded, win.kernel, win.stride, 0, win.dilation, return_indices=True)
    return values, _flat_index(places, win.before, list(padded.shape[2:]), x, storage_order)


def _max_pool_integers(x: Tensor, **attributes: object) -> Tensor | tuple[Tensor, Tensor]:
    """8-bit integers are exact in float32, which torch pools."""
    if x.element_size() > 1:
        raise unsupported(f"MaxPool of {x.dtype}")
    result = max_pool(x.to(torch.float32), **attributes)  # type: ignore[arg-type]
    if isinstance(result, Tensor):
        return result.to(x.dtype)
    return result[0].to(x.dtype), result[1]


def _flat_index(
    places: Tensor, before: list[int], padded: list[int], x: Tensor, storage_order: int
) -> Tensor:
    """Places in the padded spatial axes -> places in the whole of ``x``, flattened."""
    coordinates: list[Tensor] = []
    for length, pad in zip(reversed(padded), reversed(before), strict=True):
        coordinates.insert(0, places % length - pad)
        places = places.div(length, rounding_mode="floor")
    axes = list(zip(coordinates, x.shape[2:], strict=True))
    flat = torch.zeros_like(places)
    for coordinate, length in axes if storage_order == 0 else reversed(axes):
        flat = flat * length + coordinate
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    planes = planes.reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return flat + planes * math.prod(x.shape[2:])


def _window_sum(x: Tensor, win: Window) -> Tensor:
    """Sum over each window of an input that is padded already."""
    ones = torch.ones(1, 1, *win.kernel, dtype=x.dtype, device=x.device)
    planes = x.reshape(-1, 1, *x.shape[2:])
    sums = _CONV[_rank(x)](planes, ones, None, win.stride, 0, win.dilation)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


@op("AveragePool", since=1)
def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: tuple[int, ...] | None = None,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Mean of each window, over real elements or with ``count_include_pad`` also over padding."""
    win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    include = bool(count_include_pad)
    rank = _rank(x)
    if not ceil_mode and _torch_pads(win) and set(win.dilation) == {1}:
        return _AVERAGE[rank](x, win.kernel, win.stride, win.before, count_include_pad=include)
    lengths = list(x.shape[2:])
    outputs = win.outputs(lengths, ceil=bool(ceil_mode))
    after = _padding_behind(win, lengths, outputs)
    counted = torch.ones(1, 1, *lengths, dtype=x.dtype, device=x.device)
    if include:
        counted = pad_spatial(counted, win.before, win.after, 1.0)
        rest = [a - b for a, b in zip(after, win.after, strict=True)]
        counted = pad_spatial(counted, [0] * rank, rest)
    else:
        counted = pad_spatial(counted, win.before, after)
    padded = pad_spatial(x, win.before, after)
    return _window_sum(padded, win) / _window_sum(counted, win)


@op("LpPool", since=2)
def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: tuple[int, ...] | None = None,
    kernel_shape: tuple[int, ...],
    p: int = 2,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """p-norm of each window."""
    win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    lengths = list(x.shape[2:])
    outputs = win.outputs(lengths, ceil=bool(ceil_mode))
    padded = pad_spatial(x, win.before, _padding_behind(win, lengths, outputs))
    return _window_sum(padded.abs() ** p, win) ** (1 / p)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@op("GlobalAveragePool", since=1)
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over the spatial axes, which stay with length 1."""
    return x.mean(_spatial(x), keepdim=True)


@op("GlobalMaxPool", since=1)
def global_max_pool(x: Tensor) -> Tensor:
    """Maximum over the spatial axes, which stay with length 1."""
    return x.amax(_spatial(x), keepdim=True)


@op("GlobalLpPool", since=2)
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """p-norm over the spatial axes, which stay with length 1."""
    return (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1 / p)
