"""Where Q/DQ pairs go so that integer kernels are fused: decided here, edited by the pass.

Rules, from how onnxruntime and its relatives match Q/DQ groups:

- A *layer* (Conv, Gemm, MatMul with constant weight) needs its input quantized. A Conv also needs
  a quantized output, else it stays float; Gemm and MatMul may give float.
- An activation that the quantizer can do itself (Relu, or Clip from 0) right behind a layer or join
  is left between the node and its Q: the runtime drops it, since the range starts at zero.
- A *join* (Add, Concat, average pools ...) runs on integers when all its inputs are quantized.
- A *mover* (Reshape, MaxPool, Slice ...) moves integers: its output shares the input's scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from edgecompress.graph_pass import Pass, Skip
from edgecompress.model import DEFAULT_DOMAINS, Model

__all__ = ["Layer", "Join", "Placement", "place", "label"]

_JOINS = frozenset(
    {"Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu", "Softmax"}
)
_MOVERS = frozenset(
    {
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "MaxPool",
        "Slice",
        "Gather",
        "Expand",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
_LAYERS = {"Conv": 3, "Gemm": 2, "MatMul": 2}
"""Layers and the least number of dimensions of their weights."""


@dataclass(frozen=True)
class Layer:
    """A node whose weights become integers.

    Attributes:
        node: Its name, for people.
        output: Name of its first output, which identifies it.
        input: Name of the activation that it reads.
        weight: Name of the weight initializer.
        channel_axis: Axis of the weight that counts output channels.
    """

    node: str
    op: str
    output: str
    input: str
    weight: str
    channel_axis: int


@dataclass(frozen=True)
class Join:
    """A node without weights that runs on integers."""

    node: str
    op: str


@dataclass
class Placement:
    """What will be quantized.

    Attributes:
        layers: Nodes whose weights become integers, in graph order.
        joins: Other nodes that run on integers.
        options: Activation to quantize -> the pass options that rule its range: those of the node
            that makes it, or else of its first reader.
        shared: Activation -> the activation whose scale it takes over.
        skipped: Candidates left in float, with reasons.
    """

    layers: list[Layer] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    options: dict[str, Pass] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)

    @property
    def measured(self) -> list[str]:
        """Activations that need a range of their own."""
        return [name for name in self.options if name not in self.shared]


def place(
    model: Model,
    options_for: Callable[[ir.Node], Pass | None],
    int8_ops: frozenset[str],
    *,
    drop_activations: bool = True,
) -> Placement:
    """Decide where Q/DQ pairs go.

    Args:
        model: The float model.
        options_for: Pass options of a node, or None where the recipe leaves it out.
        int8_ops: Operators that the target runs on integers.
        drop_activations: Whether the runtime drops a ReLU in front of a quantizer; it can where
            the zero point may lie at the end of the integer range.
    """
    return _Planner(model, options_for, int8_ops, drop_activations).run()


class _Planner:
    def __init__(
        self,
        model: Model,
        options_for: Callable[[ir.Node], Pass | None],
        int8_ops: frozenset[str],
        drop_activations: bool,
    ) -> None:
        self._graph = model.ir.graph
        self._nodes = [n for n in self._graph if n.domain in DEFAULT_DOMAINS]
        self._options_for = options_for
        self._int8_ops = int8_ops
        self._drop_activations = drop_activations
        self._plan = Placement()
        self._can_quantize: dict[str, Pass] = {}  # ends of Gemm and MatMul: quantized on demand

    def run(self) -> Placement:
        for node in self._nodes:
            if node.op_type in _LAYERS:
                self._take_layer(node)
        if self._plan.layers:
            self._take_joins()
            self._share_scales()
            wanted = self._can_quantize.keys() & self._plan.options.keys()
            self._plan.options.update({name: self._can_quantize[name] for name in wanted})
        self._skip_nested()
        return self._plan

    def _take_layer(self, node: ir.Node) -> None:
        options = self._options_for(node)
        reason = "left out by the recipe" if options is None else self._refuse(node)
        if options is None or reason:
            self._skip(node, reason)
            return
        x, weight = node.inputs[0], node.inputs[1]
        self._plan.layers.append(
            Layer(
                node=label(node),
                op=node.op_type,
                output=_name(node.outputs[0]),
                input=_name(x),
                weight=_name(weight),
                channel_axis=_channel_axis(node),
            )
        )
        self._plan.options.setdefault(_name(x), options)
        end = _name(self._end(node))
        if node.op_type == "Conv":
            self._plan.options[end] = options
        else:
            self._can_quantize[end] = options

    def _refuse(self, node: ir.Node) -> str:
        """Why a layer stays in float, or an empty string."""
        x, weight = node.inputs[0], node.inputs[1]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type not in self._int8_ops:
            return f"the target does not run {node.op_type} on integers"
        if weight is None or x is None:
            return "an input is missing"
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
        if rank < _LAYERS[node.op_type] or (node.op_type != "Conv" and rank != 2):
            return f"its weight has {rank} dimensions"
        if x.const_value is not None and not x.is_graph_input():
            return "its input is constant"
        if bias is not None:
            if bias.const_value is None or bias.is_graph_input():
                return "its bias is computed at run time"
            channels = weight.const_value.shape[_channel_axis(node)]
            if list(bias.const_value.shape) != [channels]:
                return f"its bias has the shape {list(bias.const_value.shape)}"
        return _refuse_gemm(node)

    def _end(self, node: ir.Node) -> ir.Value:
        """The value to quantize behind a node: past an activation that the quantizer replaces."""
        out = node.outputs[0]
        uses = list(out.uses())
        if not self._drop_activations or out.is_graph_output() or len(uses) != 1:
            return out
        follower = uses[0].node
        beside = follower.graph is self._graph  # not inside a subgraph
        return follower.outputs[0] if beside and _starts_at_zero(follower) else out

    def _take_joins(self) -> None:
        taken: set[ir.Node] = set()
        while True:
            before = len(taken)
            for node in self._nodes:
                if node.op_type in _JOINS and node not in taken and not self._why_not_join(node):
                    taken.add(node)
                    self._take_join(node)
            if len(taken) == before:
                break
        for node in self._nodes:
            if node in taken:
                self._plan.joins.append(Join(label(node), node.op_type))
            elif node.op_type in _JOINS:
                self._skip(node, self._why_not_join(node))

    def _why_not_join(self, node: ir.Node) -> str:
        if node.op_type not in self._int8_ops:
            return f"the target does not run {node.op_type} on integers"
        if self._options_for(node) is None:
            return "left out by the recipe"
        inputs = [v for v in node.inputs if v is not None]
        if any(v.const_value is not None for v in inputs):
            return "an input is constant"
        outside = [v for v in inputs if self._source(v) is None]
        if outside:
            return f"its input {outside[0].name!r} is not quantized"
        return ""

    def _take_join(self, node: ir.Node) -> None:
        options = self._options_for(node)
        assert options is not None  # _why_not_join has seen to it
        for value in node.inputs:
            if value is not None:
                self._activate(value, options)
        self._plan.options[_name(self._end(node))] = options

    def _source(self, value: ir.Value) -> ir.Value | None:
        """The quantized (or quantizable) value that movers carry to ``value``, if any."""
        while _name(value) not in self._plan.options and _name(value) not in self._can_quantize:
            producer = value.producer()
            if producer is None or not self._moves(producer) or producer.inputs[0] is None:
                return None
            value = producer.inputs[0]
        return value

    def _activate(self, value: ir.Value, options: Pass) -> None:
        """Quantize a value, and what movers carry to it on the way from its source."""
        name = _name(value)
        while name not in self._plan.options:
            self._plan.options[name] = self._can_quantize.get(name, options)
            producer = value.producer()
            if name in self._can_quantize or producer is None or producer.inputs[0] is None:
                return
            value = producer.inputs[0]
            name = _name(value)

    def _moves(self, node: ir.Node) -> bool:
        if node.domain not in DEFAULT_DOMAINS or self._options_for(node) is None:
            return False
        if _pads_with_zero(node):
            return True
        return node.op_type in _MOVERS and node.op_type in self._int8_ops

    def _share_scales(self) -> None:
        """Let movers between two quantized values hand the scale on."""
        values = {v.name: v for v in (*self._graph.inputs, *_outputs(self._graph))}
        for name in list(self._plan.options):
            value = values[name]
            producer = value.producer()
            if producer is not None and self._moves(producer) and producer.inputs[0] is not None:
                source = self._source(producer.inputs[0])
                if source is not None:
                    self._activate(value, self._plan.options[name])
                    self._activate(producer.inputs[0], self._plan.options[name])
        for node in self._graph:
            if not self._moves(node) or node.inputs[0] is None:
                continue
            source_name = _name(node.inputs[0])
            for out in node.outputs:
                if source_name in self._plan.options and _name(out) in self._plan.options:
                    root = self._plan.shared.get(source_name, source_name)
                    self._plan.shared[_name(out)] = root

    def _skip_nested(self) -> None:
        top = set(self._graph)
        for node in self._graph.all_nodes():
            if node not in top and node.op_type in _LAYERS:
                self._skip(node, "it lies inside a subgraph (If, Loop or Scan)")

    def _skip(self, node: ir.Node, reason: str) -> None:
        self._plan.skipped.append(_skip(node, reason))


def _skip(node: ir.Node, reason: str) -> Skip:
    return Skip(node=label(node), op=node.op_type, reason=reason)


def _refuse_gemm(node: ir.Node) -> str:
    if node.op_type != "Gemm":
        return ""
    for name, needed in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != needed:
            return f"{name} is {attribute.value}, expected {needed}"
    return ""


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        attribute = node.attributes.get("transB")
        return 0 if attribute is not None and attribute.value else 1
    return 1


def _starts_at_zero(node: ir.Node) -> bool:
    """Relu, or Clip between constant 0 and something larger."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.inputs) < 2 or node.inputs[1] is None:
        return False
    if _number(node.inputs[1]) != 0.0:
        return False
    high = node.inputs[2] if len(node.inputs) > 2 else None
    return high is None or (_number(high) or 0.0) > 0


def _pads_with_zero(node: ir.Node) -> bool:
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


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def label(node: ir.Node) -> str:
    """What people know a node by: its name, or that of its output."""
    return node.name or _name(node.outputs[0])
