"""A graph that computes in 16-bit floating point, with Casts where it meets float32.

::

    x (float32) -> Conv(w) -> Exp -> y (float32)                           becomes
    x -> Cast -> Conv(w in float16) -> Cast to float32 -> Exp -> y

Inputs and outputs of the model and of bodies keep their types. A value that is read in both types
is cast once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.graph_pass import Change
from edgecompress.model import Model
from edgecompress.qdq_plan import label
from edgecompress.quantization.editing import Editor, body_graphs
from edgecompress.quantization.half_plan import CUTTING, HalfPlan
from edgecompress.quantization.half_types import HalfPlaces
from edgecompress.quantization.half_weights import Half, as_half, half_type

__all__ = ["compute_half"]


def compute_half(model: Model, plan: HalfPlan, dtype: str) -> Half:
    """Change the planned nodes to 16 bits, in place.

    Args:
        model: The model that ``plan`` was made for; its values have types.
        plan: Nodes, and constants to cut.
        dtype: ``float16`` or ``bfloat16``.
    """
    writer = _Writer(model, plan, dtype)
    for graph in body_graphs(model):
        writer.take(graph)
    writer.finish()
    writer.half.skipped = plan.skipped
    return writer.half


class _Writer:
    def __init__(self, model: Model, plan: HalfPlan, dtype: str) -> None:
        self.half = Half()
        self._model, self._plan, self._dtype = model, plan, dtype
        self._type = half_type(dtype)
        self._editor = Editor(model.ir.graph)
        self._casts: dict[ir.Value, ir.Value] = {}
        self._constants: dict[ir.Value, ir.Value] = {}
        self._made_half: list[ir.Value] = []

    def take(self, graph: ir.Graph) -> None:
        for node in list(graph):
            places = self._plan.places.get(node)
            if places is not None:
                self._take_node(node, places)
            else:
                self._cut_constants(node)

    def finish(self) -> None:
        """Cast back what float32 nodes and outputs read, and drop constants that nobody reads."""
        for value in self._made_half:
            self._cast_back(value)
        for value in self._constants:
            graph = value.graph
            if isinstance(graph, ir.Graph) and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name or "", None)

    def _take_node(self, node: ir.Node, places: HalfPlaces) -> None:
        before = after = 0
        for position in sorted(places.inputs):
            value = node.inputs[position]
            assert value is not None  # such places have values
            if value.dtype == self._type:
                continue
            fresh = value not in self._constants
            node.replace_input_with(position, self._as_half(value))
            if fresh and value in self._constants and value.const_value is not None:
                before += value.const_value.nbytes
                after += value.const_value.nbytes // 2
        self._set_attribute(node)
        for position in sorted(places.outputs):
            node.outputs[position].type = ir.TensorType(self._type)
            self._made_half.append(node.outputs[position])
        what = f"computes in {self._dtype}"
        self.half.changed.append(Change(label(node), node.op_type, what, before, after))
        self.half.saved += before - after

    def _as_half(self, value: ir.Value) -> ir.Value:
        """The 16-bit twin of a float32 value."""
        if value.const_value is not None and not value.is_graph_input():
            return self._constant(value)
        if value not in self._casts:
            self._casts[value] = self._cast(value, self._type, self._dtype)
        return self._casts[value]

    def _constant(self, value: ir.Value) -> ir.Value:
        if value not in self._constants:
            assert value.const_value is not None  # the caller has seen to it
            array = value.const_value.numpy()
            if value in self._plan.cut:
                array = _cut(array, self._plan.cut[value])
            graph = value.graph if isinstance(value.graph, ir.Graph) else self._model.ir.graph
            self._constants[value] = self._editor.initializer(
                graph, f"{value.name}_{self._dtype}", as_half(array, self._dtype)
            )
        return self._constants[value]

    def _cut_constants(self, node: ir.Node) -> None:
        """What float32 nodes make of a mask must fit into 16 bits, too."""
        if node.op_type in CUTTING:
            return
        for position, value in enumerate(node.inputs):
            if value is not None and value in self._plan.cut and value.const_value is not None:
                array = _cut(value.const_value.numpy(), self._plan.cut[value])
                graph = value.graph if isinstance(value.graph, ir.Graph) else self._model.ir.graph
                cut = self._editor.initializer(graph, f"{value.name}_cut", array)
                node.replace_input_with(position, cut)
                self._constants.setdefault(value, cut)

    def _cast(self, value: ir.Value, to: ir.DataType, suffix: str) -> ir.Value:
        """A Cast right behind the value, where all its readers can see it."""
        cast = self._editor.node(
            "Cast",
            [value],
            {f"{value.name}_{suffix}": to},
            attributes={"to": to.value},
            shape=value.shape,
        )
        producer = value.producer()
        if producer is not None:
            assert producer.graph is not None  # it is a node of the model
            producer.graph.insert_after(producer, cast)
        else:
            graph = value.graph
            assert isinstance(graph, ir.Graph)  # an input or initializer of a graph
            graph.insert_before(next(iter(graph)), cast)
        return cast.outputs[0]

    def _cast_back(self, value: ir.Value) -> None:
        outside = [use for use in value.uses() if not self._reads_half(use.node, use.idx)]
        is_output = value.is_graph_output()
        if not outside and not is_output:
            return
        name = value.name
        if is_output:
            value.name = f"{name}_{self._dtype}"
        back = self._cast(value, ir.DataType.FLOAT, "float32")
        for use in outside:
            use.node.replace_input_with(use.idx, back)
        if is_output:
            outputs = value.graph.outputs if isinstance(value.graph, ir.Graph) else []
            for position, output in enumerate(outputs):
                if output is value:
                    outputs[position] = back
            back.name = name

    def _reads_half(self, node: ir.Node, position: int) -> bool:
        places = self._plan.places.get(node)
        return places is not None and position in places.inputs

    def _set_attribute(self, node: ir.Node) -> None:
        """Types that attributes set."""
        if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.FLOAT.value:
            node.attributes["to"] = ir.AttrInt64("to", self._type.value)
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            array = np.zeros(1, np.float32) if given is None else given.as_tensor().numpy()
            node.attributes["value"] = ir.AttrTensor(
                "value", ir.tensor(as_half(array, self._dtype))
            )


def _cut(array: np.ndarray, limit: float) -> np.ndarray:
    """Finite numbers between ``-limit`` and ``limit``; infinite ones as they are."""
    return np.where(np.isfinite(array), np.clip(array, -limit, limit), array).astype(array.dtype)
