"""New nodes and initializers for a graph and the graphs inside it, under names of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.rewrite import all_graphs
from edgecompress.subgraphs import subgraphs

__all__ = ["Editor", "bias_of", "body_graphs", "first_readers"]


class Editor:
    """Makes nodes and initializers for one model, in its main graph and in bodies.

    Args:
        graph: The main graph. Names are unique in it and in all graphs inside it.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._taken: set[str | None] = set()
        for place in (graph, *graph.subgraphs()):
            self._taken.update(value.name for value in place.inputs)
            self._taken.update(place.initializers)
            for node in place:
                self._taken.add(node.name)  # onnxruntime wants these unique, too
                self._taken.update(value.name for value in node.outputs)

    def initializer(self, graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """Add an initializer to a graph, called ``name`` unless that is taken."""
        unique = self._unique(name)
        tensor = ir.tensor(array, name=unique)
        value = ir.Value(
            name=unique,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        outputs: Mapping[str, ir.DataType | None],
        *,
        attributes: Mapping[str, Any] | None = None,
        shape: ir.Shape | None = None,
        domain: str = "",
    ) -> ir.Node:
        """A node that is in no graph yet, named after its first output.

        Args:
            op: Operator.
            inputs: Values; None for one that is left out.
            outputs: Wished name of each output, and its type.
            attributes: As :func:`onnx_ir.node` takes them.
            shape: Of the first output, where it is known.
            domain: Of the operator.
        """
        values = [
            ir.Value(name=self._unique(name), type=None if dtype is None else ir.TensorType(dtype))
            for name, dtype in outputs.items()
        ]
        values[0].shape = shape
        return ir.node(
            op,
            inputs=inputs,
            attributes=attributes or {},
            outputs=values,
            domain=domain,
            name=self._unique(f"{values[0].name}/node"),
        )

    def _unique(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{name}_{number}"
        self._taken.add(candidate)
        return candidate


def bias_of(node: ir.Node, position: int = 2) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[position] if len(node.inputs) > position else None


def body_graphs(model: Model) -> Iterator[ir.Graph]:
    """The main graph and the bodies in it; the model's own functions stay as they are."""
    functions = {id(g) for f in model.ir.functions.values() for g in f.subgraphs()}
    for graph in all_graphs(model.ir):
        if isinstance(graph, ir.Graph) and id(graph) not in functions:
            yield graph


def first_readers(graph: ir.Graph) -> dict[int, ir.Node]:
    """By ``id`` of a value: the first node of ``graph`` that reads it, itself or in its bodies."""
    first: dict[int, ir.Node] = {}
    for node in graph:
        for value in _read(node):
            first.setdefault(id(value), node)
    return first


def _read(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        for inner in graph:
            yield from _read(inner)
        yield from graph.outputs
