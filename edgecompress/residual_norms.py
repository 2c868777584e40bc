"""Residual sums in front of a normalization, in a form that keeps the runtime's fast kernels.

onnxruntime joins Add and LayerNormalization into one kernel, SkipLayerNormalization, which on a
processor takes longer than the two. Sum computes the same as Add and is joined with nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS

__all__ = ["split_residual_norms"]


def split_residual_norms(graph: ir.Graph, allowed: Callable[[ir.Node], bool]) -> list[ir.Node]:
    """Turn each Add of two activations that a LayerNormalization reads into a Sum, in place.

    Args:
        graph: The main graph.
        allowed: Whether a node may be touched.

    Returns:
        The Sum nodes, in graph order; they keep names and outputs.
    """
    return [
        _as_sum(graph, node)
        for node in list(graph)
        if node.op_type == "Add" and _feeds_a_norm(node) and allowed(node)
    ]


def _feeds_a_norm(node: ir.Node) -> bool:
    if node.domain not in DEFAULT_DOMAINS or any(
        v is None or v.const_value is not None for v in node.inputs
    ):
        return False
    return any(
        use.node.op_type == "LayerNormalization" and use.idx == 0 for use in node.outputs[0].uses()
    )


def _as_sum(graph: ir.Graph, node: ir.Node) -> ir.Node:
    out = node.outputs[0]
    new = ir.node("Sum", inputs=list(node.inputs), name=node.name)
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = out.name, out.shape, out.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [new], [out], new.outputs)
    return new
