"""Which layers run on integers with activations that are quantized while the model runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import onnx_ir as ir

from edgecompress.graph_pass import Skip
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.qdq_plan import label
from edgecompress.quantization.editing import bias_of, body_graphs

__all__ = ["DynamicOptions", "DynamicLayer", "DynamicPlan", "plan_dynamic"]

# Below these sizes, quantizing the input takes longer than the product gains (onnxruntime 1.31 on a
# Xeon with VNNI: MatMul gains from 64 x 64 on, LSTM from 192 inputs and hidden values on).
_LEAST_PRODUCT = 64 * 64
_LEAST_LSTM = 2**18
_TOO_SMALL = "it is so small that quantizing its input takes longer than it gains"


class DynamicOptions(Protocol):
    """How the weights of one layer become integers."""

    @property
    def weight_method(self) -> str:
        """``mse`` or ``minmax``, see :func:`~edgecompress.numerics.affine.weight_scales`."""

    @property
    def per_channel(self) -> bool:
        """Whether each output channel has a scale of its own."""


@dataclass(frozen=True)
class DynamicLayer:
    """A layer to quantize.

    Attributes:
        node: Gemm, MatMul or LSTM of the model that was planned for.
        options: How its weights become integers.
        nested: Whether it lies inside a body (If, Loop or Scan).
    """

    node: ir.Node
    options: DynamicOptions
    nested: bool


@dataclass
class DynamicPlan:
    """What will be quantized, and what will not and why."""

    layers: list[DynamicLayer] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


def plan_dynamic(
    model: Model, options_for: Callable[[ir.Node], DynamicOptions | None]
) -> DynamicPlan:
    """Decide which layers are quantized, in the main graph and in bodies.

    Args:
        model: The float model.
        options_for: Options of a node, or None where the recipe leaves it out.
    """
    plan = DynamicPlan()
    for graph in body_graphs(model):
        for node in graph:
            refuse = _RULES.get(node.op_type)
            if refuse is None or node.domain not in DEFAULT_DOMAINS:
                continue
            options = options_for(node)
            reason = "left out by the recipe" if options is None else refuse(node)
            if options is None or reason:
                plan.skipped.append(Skip(label(node), node.op_type, reason))
            else:
                nested = graph is not model.ir.graph
                plan.layers.append(DynamicLayer(node, options, nested))
    return plan


def _refuse_matmul(node: ir.Node) -> str:
    x, weight = node.inputs[0], node.inputs[1]
    if x is not None and _is_constant(x):
        return "its first input is constant"
    return _refuse_input(x) or _refuse_weight(weight, 2, _LEAST_PRODUCT)


def _refuse_gemm(node: ir.Node) -> str:
    reason = _refuse_matmul(node)
    if reason:
        return reason
    if _number(node, "transA", 0):
        return "transA is 1, expected 0"
    bias = bias_of(node)
    if bias is not None and _number(node, "beta", 1.0) != 1.0 and not _is_constant(bias):
        return "its bias is computed at run time, and beta is not 1"
    return ""


def _refuse_lstm(node: ir.Node) -> str:
    x, weight, recurrence = node.inputs[:3]
    reason = _refuse_input(x) or _refuse_weight(weight, 3, 0) or _refuse_weight(recurrence, 3, 0)
    if reason:
        return reason
    if _number(node, "layout", 0):
        return "layout is 1, expected 0"
    elements = sum(math.prod(w.shape.numpy()) for w in (weight, recurrence) if w and w.shape)
    return _TOO_SMALL if elements < _LEAST_LSTM else ""


def _refuse_conv(_: ir.Node) -> str:
    return "convolutions of activations quantized at run time are slower than float ones"


_RULES: dict[str, Callable[[ir.Node], str]] = {
    "MatMul": _refuse_matmul,
    "Gemm": _refuse_gemm,
    "LSTM": _refuse_lstm,
    "Conv": _refuse_conv,
    "ConvTranspose": _refuse_conv,
}


def _refuse_input(x: ir.Value | None) -> str:
    if x is None:
        return "an input is missing"
    producer = x.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return "its input is quantized already"
    if x.dtype not in (None, ir.DataType.FLOAT):
        return f"its input is {_word(x.dtype)}, expected float"
    return ""


def _refuse_weight(weight: ir.Value | None, rank: int, least: int) -> str:
    if weight is None:
        return "an input is missing"
    producer = weight.producer()
    if producer is not None:
        if producer.op_type == "DequantizeLinear":
            return "it is already quantized"
        if producer.op_type == "Constant":
            return "its weight is a Constant node (the pass 'cleanup' makes it an initializer)"
        return "its weight is computed at run time"
    tensor = weight.const_value
    if tensor is None:
        return "its weight is an input of the model"
    if weight.is_graph_input():
        return "its weight may be overridden by an input (the pass 'cleanup' forbids that)"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {_word(tensor.dtype)}, expected float"
    if len(tensor.shape) != rank:
        return f"its weight has {len(tensor.shape)} dimensions, expected {rank}"
    return _TOO_SMALL if math.prod(tensor.shape.numpy()) < least else ""


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else float(attribute.value)


def _word(dtype: ir.DataType | None) -> str:
    return "" if dtype is None else dtype.name.lower()
