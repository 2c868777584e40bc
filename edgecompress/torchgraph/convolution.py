"""Convolution and its transpose in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported
from edgecompress.torchgraph.windows import pad_spatial, window

_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _for_rank(table: dict[int, Callable[..., Tensor]], x: Tensor) -> Callable[..., Tensor]:
    try:
        return table[x.ndim - 2]
    except KeyError:
        raise unsupported(f"expected 1 to 3 spatial axes, got input {list(x.shape)}") from None


@op("Conv", since=1)
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Convolution; x [n, c, ...], weight [out, c / group, ...]."""
    function = _for_rank(_CONV, x)
    win = window(x.shape[2:], weight.shape[2:], strides, dilations, pads, auto_pad)
    if win.symmetric:
        return function(x, weight, bias, win.stride, win.before, win.dilation, group)
    padded = pad_spatial(x, win.before, win.after)
    return function(padded, weight, bias, win.stride, 0, win.dilation, group)


@op("ConvTranspose", since=1)
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    output_padding: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Transposed convolution; x [n, c, ...], weight [c, out / group, ...].

    The full result is computed and then cropped, or extended by zeros, to the length that pads,
    ``output_padding`` or ``output_shape`` ask for.
    """
    function = _for_rank(_TRANSPOSED, x)
    n = x.ndim - 2
    win = window(x.shape[2:], weight.shape[2:], strides, dilations, pads, "NOTSET")
    extra = list(output_padding) if output_padding else [0] * n
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if win.symmetric and not (same or output_shape or any(extra)):
        return function(x, weight, bias, win.stride, win.before, 0, group, win.dilation)
    full = function(x, weight, None, win.stride, 0, 0, group, win.dilation)
    before, after = win.before, [a - e for a, e in zip(win.after, extra, strict=True)]
    if output_shape or same:
        lengths = (
            list(output_shape)[-n:]
            if output_shape
            else [length * s for length, s in zip(x.shape[2:], win.stride, strict=True)]
        )
        total = [
            have + more - want
            for have, more, want in zip(full.shape[2:], extra, lengths, strict=True)
        ]
        # A result that is too short grows at its end; what is cut is shared by both ends.
        small = [max(t, 0) // 2 for t in total]
        large = [max(t, 0) - s for t, s in zip(total, small, strict=True)]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        after = [a + min(t, 0) for a, t in zip(after, total, strict=True)]
        after = [a - e for a, e in zip(after, extra, strict=True)]
    full = pad_spatial(full, [-b for b in before], [-a for a in after])
    return full if bias is None else full + bias.reshape(-1, *[1] * n)
