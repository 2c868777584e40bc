"""What all layouts of weights of a few bits share: nodes put into the place of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.numerics.blockwise import Blocks
from edgecompress.qdq import QdqWriter
from edgecompress.quantization.weight_plan import HalfTable, Matrix

__all__ = ["Array", "Keep", "WeightNodes"]

Array = npt.NDArray[Any]
Keep = Callable[[ir.TensorProtocol], ir.TensorProtocol]


class WeightNodes(ABC):
    """Puts weights of a few bits into a graph, which it changes in place.

    Outputs keep their names.

    Attributes:
        sums: Names of the outputs of layers that factors make up for -> the Add behind.
    """

    def __init__(self, model: ir.Model, keep: Keep) -> None:
        self.graph = model.graph
        self.opsets = model.opset_imports
        self.writer = QdqWriter(model.graph, keep)
        self.sums: dict[str, ir.Node] = {}
        self._nodes = {value.name: node for node in model.graph for value in node.outputs}

    @abstractmethod
    def put(self, matrix: Matrix, blocks: Blocks) -> int:
        """Let all users of a matrix read it as integers; returns its bytes."""

    def put_half(self, half: HalfTable) -> int:
        """Store a table as float16, and cast what is looked up; returns its bytes."""
        weight = self.graph.initializers[half.weight]
        assert weight.const_value is not None  # the plan holds no others
        stored = self.writer.initializer(
            f"{half.weight}_float16", weight.const_value.numpy().astype(np.float16)
        )
        for use in half.lookups:
            old = self.node(use.output)
            taken = self.before(old, "Gather", [stored, old.inputs[1]], ir.DataType.FLOAT16)
            self.replace(old, "Cast", [taken], {"to": ir.DataType.FLOAT})
        self.drop(weight)
        return 2 * weight.const_value.size

    def node(self, output: str) -> ir.Node:
        """The node that computes a value now."""
        return self._nodes[output]

    def value(self, name: str) -> ir.Value:
        """The value of a name, as it is now."""
        if name in self._nodes:
            return next(value for value in self._nodes[name].outputs if value.name == name)
        given = self.graph.initializers.get(name)
        return given or next(value for value in self.graph.inputs if value.name == name)

    def add_behind(self, output: str, summand: ir.Value) -> str:
        """Add something to what a node puts out, under the name of that.

        Args:
            output: Name of the value.
            summand: Computed in front of that node.

        Returns:
            The name that the node's own output has now.
        """
        node = self.node(output)
        value = node.outputs[0]
        total = ir.Value(name=output, shape=value.shape, type=value.type)
        value.replace_all_uses_with(total, replace_graph_outputs=True)
        value.name = self.writer.unique(f"{output}_rounded")
        name = self.writer.unique(f"{output}/residual")
        add = ir.node("Add", [value, summand], outputs=[total], name=name)
        self.graph.insert_after(node, add)
        self._nodes |= {output: add, value.name: node}
        self.sums[value.name] = add
        return value.name

    def replace(
        self,
        old: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any],
        domain: str = "",
    ) -> ir.Node:
        """Put another node in the place of one: under its name, with its output."""
        value = old.outputs[0]
        made = ir.Value(name=value.name, shape=value.shape, type=value.type)
        node = ir.node(op, inputs, attributes, domain=domain, outputs=[made], name=old.name)
        self.graph.insert_before(old, node)
        value.replace_all_uses_with(made, replace_graph_outputs=True)
        self.graph.remove(old, safe=True)
        self._nodes[made.name] = node
        return node

    def before(
        self,
        place: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType | None,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Value:
        """The output of a new node in front of another."""
        name = f"{place.outputs[0].name}_{op.lower()}"
        value = ir.Value(
            name=self.writer.unique(name), type=None if dtype is None else ir.TensorType(dtype)
        )
        node = ir.node(
            op, inputs, attributes or {}, outputs=[value], name=self.writer.unique(f"{name}/node")
        )
        self.graph.insert_before(place, node)
        return value

    def scales(self, matrix: Matrix, array: Array) -> ir.Value:
        """The scales as an initializer, in the type of the weight."""
        kind = np.float16 if matrix.grid.half else np.float32
        return self.writer.initializer(f"{matrix.weight}_scale", array.astype(kind))

    def drop(self, weight: ir.Value) -> None:
        """Remove a float weight, and a Transpose of it, where nobody reads them any more."""
        for use in list(weight.uses()):
            if use.node.op_type == "Transpose" and not use.node.outputs[0].uses():
                self.graph.remove(use.node, safe=True)
        if not weight.uses() and weight.name:
            del self.graph.initializers[weight.name]
