"""Activation functions and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Affine8, Tensor
from edgecompress.litert_writer.layouts import LAST, PLAIN, Layout
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Plan, Translation

# The specification gives these outputs one scale, whatever their range.
_PROBABILITY = Affine8(1 / 256, -128)
_SIGNED_UNIT = Affine8(1 / 128, 0)


def _simple(
    t: Translation,
    node: ir.Node,
    code: str,
    options: str = "",
    *,
    fixed: Affine8 | None = None,
    layout: Layout | None = None,
    integers: bool = True,
    **fields: Any,
) -> None:
    """An operator of one input and output, on floats or int8."""
    x = node.inputs[0]
    at = t.layout_of(x) if layout is None else layout
    plan = t.plan(node, x, integers=integers)
    source = t.read(x, at, integers=plan.integers)
    _finish(t, plan, at, fixed, code, [source], options, **fields)


def _finish(
    t: Translation,
    plan: Plan,
    layout: Layout,
    fixed: Affine8 | None,
    code: str,
    inputs: list[Tensor],
    options: str,
    **fields: Any,
) -> None:
    target = t.output(plan, layout)
    made = target
    if plan.integers and fixed is not None and plan.affine != fixed:
        made = t.fresh(f"{target.index};fixed", target.shape, "int8", fixed)
    t.emit(code, inputs, [made], options, **fields)
    if made is not target:
        t.emit("QUANTIZE", [made], [target], "QuantizeOptions")


@op("Relu")
def relu(t: Translation, node: ir.Node) -> None:
    """RELU."""
    _simple(t, node, "RELU")


@op("Clip")
def clip(t: Translation, node: ir.Node) -> None:
    """RELU, RELU6 or RELU_N1_TO_1, else MAXIMUM and MINIMUM in float."""
    name = t.clip_name(node)
    if name in ("RELU", "RELU6"):
        _simple(t, node, name)
        return
    x = node.inputs[0]
    low, high = t.clip_bounds(node)
    layout = t.layout_of(x)
    plan = t.plan(node, integers=False)
    current = t.read(x, layout)
    steps = [("MAXIMUM", low)] if np.isfinite(low) else []
    steps += [("MINIMUM", high)] if np.isfinite(high) else []
    target = t.output(plan, layout)
    if not steps:
        t.reshape(current, target)
    for place, (code, bound) in enumerate(steps, 1):
        last = place == len(steps)
        made = target if last else t.fresh(f"{target.index};low", target.shape, target.dtype)
        limit = t.file.constant("bound", np.array(bound, current.dtype))
        t.emit(code, [current, limit], [made], "MaximumMinimumOptions")
        current = made


@op("Sigmoid")
def sigmoid(t: Translation, node: ir.Node) -> None:
    """LOGISTIC."""
    _simple(t, node, "LOGISTIC", fixed=_PROBABILITY)


@op("Tanh")
def tanh(t: Translation, node: ir.Node) -> None:
    """TANH."""
    _simple(t, node, "TANH", fixed=_SIGNED_UNIT)


@op("HardSwish")
def hard_swish(t: Translation, node: ir.Node) -> None:
    """HARD_SWISH."""
    _simple(t, node, "HARD_SWISH", "HardSwishOptions", integers=False)


@op("HardSigmoid")
def hard_sigmoid(t: Translation, node: ir.Node) -> None:
    """MUL, ADD, and the bounds 0 and 1, in float."""
    x = node.inputs[0]
    layout = t.layout_of(x)
    plan = t.plan(node, integers=False)
    source, target = t.read(x, layout), t.output(plan, layout)
    alpha = t.number(node.attributes.get_float("alpha", 0.2))
    beta = t.number(node.attributes.get_float("beta", 0.5))
    scaled = t.fresh(f"{target.index};scaled", target.shape, target.dtype)
    moved = t.fresh(f"{target.index};moved", target.shape, target.dtype)
    t.emit("MUL", [source, alpha], [scaled], "MulOptions")
    t.emit("ADD", [scaled, beta], [moved], "AddOptions")
    t.emit("RELU_0_TO_1", [moved], [target])


@op("Elu")
def elu(t: Translation, node: ir.Node) -> None:
    """ELU."""
    if node.attributes.get_float("alpha", 1.0) != 1.0:
        raise RefusalError("TFLite's ELU has an alpha of 1")
    _simple(t, node, "ELU", integers=False)


@op("LeakyRelu")
def leaky_relu(t: Translation, node: ir.Node) -> None:
    """LEAKY_RELU."""
    alpha = node.attributes.get_float("alpha", 0.01)
    _simple(t, node, "LEAKY_RELU", "LeakyReluOptions", alpha=alpha)


@op("PRelu")
def prelu(t: Translation, node: ir.Node) -> None:
    """PRELU in float."""
    x = node.inputs[0]
    shape = t.shape(x)
    layout = LAST if len(shape) == 4 else PLAIN
    plan = t.plan(node, integers=False)
    inputs = [t.read(x, layout), t.spread(node.inputs[1], len(shape), layout)]
    t.emit("PRELU", inputs, [t.output(plan, layout)])


@op("Gelu")
def gelu(t: Translation, node: ir.Node) -> None:
    """GELU."""
    approximate = node.attributes.get_string("approximate", "none") == "tanh"
    _simple(t, node, "GELU", "GeluOptions", approximate=approximate)


@op("Softmax")
def softmax(t: Translation, node: ir.Node) -> None:
    """SOFTMAX over the last axis; another axis is moved there and back by a TRANSPOSE."""
    x = node.inputs[0]
    rank = len(t.shape(x))
    flattens = (node.version or t.opset) < 13
    axis = node.attributes.get_int("axis", 1 if flattens else -1) % rank
    if axis == rank - 1:
        _simple(t, node, "SOFTMAX", "SoftmaxOptions", fixed=_PROBABILITY, layout=PLAIN, beta=1.0)
    elif flattens:
        raise RefusalError("a Softmax over several axes, as before operator set 13")
    elif axis == 1:
        _simple(t, node, "SOFTMAX", "SoftmaxOptions", fixed=_PROBABILITY, layout=LAST, beta=1.0)
    else:
        raise RefusalError("a Softmax over an axis that is neither the last nor that of channels")
