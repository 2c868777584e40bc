"""Pools."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Tensor
from edgecompress.litert_writer.layouts import LAST
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation
from edgecompress.litert_writer.windows import Window, padded, window_of


def _window(t: Translation, node: ir.Node) -> Window:
    kernel = node.attributes.get_ints("kernel_shape", ())
    shape, out = t.shape(node.inputs[0]), t.shape(node.outputs[0])
    if len(shape) != 4:
        raise RefusalError(f"a pool over {len(shape) - 2} axes; TFLite's have 2")
    if any(d != 1 for d in node.attributes.get_ints("dilations", (1, 1))):
        raise RefusalError("a pool with dilations")
    return window_of(node, kernel, shape[2:], out[2:])


def _pool(t: Translation, code: str, source: Tensor, target: Tensor, window: Window) -> None:
    t.emit(
        code,
        [source],
        [target],
        "Pool2DOptions",
        padding=t.file.word("Padding", "SAME" if window.same else "VALID"),
        filterHeight=window.kernel[0],
        filterWidth=window.kernel[1],
        **window.options,
    )


@op("MaxPool")
def max_pool(t: Translation, node: ir.Node) -> None:
    """MAX_POOL_2D, also on int8; padding stands for the least number."""
    if len([v for v in node.outputs if v.name]) > 1:
        raise RefusalError("its second output, the places of the maxima, is not written")
    window = _window(t, node)
    x = node.inputs[0]
    integers = t.affine(x) is not None
    source = t.read(x, LAST, integers=integers)
    if window.padding and not window.same:
        source = padded(t, source, window, float(np.finfo(np.float32).min))
    _pool(t, "MAX_POOL_2D", source, t.moved_output(node, source, LAST), window)


@op("AveragePool")
def average_pool(t: Translation, node: ir.Node) -> None:
    """AVERAGE_POOL_2D; where padding counts less than a kernel's place, MUL mends the average."""
    window = _window(t, node)
    x = node.inputs[0]
    shape, out = t.shape(x), t.shape(node.outputs[0])
    counts_padding = bool(node.attributes.get_int("count_include_pad", 0))
    direct = not window.padding or (window.same and not counts_padding)
    share = None if direct else _share(node, window, shape[2:], out[2:], counts_padding)
    integers = t.affine(x) is not None and share is None
    source = t.read(x, LAST, integers=integers)
    if direct:
        _pool(t, "AVERAGE_POOL_2D", source, t.moved_output(node, source, LAST), window)
        return
    plain = Window(
        window.kernel, window.strides, window.dilations, window.before, window.after, same=False
    )
    source = padded(t, source, window, 0)
    target = t.moved_output(node, source, LAST)
    if share is None:
        _pool(t, "AVERAGE_POOL_2D", source, target, plain)
        return
    made = t.fresh(f"{target.index};sum", target.shape, target.dtype)
    _pool(t, "AVERAGE_POOL_2D", source, made, plain)
    t.emit("MUL", [made, t.file.constant("share", share)], [target], "MulOptions")


def _share(
    node: ir.Node,
    window: Window,
    source: tuple[int, ...],
    out: tuple[int, ...],
    counts_padding: bool,
) -> np.ndarray | None:
    """Places of the kernel over those that count, ``[1, H, W, 1]``; None where all count."""
    pads = node.attributes.get_ints("pads", (0, 0, 0, 0))
    counts = []
    for axis in (0, 1):
        low, high = (0, source[axis])
        if counts_padding:
            low, high = -pads[axis], source[axis] + pads[axis + 2]
        starts = np.arange(out[axis]) * window.strides[axis] - window.before[axis]
        ends = starts + window.kernel[axis]
        counts.append(np.minimum(ends, high) - np.maximum(starts, low))
    places = np.outer(*counts)
    if (places == math.prod(window.kernel)).all():
        return None
    share: np.ndarray = (math.prod(window.kernel) / places).astype(np.float32)
    return share[None, :, :, None]


@op("GlobalAveragePool", "GlobalMaxPool")
def global_pool(t: Translation, node: ir.Node) -> None:
    """MEAN or REDUCE_MAX over all axes but rows and channels."""
    x = node.inputs[0]
    mean = node.op_type == "GlobalAveragePool"
    plan = t.plan(node, x, integers=mean)
    source = t.read(x, LAST, integers=plan.integers)
    axes = t.integers(range(1, len(source.shape) - 1))
    code = "MEAN" if mean else "REDUCE_MAX"
    t.emit(code, [source, axes], [t.output(plan, LAST)], "ReducerOptions", keepDims=True)
