"""Where Q/DQ pairs go so that integer kernels are fused: decided here, edited by the pass.

Rules, from how onnxruntime and its relatives match Q/DQ groups:

- A *layer* (Conv, Gemm, MatMul with constant weight) needs its input quantized. A Conv also needs
  a quantized output, else it stays float; Gemm and MatMul may give float.
- An activation that the quantizer can do itself (Relu, or Clip from 0) right behind a layer or join
  is left between the node and its Q: the runtime drops it, since the range starts at zero.
- A *join* (Add, Concat, average pools ...) runs on integers when all its inputs are quantized.
- A *mover* (Reshape, MaxPool, Slice ...) moves integers: its output shares the input's scale.

That is for processors, where float is not slow and each change of format costs time. An accelerator
that knows nothing but integers wants them everywhere: there, joins are taken whatever their inputs,
constants and products of two activations among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import onnx_ir as ir

from edgecompress.graph_pass import Skip
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.qdq_rules import (
    JOINS,
    LAYERS,
    channel_axis,
    is_dynamic_matmul,
    is_grouped,
    is_mover,
    is_shallow_conv,
    label,
    name_of,
    operands,
    starts_at_zero,
    why_not_layer,
)

__all__ = ["Layer", "Join", "Placement", "place", "label"]

Options = TypeVar("Options")
"""What the caller wants of a node; only handed through."""


_BETWEEN = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "Sigmoid", "Mul", "Sub", "Div", "Cast"}
)
"""What may stand between the first layers of a network, or scale its input."""


@dataclass(frozen=True)
class Layer:
    """A node whose weights become integers.

    Attributes:
        node: Its name, for people.
        output: Name of its first output, which identifies it.
        input: Name of the activation that it reads.
        weight: Name of the weight initializer.
        channel_axis: Axis of the weight that counts output channels.
        per_channel: Whether a scale per output channel can be told to the runtime.
    """

    node: str
    op: str
    output: str
    input: str
    weight: str
    channel_axis: int
    per_channel: bool = True


@dataclass(frozen=True)
class Join:
    """A node without weights that runs on integers."""

    node: str
    op: str


@dataclass
class Placement(Generic[Options]):
    """What will be quantized.

    Attributes:
        layers: Nodes whose weights become integers, in graph order.
        joins: Other nodes that run on integers.
        options: Activation to quantize -> the options that rule its range: those of the node
            that makes it, or else of its first reader.
        constants: Constant inputs of joins, which become integers, with their options.
        shared: Activation -> the activation whose scale it takes over.
        skipped: Candidates left in float, with reasons.
    """

    layers: list[Layer] = field(default_factory=list)
    joins: list[Join] = field(default_factory=list)
    options: dict[str, Options] = field(default_factory=dict)
    constants: dict[str, Options] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)

    @property
    def measured(self) -> list[str]:
        """Activations that need a range of their own."""
        return [name for name in self.options if name not in self.shared]


def place(
    model: Model,
    options_for: Callable[[ir.Node], Options | None],
    int8_ops: frozenset[str],
    *,
    drop_activations: bool = True,
    everywhere: bool = False,
    slow_shallow_convs: bool = False,
) -> Placement[Options]:
    """Decide where Q/DQ pairs go.

    Args:
        model: The float model.
        options_for: Options of a node, or None where the recipe leaves it out.
        int8_ops: Operators that the target runs on integers.
        drop_activations: Whether the runtime drops a ReLU in front of a quantizer; it can where
            the zero point may lie at the end of the integer range.
        everywhere: Whether joins run on integers even where that takes quantizers of its own.
        slow_shallow_convs: Whether convolutions of few input channels are slower on integers: they
            stay float in front of all integers. Behind integers, to convert would cost more.
    """
    slow_front = slow_shallow_convs and not everywhere
    return _Planner(model, options_for, int8_ops, drop_activations, everywhere, slow_front).run()


class _Planner(Generic[Options]):
    def __init__(
        self,
        model: Model,
        options_for: Callable[[ir.Node], Options | None],
        int8_ops: frozenset[str],
        drop_activations: bool,
        everywhere: bool,
        slow_front: bool,
    ) -> None:
        self._graph = model.ir.graph
        self._nodes = [n for n in self._graph if n.domain in DEFAULT_DOMAINS]
        self._options_for = options_for
        self._int8_ops = int8_ops
        self._drop_activations = drop_activations
        self._everywhere = everywhere
        self._slow_front = slow_front
        self._front: set[ir.Node] = set()  # layers that stay float in front of all integers
        self._plan: Placement[Options] = Placement()
        self._can_quantize: dict[str, Options] = {}  # ends of Gemm and MatMul: quantized on demand

    def run(self) -> Placement[Options]:
        for node in self._nodes:
            if node.op_type in LAYERS and not is_dynamic_matmul(node):
                self._take_layer(node)
        if self._plan.layers or self._everywhere:
            self._take_joins()
            self._share_scales()
            wanted = self._can_quantize.keys() & self._plan.options.keys()
            self._plan.options.update({name: self._can_quantize[name] for name in wanted})
        else:
            for node in filter(is_dynamic_matmul, self._nodes):
                self._skip(node, "its weight is computed at run time")
        self._skip_nested()
        return self._plan

    def _take_layer(self, node: ir.Node) -> None:
        options = self._options_for(node)
        reason = (
            "left out by the recipe" if options is None else why_not_layer(node, self._int8_ops)
        )
        if not reason and self._slow_front and self._stays_in_front(node):
            self._front.add(node)
            reason = "it is slower on integers, and what comes before it is float"
        if options is None or reason:
            self._skip(node, reason)
            return
        x, weight = node.inputs[0], node.inputs[1]
        self._plan.layers.append(
            Layer(
                node=label(node),
                op=node.op_type,
                output=name_of(node.outputs[0]),
                input=name_of(x),
                weight=name_of(weight),
                channel_axis=channel_axis(node),
                per_channel=not (node.op_type == "ConvTranspose" and is_grouped(node)),
            )
        )
        self._plan.options.setdefault(name_of(x), options)
        end = name_of(self._end(node))
        if node.op_type in ("Conv", "ConvTranspose") or self._everywhere:
            self._plan.options[end] = options
        else:
            self._can_quantize[end] = options

    def _stays_in_front(self, node: ir.Node) -> bool:
        """Whether a convolution is slow on integers, and only such ones come before it."""
        return is_shallow_conv(node) and self._is_float_so_far(node.inputs[0])

    def _is_float_so_far(self, value: ir.Value | None) -> bool:
        producer = None if value is None else value.producer()
        if producer is None or producer in self._front:
            return True
        plain = producer.op_type in _BETWEEN or is_mover(producer, self._int8_ops)
        return plain and all(self._is_float_so_far(v) for v in producer.inputs)

    def _end(self, node: ir.Node) -> ir.Value:
        """The value to quantize behind a node: past an activation that the quantizer replaces."""
        out = node.outputs[0]
        uses = list(out.uses())
        if not self._drop_activations or out.is_graph_output() or len(uses) != 1:
            return out
        follower = uses[0].node
        beside = follower.graph is self._graph  # not inside a subgraph
        return follower.outputs[0] if beside and starts_at_zero(follower) else out

    def _take_joins(self) -> None:
        taken: set[ir.Node] = set()
        while True:
            before = len(taken)
            for node in self._nodes:
                if _is_join(node) and node not in taken and not self._why_not_join(node):
                    taken.add(node)
                    self._take_join(node)
            if len(taken) == before:
                break
        for node in self._nodes:
            if node in taken:
                self._plan.joins.append(Join(label(node), node.op_type))
            elif _is_join(node):
                self._skip(node, self._why_not_join(node))

    def _why_not_join(self, node: ir.Node) -> str:
        if node.op_type not in self._int8_ops:
            return f"the target does not run {node.op_type} on integers"
        if self._options_for(node) is None:
            return "left out by the recipe"
        inputs = operands(node)
        if any(v.dtype not in (None, ir.DataType.FLOAT) for v in inputs):
            return "an input is not float"
        if self._everywhere:
            constant = all(v.const_value is not None for v in inputs)
            return "all its inputs are constant" if constant else ""
        if is_dynamic_matmul(node):
            return "both inputs are computed at run time, and such integer kernels are no faster"
        if any(v.const_value is not None for v in inputs):
            return "an input is constant"
        outside = [v for v in inputs if self._source(v) is None]
        if outside:
            return f"its input {outside[0].name!r} is not quantized"
        return ""

    def _take_join(self, node: ir.Node) -> None:
        options = self._options_for(node)
        assert options is not None  # _why_not_join has seen to it
        for value in operands(node):
            if value.const_value is not None:
                self._plan.constants[name_of(value)] = options
            elif self._source(value) is None:
                self._plan.options[name_of(value)] = options
            else:
                self._activate(value, options)
        self._plan.options[name_of(self._end(node))] = options

    def _source(self, value: ir.Value) -> ir.Value | None:
        """The quantized (or quantizable) value that movers carry to ``value``, if any."""
        while name_of(value) not in self._plan.options and name_of(value) not in self._can_quantize:
            producer = value.producer()
            if producer is None or not self._moves(producer) or producer.inputs[0] is None:
                return None
            value = producer.inputs[0]
        return value

    def _activate(self, value: ir.Value, options: Options) -> None:
        """Quantize a value, and what movers carry to it on the way from its source."""
        name = name_of(value)
        while name not in self._plan.options:
            self._plan.options[name] = self._can_quantize.get(name, options)
            producer = value.producer()
            if name in self._can_quantize or producer is None or producer.inputs[0] is None:
                return
            value = producer.inputs[0]
            name = name_of(value)

    def _moves(self, node: ir.Node) -> bool:
        return is_mover(node, self._int8_ops) and self._options_for(node) is not None

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
            source_name = name_of(node.inputs[0])
            for out in node.outputs:
                if source_name in self._plan.options and name_of(out) in self._plan.options:
                    root = self._plan.shared.get(source_name, source_name)
                    self._plan.shared[name_of(out)] = root

    def _skip_nested(self) -> None:
        top = set(self._graph)
        for node in self._graph.all_nodes():
            if node not in top and node.op_type in LAYERS:
                self._skip(node, "it lies inside a subgraph (If, Loop or Scan)")

    def _skip(self, node: ir.Node, reason: str) -> None:
        self._plan.skipped.append(_skip(node, reason))


def _is_join(node: ir.Node) -> bool:
    return node.op_type in JOINS and (node.op_type != "MatMul" or is_dynamic_matmul(node))


def _skip(node: ir.Node, reason: str) -> Skip:
    return Skip(node=label(node), op=node.op_type, reason=reason)


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]
