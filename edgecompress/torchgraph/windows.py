"""Arithmetic of sliding windows that convolutions and pools share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.values import unsupported

__all__ = ["Window", "pad_spatial", "window"]


class Window(NamedTuple):
    """Sizes along the spatial axes; ``before`` and ``after`` are paddings."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    before: list[int]
    after: list[int]

    @property
    def symmetric(self) -> bool:
        """Whether torch's own padding argument can express the padding."""
        return self.before == self.after

    def outputs(self, lengths: Sequence[int], *, ceil: bool = False) -> list[int]:
        """Number of positions of the window along each axis of the given lengths.

        With ``ceil`` a last, partial window counts, unless it starts in the padding behind.
        """
        counts = []
        for i, length in enumerate(lengths):
            reach = (self.kernel[i] - 1) * self.dilation[i] + 1
            room = length + self.before[i] + self.after[i] - reach
            count = (-(-room // self.stride[i]) if ceil else room // self.stride[i]) + 1
            if ceil and (count - 1) * self.stride[i] >= length + self.before[i]:
                count -= 1
            counts.append(count)
        return counts


def window(
    lengths: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Window:
    """Resolve the attributes of a convolution or pool for an input of the given lengths.

    Raises:
        ModelError: ``auto_pad`` is unknown.
    """
    n = len(kernel)
    stride = list(strides) if strides else [1] * n
    dilation = list(dilations) if dilations else [1] * n
    if auto_pad == "NOTSET":
        both = list(pads) if pads else [0] * (2 * n)
        return Window(list(kernel), stride, dilation, both[:n], both[n:])
    if auto_pad == "VALID":
        return Window(list(kernel), stride, dilation, [0] * n, [0] * n)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise unsupported(f"auto_pad={auto_pad!r}")
    before, after = [], []
    for i, length in enumerate(lengths):
        reach = (kernel[i] - 1) * dilation[i] + 1
        total = max((-(-length // stride[i]) - 1) * stride[i] + reach - length, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return Window(list(kernel), stride, dilation, before, after)


def pad_spatial(
    x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0
) -> Tensor:
    """Pad (or, where negative, crop) the last axes of ``x``."""
    amounts = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return functional.pad(x, amounts, value=value) if any(amounts) else x
