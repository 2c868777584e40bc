"""The nodes that stand for one node of the original, run alone on the original's activations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

import onnx_ir as ir
from torch import Tensor

from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.liveness import reads
from edgecompress.walk.opaque import OpaqueGraph

__all__ = ["Segments"]

# They are a part of the node in front of them.
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu"})


class Segments:
    """Cuts a compressed graph at every value that the original has, too.

    ::

        original:    x -> Conv -> y
        compressed:  x -> Q -> DQ -> Conv(DQ(w)) -> y -> Q -> DQ

    The segment of ``y`` is Q, DQ, DQ and Conv: what lies between ``y`` and the values of the
    original that it is computed from.

    Attributes:
        borders: Values of both graphs that change over the rows.
        staying: Output of a Q/DQ pair -> its input, for pairs that the node in front of them needs
            as well: they would stay if what is behind them were kept in float.
    """

    def __init__(self, original: Model, compressed: Model, device: str = "cpu") -> None:
        """Find the borders; nothing is run yet.

        Args:
            original: The reference. Neither has functions of its own.
            compressed: The other graph.
            device: torch device.
        """
        self._model = compressed
        self._device = device
        graph = compressed.ir.graph
        self._order = {node: position for position, node in enumerate(graph)}
        self._values = {value.name: value for value in _computed(graph)}
        known = {value.name for value in _computed(original.ir.graph)}
        self.borders = frozenset(name for name in self._values if name and name in known)
        self.staying = _staying(graph, self.borders)
        self._graphs: dict[tuple[str, bool], TorchGraph | OpaqueGraph] = {}
        self._failed: set[tuple[str, bool]] = set()

    def nodes(self, name: str, *, behind_pairs: bool = False) -> tuple[ir.Node, ...]:
        """The segment of a border, in order; empty for an input of the graph.

        Args:
            name: Of the border.
            behind_pairs: Start behind the pairs that would stay.
        """
        taken: set[ir.Node] = set()
        stack = [self._values[name]]
        while stack:
            value = stack.pop()
            node = value.producer()
            given = value.name in self.borders or (behind_pairs and value.name in self.staying)
            inner = value.name == name or not given
            if node is not None and inner and node not in taken:
                taken.add(node)
                stack.extend(reads(node))
        return tuple(sorted(taken, key=self._order.__getitem__))

    def run(
        self,
        name: str,
        originals: Mapping[str, Tensor],
        like: Mapping[str, Tensor],
        *,
        behind_pairs: bool = False,
    ) -> Tensor | None:
        """Compute a border from the values of the original.

        Args:
            name: Of the border.
            originals: Values of the original graph.
            like: Values of the compressed graph, for their types.
            behind_pairs: As for :meth:`nodes`.

        Returns:
            None where the segment cannot be run alone.
        """
        key = name, behind_pairs
        if key in self._failed:
            return None
        try:
            graph = self._graph(name, behind_pairs)
            feeds = {}
            for each in graph.input_names:
                source = self.staying.get(each, each)
                feeds[each] = _as(originals[source], like.get(source))
            return graph(feeds, outputs=(name,))[name]
        except (KeyError, ModelError):  # it reads what this block of the walk does not have
            self._failed.add(key)
            return None

    def _graph(self, name: str, behind_pairs: bool) -> TorchGraph | OpaqueGraph:
        key = name, behind_pairs
        if key not in self._graphs:
            nodes = self.nodes(name, behind_pairs=behind_pairs)
            with suppress(UnsupportedOperatorError):
                self._graphs[key] = to_torch(
                    self._model, nodes, outputs=(name,), device=self._device
                )
            if key not in self._graphs:
                self._graphs[key] = OpaqueGraph(self._model, nodes)
        return self._graphs[key]

    def forget(self) -> None:
        """Give the weights of all segments back."""
        self._graphs.clear()


def _staying(graph: ir.Graph, borders: Collection[str]) -> dict[str, str]:
    found = {}
    for node in graph:
        quantizer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
        if node.op_type != "DequantizeLinear" or quantizer is None:
            continue
        source = quantizer.inputs[0] if quantizer.op_type == "QuantizeLinear" else None
        if source is not None and source.name in borders and _on_integers(source):
            found[node.outputs[0].name or ""] = source.name or ""
    return found


def _on_integers(value: ir.Value) -> bool:
    """Whether the node that makes a value, activations aside, reads dequantized values."""
    node = value.producer()
    while node is not None and node.op_type in _ACTIVATIONS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    before = [] if node is None else [v.producer() for v in node.inputs if v is not None]
    return any(each is not None and each.op_type == "DequantizeLinear" for each in before)


def _computed(graph: ir.Graph) -> list[ir.Value]:
    """Inputs, and what nodes compute from them."""
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    return [*inputs, *(v for n in graph if n.op_type != "Constant" for v in n.outputs if v.name)]


def _as(values: Tensor, like: Tensor | None) -> Tensor:
    """In the element type that the compressed graph has at this place."""
    return values if like is None else values.to(like.dtype)
