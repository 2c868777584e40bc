"""Putting pieces of an image back: from columns, from pooled maxima, into a frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, integers, unsupported
from edgecompress.torchgraph.windows import pad_spatial, window


@op("Col2Im", since=18, host=(1, 2))
def col2im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Sum of overlapping blocks; x [n, c * block, blocks] -> [n, c, *image_shape]."""
    lengths, block = integers(image_shape), integers(block_shape)
    win = window(lengths, block, strides, dilations, pads, "NOTSET")
    padded = [n + a + b for n, a, b in zip(lengths, win.before, win.after, strict=True)]
    counts = win.outputs(lengths)
    place = torch.zeros([1] * (2 * len(block)), dtype=torch.int64, device=x.device)
    for i, length in enumerate(padded):
        element = torch.arange(block[i], device=x.device).unsqueeze(1) * win.dilation[i]
        step = torch.arange(counts[i], device=x.device) * win.stride[i]
        shape = [1] * (2 * len(block))
        shape[i], shape[len(block) + i] = block[i], counts[i]
        place = place * length + (element + step).reshape(shape)
    columns = x.reshape(x.shape[0], -1, place.numel())
    image = x.new_zeros(*columns.shape[:2], math.prod(padded))
    image = image.index_add(2, place.reshape(-1), columns)
    image = image.reshape(*columns.shape[:2], *padded)
    return pad_spatial(image, [-n for n in win.before], [-n for n in win.after])


@op("MaxUnpool", since=9, host=(2,))
def max_unpool(
    x: Tensor,
    places: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Maxima put back where they came from, zero elsewhere.

    Args:
        x: [n, c, ...].
        places: As ``x``: indices into the whole of the flattened result.
        output_shape: Shape of the result.
        kernel_shape: Of the pool that is undone.
        pads: Of that pool.
        strides: Of that pool.

    Raises:
        ModelError: ``output_shape`` differs from what the attributes give: the specification
            counts indices in the one, onnxruntime in the other.
    """
    win = window(x.shape[2:], kernel_shape, strides, None, pads, "NOTSET")
    lengths = [
        (n - 1) * win.stride[i] - win.before[i] - win.after[i] + win.kernel[i]
        for i, n in enumerate(x.shape[2:])
    ]
    shape = [*x.shape[:2], *lengths]
    if output_shape is not None and integers(output_shape) != shape:
        raise unsupported(
            f"MaxUnpool to {integers(output_shape)} instead of {shape}: "
            "the specification and onnxruntime differ"
        )
    flat = x.new_zeros(math.prod(shape))
    return flat.scatter(0, places.reshape(-1), x.reshape(-1)).reshape(shape)


@op("CenterCropPad", since=18, host=(1,))
def center_crop_pad(x: Tensor, shape: Tensor, *, axes: tuple[int, ...] | None = None) -> Tensor:
    """Crop or pad with zeros to given lengths around the centre; half elements go to the right."""
    before, after = [0] * x.ndim, [0] * x.ndim
    named = range(x.ndim) if axes is None else axes
    for axis, target in zip(named, integers(shape), strict=True):
        along = axis_of(axis, x.ndim)
        change = target - x.shape[along]
        before[along] = change // 2 if change > 0 else -(-change // 2)
        after[along] = change - before[along]
    return pad_spatial(x, before, after)
