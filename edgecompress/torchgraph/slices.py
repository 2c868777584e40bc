"""Which nodes and values a slice of a graph takes, sub-graphs and what they capture included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from edgecompress.errors import ModelError, nearest
from edgecompress.torchgraph.bodies import all_graphs, read_values
from edgecompress.torchgraph.constants import is_constant

__all__ = ["ancestors", "border", "graph_inputs", "values_by_name"]


def graph_inputs(graph: ir.Graph) -> list[ir.Value]:
    """Inputs that must be fed: in early files, weights are listed too."""
    return [value for value in graph.inputs if value.name not in graph.initializers]


def ancestors(nodes: Sequence[ir.Node], wanted: Iterable[ir.Value]) -> list[ir.Node]:
    """Those of the nodes that the wanted values need, in order."""
    needed = set(wanted)
    kept: list[ir.Node] = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(read_values(node))
    return kept[::-1]


def values_by_name(
    graph: ir.Graph, nodes: Sequence[ir.Node], names: Sequence[str]
) -> list[ir.Value]:
    """Values that the nodes make or read, the graph's inputs and its initializers.

    Raises:
        ModelError: There is none of that name.
    """
    known = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    known |= {value.name: value for node in nodes for value in node.inputs if value is not None}
    known |= {value.name: value for node in nodes for value in node.outputs}
    for name in names:
        if name not in known:
            texts = sorted(text for text in known if text)
            raise ModelError(f"has no value {name!r}", cure=nearest(name, texts[:200]))
    return [known[name] for name in dict.fromkeys(names)]


def border(graph: ir.Graph, chosen: Sequence[ir.Node], *, whole: bool) -> list[ir.Value]:
    """Values that somebody outside of the slice wants."""
    if whole:
        return list(graph.outputs)
    inside = set(chosen)
    within = {inner for node in chosen for _, inner in all_graphs(node)}
    return [
        value
        for node in chosen
        if not is_constant(node)
        for value in node.outputs
        if value.is_graph_output()
        or any(use.node not in inside and use.node.graph not in within for use in value.uses())
    ]
