"""Probes of everything between layers: elementwise kernels, moves of data, branches, detection."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgecompress.estimate.networks import Network, Probe

__all__ = ["control_flow", "detection", "elementwise", "moving"]

_LIMITS = ((100, "int64"), (0.5, "float32"), (0.25, "float32"))
_SIZES = ((16,), (64, 128), (256, 256), (1024, 512))
_UNARY = ("Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Sqrt")
_BINARY = ("Add", "Mul", "Div", "Pow")


def elementwise() -> Iterator[Probe]:
    """Arithmetic, functions, normalizations and reductions, from in the cache to beyond it."""
    import numpy as np

    for shape in _SIZES:
        for op in _UNARY:
            net = Network(shape)
            y = "x"
            for _ in range(6):
                y = net.op(op, [net.op("Neg", [y])])
            yield net.done(f"{op} {shape}", y)
        for op in _BINARY:
            net = Network(shape)
            y, other = "x", "x"
            if op == "Pow":
                other = net.constant(np.float32(2))
            for _ in range(6):
                y = net.op(op, [y, other])
            yield net.done(f"{op} {shape}", y)
        net = Network(shape)
        y = "x"
        for _ in range(4):
            y = net.gelu(y)
        yield net.done(f"Gelu {shape}", y)
        net = Network(shape)
        y = "x"
        for _ in range(6):
            y = net.op("LayerNormalization", [y, net.weight(shape[-1]), net.weight(shape[-1])])
        yield net.done(f"LayerNormalization {shape}", y)
        for row in {shape[-1], 16}:
            net = Network((math.prod(shape) // row, row))
            y = "x"
            for _ in range(6):
                y = net.op("Softmax", [y], axis=-1)
            yield net.done(f"Softmax {shape} {row}", y)
        net = Network(shape)
        y = "x"
        for _ in range(4):
            mean = net.op("ReduceMean", [y], (*shape[:-1], 1), axes=[-1], keepdims=1)
            y = net.op("Sub", [y, mean])
        yield net.done(f"ReduceMean {shape}", y)
        net = Network(shape)
        y = "x"
        for _ in range(4):
            large = net.op("Greater", [y, net.constant(np.float32(0.1))])
            y = net.op("Where", [large, y, net.constant(np.float32(0.1))], shape)
        yield net.done(f"Where {shape}", y)
    for channels, size in ((24, 56), (32, 28), (16, 32), (64, 8)):
        net = Network((1, channels, size, size), integers=True)
        y = first = net.conv(net.quantize("x"), channels, 1)
        for _ in range(3):
            y = net.op("Add", [net.conv(y, channels, 1), first])
        y = net.op("GlobalAveragePool", [y], (1, channels, 1, 1))
        yield net.done(f"integer Add {channels} {size}", y)


def moving() -> Iterator[Probe]:
    """Slices, transposes, look-ups, casts and views."""
    import numpy as np

    for rows, columns in ((4, 4), (64, 128), (256, 256), (1024, 256)):
        net = Network((1, rows, columns))
        y = "x"
        for _ in range(3):
            half = columns // 2
            parts = [
                net.op(
                    "Slice",
                    [y, *(net.constant(np.array([n])) for n in (start, start + half, 2, 1))],
                    (1, rows, half),
                )
                for start in (half, 0)
            ]
            y = net.op("Concat", parts, (1, rows, columns), axis=2)
        yield net.done(f"Slice and Concat {rows} {columns}", y)
        net = Network((1, rows, columns))
        y = "x"
        for _ in range(3):
            y = net.op("Softmax", [y], axis=-1)
            y = net.op("CumSum", [net.swap(y, 0, 2, 1), net.constant(np.array(1))])
            y = net.swap(y, 0, 2, 1)
        yield net.done(f"Transpose {rows} {columns}", y)
        net = Network((1, rows, columns))
        y = "x"
        for _ in range(3):
            y = net.op("CumSum", [y, net.constant(np.array(1))])
        yield net.done(f"CumSum {rows} {columns}", y)
        net = Network((1, rows, columns))
        lines = [
            net.op(op, ["x"], (1, 1, columns), axes=[1], keepdims=1)
            for op in ("ReduceMax", "ReduceMean")
        ]
        yield net.done(f"reduce columns {rows} {columns}", net.op("Add", lines))
        net = Network((rows, columns))
        numbers = net.constant(np.arange(rows)[::-1].copy())
        y = "x"
        for _ in range(3):
            y = net.op("Gather", [y, numbers])
        yield net.done(f"Gather {rows} {columns}", y)
        net = Network((1, rows, columns))
        whole = net.op("Cast", ["x"], to=7)
        y = net.op("Cast", [whole], to=1)
        yield net.done(f"Cast {rows} {columns}", net.op("Sqrt", [y]))
        net = Network((1, rows, columns))
        y = "x"
        for _ in range(8):
            y = net.op("Unsqueeze", [y, net.constant(np.array([0]))], (1, 1, rows, columns))
            y = net.op("Squeeze", [y, net.constant(np.array([0]))], (1, rows, columns))
            y = net.op("Relu", [net.op("Neg", [y])])
        yield net.done(f"views {rows} {columns}", y)
    for channels, size in ((64, 56), (16, 112)):
        net = Network((1, channels, size, size))
        net.shapes["half"] = (1, channels, size // 2, size // 2)
        y = net.op("MaxPool", ["x"], net.shapes["half"], kernel_shape=[2, 2], strides=[2, 2])
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        y = net.op("Resize", [y, "", scales], (1, channels, size, size), mode="nearest")
        yield net.done(f"MaxPool and Resize {channels} {size}", y)


def control_flow() -> Iterator[Probe]:
    """Branches with next to nothing in them."""
    import numpy as np
    from onnx import TensorProto, helper

    for count in (2, 8):
        net = Network((16,))
        y = "x"
        for number in range(count):
            branches = {}
            for side, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
                result = f"{side}{number}"
                made = [helper.make_tensor_value_info(result, TensorProto.FLOAT, (16,))]
                node = helper.make_node(op, [y], [result])
                branches[side] = helper.make_graph([node], side, [], made)
            least = net.op("ReduceMin", [y], (), keepdims=0)
            positive = net.op("Greater", [least, net.constant(np.float32(0))])
            y = net.op("If", [positive], (16,), **branches)
        yield net.done(f"If x{count}", y)


def detection() -> Iterator[Probe]:
    """Suppression of overlapping boxes."""
    import numpy as np

    for boxes in (256, 4096):
        net = Network((1, boxes, 4))
        scores = net.constant(net.random.random((1, 1, boxes)).astype("float32"))
        limits = [net.constant(np.array([value], dtype)) for value, dtype in _LIMITS]
        picked = net.op("NonMaxSuppression", ["x", scores, *limits], (-1, 3))
        numbers = net.op("Cast", [picked], (-1, 3), to=1)
        yield net.done(f"boxes {boxes}", net.op("ReduceSum", [numbers], (), keepdims=0))
