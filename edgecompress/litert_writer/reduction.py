"""Sums, means and extremes over axes, and normalizations made of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Tensor
from edgecompress.litert_writer.layouts import PLAIN, axis_in
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation

_REDUCERS = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "ReduceL2": "SUM",
    "ReduceSumSquare": "SUM",
}


@op(*_REDUCERS)
def reduce(t: Translation, node: ir.Node) -> None:
    """A reduction over constant axes; a mean may be on int8."""
    x = node.inputs[0]
    shape = t.shape(x)
    axes = _axes(t, node, len(shape))
    keep = bool(node.attributes.get_int("keepdims", 1))
    layout = t.layout_of(x) if keep else PLAIN
    plan = t.plan(node, x, integers=node.op_type == "ReduceMean")
    source = t.read(x, layout, integers=plan.integers)
    target = t.output(plan, layout)
    if not axes:
        t.reshape(source, target)
        return
    if node.op_type in ("ReduceL2", "ReduceSumSquare"):
        square = t.fresh(f"{target.index};square", source.shape, source.dtype)
        t.emit("MUL", [source, source], [square], "MulOptions")
        source = square
    places = t.integers(sorted(axis_in(a, len(shape), layout) for a in axes))
    root = node.op_type == "ReduceL2"
    made = t.fresh(f"{target.index};sum", target.shape, target.dtype) if root else target
    code = _REDUCERS[node.op_type]
    t.emit(code, [source, places], [made], "ReducerOptions", keepDims=keep)
    if root:
        t.emit("SQRT", [made], [target])


def _axes(t: Translation, node: ir.Node, rank: int) -> list[int]:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is not None:
        axes = t.numbers(given, "axes")
    else:
        axes = list(node.attributes.get_ints("axes", ()))
    if not axes and not node.attributes.get_int("noop_with_empty_axes", 0):
        return list(range(rank))
    return [axis % rank for axis in axes]


@op("ArgMax")
def arg_max(t: Translation, node: ir.Node) -> None:
    """ARG_MAX, in int64."""
    if node.attributes.get_int("select_last_index", 0):
        raise RefusalError("select_last_index; TFLite tells the first maximum")
    x = node.inputs[0]
    shape = t.shape(x)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    plan = t.plan(node, integers=False)
    source, target = t.read(x), t.output(plan)
    smaller = [d for a, d in enumerate(shape) if a != axis]
    made = t.fresh(f"{target.index};flat", smaller, "int64")
    word = t.file.word("TensorType", "INT64")
    inputs = [source, t.file.constant("axis", np.array(axis, np.int32))]
    t.emit("ARG_MAX", inputs, [made], "ArgMaxOptions", outputType=word)
    t.reshape(made, target)


@op("LayerNormalization")
def layer_normalization(t: Translation, node: ir.Node) -> None:
    """MEAN, SQUARED_DIFFERENCE, MEAN, RSQRT and two products and sums, in float."""
    if any(v.uses() for v in node.outputs[1:]):
        raise RefusalError("its outputs beside the first one are not written")
    x = node.inputs[0]
    rank = len(t.shape(x))
    axis = node.attributes.get_int("axis", -1) % rank
    plan = t.plan(node, integers=False)
    source, target = t.read(x), t.output(plan)
    axes = t.integers(range(axis, rank))
    centred, spread = _moments(t, source, axes, node.attributes.get_float("epsilon", 1e-5))
    made = _between(t, target, "normal")
    t.emit("MUL", [centred, spread], [made], "MulOptions")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    scaled = target if bias is None else _between(t, target, "scaled")
    t.emit("MUL", [made, t.read(node.inputs[1])], [scaled], "MulOptions")
    if bias is not None:
        t.emit("ADD", [scaled, t.read(bias)], [target], "AddOptions")


def _moments(t: Translation, source: Tensor, axes: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """A tensor less its mean, and one over its standard deviation."""
    shape = [1 if len(source.shape) - axes.shape[0] <= a else d for a, d in enumerate(source.shape)]

    def small(what: str) -> Tensor:
        return t.fresh(f"{source.index};{what}", shape, source.dtype)

    mean, variance, moved, root = (small(w) for w in ("mean", "variance", "moved", "root"))
    centred, square = _between(t, source, "centred"), _between(t, source, "square")
    t.emit("MEAN", [source, axes], [mean], "ReducerOptions", keepDims=True)
    t.emit("SUB", [source, mean], [centred], "SubOptions")
    t.emit("MUL", [centred, centred], [square], "MulOptions")
    t.emit("MEAN", [square, axes], [variance], "ReducerOptions", keepDims=True)
    t.emit("ADD", [variance, t.number(epsilon)], [moved], "AddOptions")
    t.emit("RSQRT", [moved], [root])
    return centred, root


def _between(t: Translation, like: Tensor, what: str) -> Tensor:
    return t.fresh(f"{like.index};{what}", like.shape, like.dtype)


@op("BatchNormalization")
def batch_normalization(t: Translation, node: ir.Node) -> None:
    """MUL and ADD, where no layer before it could take it in."""
    scale, bias, mean, variance = (t.array(v) for v in node.inputs[1:5])
    if scale is None or bias is None or mean is None or variance is None:
        raise RefusalError("its parameters are computed while the model runs")
    if node.attributes.get_int("training_mode", 0):
        raise RefusalError("it is in training mode; export the model for inference")
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    x = node.inputs[0]
    shape = t.shape(x)
    layout = t.layout_of(x)
    plan = t.plan(node, integers=False, fuses=True)
    source, target = t.read(x, layout), t.output(plan, layout)
    wide = [1] * len(shape)
    wide[axis_in(1, len(shape), layout)] = shape[1]
    pair = [a.astype(np.float32).reshape(wide) for a in (factor, bias - mean * factor)]
    scaled = _between(t, target, "scaled")
    t.emit("MUL", [source, t.file.constant("scale", pair[0])], [scaled], "MulOptions")
    inputs = [scaled, t.file.constant("bias", pair[1])]
    fused = t.fused(plan.activation)
    t.emit("ADD", inputs, [target], "AddOptions", fusedActivationFunction=fused)
