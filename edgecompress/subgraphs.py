"""The graphs that hang on a node: branches of ``If``, bodies of ``Loop`` and ``Scan``."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["named_subgraphs", "subgraphs"]


def named_subgraphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """Attribute name and graph of the sub-graphs that hang directly on a node.

    An attribute that refers to one of the function around it has no graph of its own.
    """
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((name, graph) for graph in attribute.as_graphs())


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs of :func:`named_subgraphs`."""
    return (graph for _, graph in named_subgraphs(node))
