"""What single nodes allow: which operators quantize how, and where their channels lie."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS

__all__ = [
    "JOINS",
    "LAYERS",
    "channel_axis",
    "groups_along",
    "is_dynamic_matmul",
    "is_grouped",
    "is_mover",
    "is_shallow_conv",
    "label",
    "name_of",
    "operands",
    "pads_with_zero",
    "passing_range",
    "starts_at_zero",
    "why_not_layer",
]

LAYERS = {"Conv": 3, "ConvTranspose": 3, "Gemm": 2, "MatMul": 2}
"""Operators with weights, and the least number of dimensions of their weights."""

JOINS = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Concat", "Where", "MatMul"),
        *("GlobalAveragePool", "AveragePool", "ReduceMean"),
        *("Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Gelu", "Softmax", "LayerNormalization"),
    }
)
"""Operators without weights whose result needs a scale of its own."""

_MOVERS = frozenset(
    {
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather"),
        *("Expand", "Split", "Tile", "DepthToSpace", "SpaceToDepth"),
    }
)
_SHALLOW, _MOST_GROWTH = 4, 3
_SPATIAL = ("Conv", "ConvTranspose")
# Inputs that are numbers to compute with, where not all are: conditions and shapes are none.
_OPERANDS = {"Where": (1, 2), "ReduceMean": (0,), "LayerNormalization": (0,)}


def operands(node: ir.Node) -> list[ir.Value]:
    """The inputs of a join that become integers."""
    places = _OPERANDS.get(node.op_type, range(len(node.inputs)))
    return [v for place in places if (v := node.inputs[place]) is not None]


def is_dynamic_matmul(node: ir.Node) -> bool:
    """Whether both inputs of a MatMul are computed while the model runs."""
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    if weight is None or weight.const_value is not None:
        return False
    producer = weight.producer()
    return producer is not None and producer.op_type not in ("DequantizeLinear", "Constant")


def is_mover(node: ir.Node, int8_ops: frozenset[str]) -> bool:
    """Whether a node moves its first input unchanged, so that integers keep their scale."""
    if node.domain not in DEFAULT_DOMAINS:
        return False
    if pads_with_zero(node):
        return True
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return "Resize" in int8_ops and (mode is None or mode.value == "nearest")
    return node.op_type in _MOVERS and node.op_type in int8_ops


def why_not_layer(node: ir.Node, int8_ops: frozenset[str]) -> str:
    """Why a node with weights stays in float, or an empty string."""
    x, weight = node.inputs[0], node.inputs[1]
    if node.op_type not in int8_ops:
        return f"the target does not run {node.op_type} on integers"
    if weight is None or x is None:
        return "an input is missing"
    reason = _why_not_weight(node, weight)
    if reason:
        return reason
    if x.const_value is not None and not x.is_graph_input():
        return "its input is constant"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if bias.const_value is None or bias.is_graph_input():
            return "its bias is computed at run time"
        assert weight.const_value is not None  # _why_not_weight has seen to it
        channels = weight.const_value.shape.numpy()[channel_axis(node)] * groups_along(node)
        if bias.const_value.shape.numpy() != (channels,):
            return f"its bias has the shape {list(bias.const_value.shape)}"
    return _why_not_gemm(node)


def _why_not_weight(node: ir.Node, weight: ir.Value) -> str:
    producer = weight.producer()
    if producer is not None:
        if producer.op_type == "DequantizeLinear":
            return "it is already quantized"
        if producer.op_type == "Constant":
            return "its weight is a Constant node (the pass 'cleanup' makes it an initializer)"
        return "its weight is computed at run time"
    if weight.const_value is None:
        return "its weight is an input of the model"
    if weight.is_graph_input():
        return "its weight may be overridden by an input (the pass 'cleanup' forbids that)"
    if weight.const_value.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.const_value.dtype.name.lower()}, expected float"
    rank = len(weight.const_value.shape)
    if rank < LAYERS[node.op_type] or (node.op_type not in _SPATIAL and rank != 2):
        return f"its weight has {rank} dimensions"
    return ""


def _why_not_gemm(node: ir.Node) -> str:
    if node.op_type != "Gemm":
        return ""
    for name, needed in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != needed:
            return f"{name} is {attribute.value}, expected {needed}"
    return ""


def is_shallow_conv(node: ir.Node) -> bool:
    """A Conv over space with at most 4 input channels in a group, whose output is not much larger.

    In front of all integers the quantizer moves behind such a Conv, and has its output to convert.
    """
    weight = node.inputs[1] if node.op_type == "Conv" and len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None:
        return False
    channels, depth, *kernel = weight.const_value.shape.numpy()
    if depth > _SHALLOW or math.prod(kernel) == 1:
        return False
    groups = int(node.attributes["group"].value) if is_grouped(node) else 1
    strides = node.attributes.get("strides")
    step = 1 if strides is None else math.prod(strides.value)
    return bool(channels <= _MOST_GROWTH * step * depth * groups)


def channel_axis(node: ir.Node) -> int:
    """Axis of a layer's weight that counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        attribute = node.attributes.get("transB")
        return 0 if attribute is not None and attribute.value else 1
    return 1


def is_grouped(node: ir.Node) -> bool:
    """Whether a node has more than one group."""
    group = node.attributes.get("group")
    return group is not None and group.value != 1


def groups_along(node: ir.Node) -> int:
    """How often the channel axis of a weight is repeated in the output."""
    if node.op_type != "ConvTranspose" or not is_grouped(node):
        return 1
    return int(node.attributes["group"].value)


def starts_at_zero(node: ir.Node) -> bool:
    """Relu, or Clip between constant 0 and something larger."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    if _number(node.inputs[1]) != 0.0:
        return False
    high = node.inputs[2] if len(node.inputs) > 2 else None
    return high is None or (_number(high) or 0.0) > 0


def passing_range(node: ir.Node) -> tuple[float, float]:
    """Ends of the values that the activation right behind a node lets through unchanged."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return -math.inf, math.inf
    follower = uses[0].node
    if follower.op_type == "Relu":
        return 0.0, math.inf
    if follower.op_type != "Clip":
        return -math.inf, math.inf
    ends = [*follower.inputs[1:3], None, None][:2]
    low, high = (None if end is None else _number(end) for end in ends)
    return -math.inf if low is None else low, math.inf if high is None else high


def pads_with_zero(node: ir.Node) -> bool:
    """Zero is exact on every grid: such a Pad loses nothing even if the runtime keeps it float."""
    if node.op_type != "Pad":
        return False
    mode = node.attributes.get("mode")
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is not None and mode.value != "constant":
        return True
    return fill is None or _number(fill) == 0.0


def _number(value: ir.Value) -> float | None:
    tensor = value.const_value
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def name_of(value: ir.Value | None) -> str:
    """Name of a value; empty for one that is missing."""
    return "" if value is None or value.name is None else value.name


def label(node: ir.Node) -> str:
    """What people know a node by: its name, or that of its output."""
    return node.name or name_of(node.outputs[0])
