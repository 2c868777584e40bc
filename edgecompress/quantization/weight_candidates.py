"""Which nodes hold weights that may become integers while activations stay float."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from edgecompress.graph_pass import Skip
from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.qdq_plan import label

__all__ = ["LOOKUP", "PRODUCTS", "in_bodies", "is_candidate", "weight_of", "why_not"]

PRODUCTS, LOOKUP = ("MatMul", "Gemm"), "Gather"

_LEAST_ELEMENTS = 1024  # below, what the new nodes take in the file is most of what is gained
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def is_candidate(node: ir.Node) -> bool:
    """Whether a node multiplies by a matrix, or looks rows up."""
    return node.domain in DEFAULT_DOMAINS and node.op_type in (*PRODUCTS, LOOKUP)


def weight_of(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """The value that holds the weight, and whether it is stored as [inputs, outputs]."""
    if node.op_type == LOOKUP:
        return node.inputs[0], False
    value = node.inputs[1]
    turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    turn = None if value is None else value.producer()
    if turn is not None and turn.op_type == "Transpose" and list(_perm(turn)) == [1, 0]:
        return turn.inputs[0], turned
    return value, not turned


def _perm(node: ir.Node) -> list[int]:
    value = node.inputs[0]
    rank = 0 if value is None or value.shape is None else len(value.shape)
    return list(node.attributes.get_ints("perm", list(reversed(range(rank)))))


def why_not(node: ir.Node, weight: ir.Value | None) -> str | None:
    """Why a node keeps its weight; None where it may change, empty where it is no candidate."""
    tensor = None if weight is None else weight.const_value
    producer = None if weight is None else weight.producer()
    lookup = node.op_type == LOOKUP
    if producer is not None and producer.op_type == "DequantizeLinear" and not lookup:
        return "its second input is quantized already"
    if weight is None or tensor is None:
        return "" if lookup else "its second input is computed, not a constant weight"
    if not tensor.dtype.is_floating_point():
        return ""
    if len(tensor.shape) != 2:
        return "" if lookup else f"its weight has {len(tensor.shape)} axes; kernels take matrices"
    if producer is not None:
        return "its weight is a Constant node; put the pass 'cleanup' in front"
    if tensor.dtype not in _FLOATS:
        return f"its weight is {tensor.dtype.name.lower()}; kernels take float32 and float16"
    if weight.is_graph_output():
        return "its weight is an output of the model, too"
    if weight.is_graph_input():
        return "its weight is an input of the model, too; put the pass 'cleanup' in front"
    if lookup and node.attributes.get_int("axis", 0) % 2 != 0:
        return "it looks up along another axis than the first"
    if node.op_type == "Gemm" and _odd_gemm(node):
        return "it has transA, alpha or beta, which the kernels have not"
    if tensor.size < _LEAST_ELEMENTS:
        return f"its weight of {tensor.size} numbers is too small to gain anything"
    return None


def _odd_gemm(node: ir.Node) -> bool:
    get = node.attributes.get_float
    return bool(node.attributes.get_int("transA", 0)) or (
        get("alpha", 1.0) != 1.0 or (get("beta", 1.0) != 1.0 and len(node.inputs) > 2)
    )


def in_bodies(graph: ir.Graph) -> Iterator[Skip]:
    """Layers of sub-graphs that hold constant weights."""
    for body in graph.subgraphs():
        for node in body:
            if node.op_type == LOOKUP or not is_candidate(node):
                continue
            weight = node.inputs[1]
            if weight is not None and weight.const_value is not None:
                yield Skip(label(node), node.op_type, "it lies inside the body of an If or a loop")
