"""What nodes cost: multiply-accumulates, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from edgecompress.subgraphs import subgraphs

__all__ = ["COSTLY", "int_attribute", "node_macs", "total_macs"]

# Position of the weight among the inputs.
_CONVOLUTIONS: Mapping[str, int] = MappingProxyType(
    {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
)
_MATRIX_PRODUCTS = frozenset(
    {"MatMul", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# They multiply and accumulate, but how often is not told by shapes alone.
_UNCOUNTED = frozenset({"Einsum", "Attention", "MultiHeadAttention", "GroupQueryAttention"})
COSTLY = (
    frozenset({"ConvTranspose", "Gemm", "MatMulNBits", *_CONVOLUTIONS})
    | _MATRIX_PRODUCTS
    | _RECURRENT
    | _UNCOUNTED
)
"""Operators that multiply and accumulate."""


def total_macs(graph: ir.Graph) -> int | None:
    """Multiply-accumulates of one run, or None where shapes or loop counts are free.

    Of the branches of an ``If`` the dearest counts.
    """
    total = 0
    count: int | None
    for node in graph:
        inner = [total_macs(sub) for sub in subgraphs(node)]
        if node.op_type == "If" and None not in inner:
            count = max((n for n in inner if n is not None), default=0)
        elif inner:
            # A loop body runs as often as the data say: known only where it costs nothing.
            count = 0 if all(n == 0 for n in inner) else None
        else:
            count = node_macs(node) if node.op_type in COSTLY else 0
        if count is None:
            return None
        total += count
    return total


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of a node whose operator is in :data:`COSTLY`, from inferred shapes."""
    op = node.op_type
    if op in _UNCOUNTED:
        return None
    if op in _CONVOLUTIONS:
        return _product(_elements(node.outputs[0]), _elements(node.inputs[_CONVOLUTIONS[op]], 1))
    if op == "ConvTranspose":  # each input element meets the kernels of all output channels
        return _product(_elements(node.inputs[0]), _elements(node.inputs[1], 1))
    if op in _MATRIX_PRODUCTS:
        return _product(_elements(node.outputs[0]), _dim(node.inputs[0], -1))
    if op == "Gemm":
        axis = 0 if int_attribute(node, "transA") else 1
        return _product(_elements(node.outputs[0]), _dim(node.inputs[0], axis))
    if op == "MatMulNBits":
        return _product(_elements(node.outputs[0]), int_attribute(node, "K"))
    steps = _product(_dim(node.inputs[0], 0), _dim(node.inputs[0], 1))
    matrices = [_elements(value) for value in node.inputs[1:3]]
    if matrices[0] is None or matrices[1] is None:
        return None
    return _product(steps, matrices[0] + matrices[1])


def _product(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def _dims(value: ir.Value | None) -> list[int | None] | None:
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else None for d in value.shape]


def _elements(value: ir.Value | None, start: int = 0) -> int | None:
    """Product of the dimensions from ``start`` on."""
    dims = _dims(value)
    if dims is None:
        return None
    known = [d for d in dims[start:] if d is not None]
    return math.prod(known) if len(known) == len(dims[start:]) else None


def _dim(value: ir.Value | None, axis: int) -> int | None:
    dims = _dims(value)
    return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None


def int_attribute(node: ir.Node, name: str) -> int:
    """An integer attribute; 0 where it is absent."""
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()
