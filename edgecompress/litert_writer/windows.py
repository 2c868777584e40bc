"""Strides, dilations and padding of convolutions and pools, in TFLite's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Tensor
from edgecompress.litert_writer.registry import RefusalError
from edgecompress.litert_writer.translation import Translation

__all__ = ["Window", "pad_tensor", "padded", "window_of"]


@dataclass(frozen=True)
class Window:
    """A sliding window over two axes, height first.

    Attributes:
        kernel: Its extent.
        strides: Its steps.
        dilations: Distances of its taps.
        before: Padding before each axis.
        after: Padding behind each axis, as far as the window reaches.
        same: Whether TFLite's SAME padding is just that.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    same: bool

    @property
    def padding(self) -> bool:
        """Whether there is any."""
        return any((*self.before, *self.after))

    @property
    def options(self) -> dict[str, int]:
        """Fields of TFLite's tables of options."""
        return {"strideH": self.strides[0], "strideW": self.strides[1]}

    @property
    def dilation_options(self) -> dict[str, int]:
        """Fields for dilated convolutions."""
        return {"dilationHFactor": self.dilations[0], "dilationWFactor": self.dilations[1]}


def window_of(node: ir.Node, kernel: Sequence[int], source: Sequence[int], out: Any) -> Window:
    """The window of a Conv or pool of one or two spatial axes.

    Args:
        node: The node.
        kernel: Spatial extent of its kernel.
        source: Spatial dimensions of its input.
        out: Spatial dimensions of its output.

    Raises:
        RefusalError: It has three spatial axes.
    """
    rank = len(kernel)
    if rank not in (1, 2):
        raise RefusalError(f"it has {rank} spatial axes; TFLite's kernels have 2")
    strides = tuple(node.attributes.get_ints("strides", (1,) * rank))
    dilations = tuple(node.attributes.get_ints("dilations", (1,) * rank))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    # What the windows cover; less than what is there where a step does not fit in.
    covered = [(o - 1) * s + r for o, s, r in zip(out, strides, reach, strict=True)]
    total = [c - i for c, i in zip(covered, source, strict=True)]
    before = _before(node, total, rank)
    after = [t - b for t, b in zip(total, before, strict=True)]
    same = all(
        o == -(-i // s) and b == max(t, 0) // 2
        for o, i, s, b, t in zip(out, source, strides, before, total, strict=True)
    )
    return Window(
        _two(kernel),
        _two(strides),
        _two(dilations),
        _two(before, 0),
        _two([max(a, 0) for a in after], 0),
        same,
    )


def _before(node: ir.Node, total: Sequence[int], rank: int) -> list[int]:
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "SAME_UPPER":
        return [max(t, 0) // 2 for t in total]
    if auto == "SAME_LOWER":
        return [-(-max(t, 0) // 2) for t in total]
    if auto == "VALID":
        return [0] * rank
    return list(node.attributes.get_ints("pads", (0,) * (2 * rank)))[:rank]


def _two(numbers: Sequence[int], filler: int = 1) -> tuple[int, int]:
    """One spatial axis is the width of two."""
    return (filler, int(numbers[0])) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def padded(t: Translation, source: Tensor, window: Window, value: float) -> Tensor:
    """An input of rank 4, channels last, with a window's padding around it."""
    pads = [(0, 0), *zip(window.before, window.after, strict=True), (0, 0)]
    return pad_tensor(t, source, pads, value)


def pad_tensor(
    t: Translation, source: Tensor, pads: Sequence[tuple[int, int]], value: float
) -> Tensor:
    """A tensor with ``value`` around it, which its integers must be able to stand for."""
    shape = [d + sum(p) for d, p in zip(source.shape, pads, strict=True)]
    target = t.fresh(f"{source.index};padded", shape, source.dtype, source.affine)
    amounts = t.file.constant("pads", np.array(pads, np.int32))
    if value == 0:
        t.emit("PAD", [source, amounts], [target], "PadOptions")
        return target
    if source.affine is None:
        filler = t.file.constant("filler", np.array([value], source.dtype))
    else:
        step = round(value / source.affine.scale) + source.affine.zero_point
        number = np.array([min(max(step, -128), 127)], np.int8)
        filler = t.file.tensor("filler", [1], "int8", data=number, quantization=source.affine)
    t.emit("PADV2", [source, amounts, filler], [target], "PadV2Options")
    return target
