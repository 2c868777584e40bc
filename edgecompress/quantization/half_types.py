"""Which inputs and outputs of a node may be 16-bit floating point, by the operator's definition."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.subgraphs import subgraphs

__all__ = ["HalfPlaces", "half_places", "is_float"]

# Operators whose output type an attribute sets; all others take it from an input.
_TYPED_BY_ATTRIBUTE = {"Cast": "to", "ConstantOfShape": "value"}


class HalfPlaces:
    """Positions of the float32 inputs and outputs of a node that become 16-bit ones with it."""

    def __init__(self, inputs: frozenset[int], outputs: frozenset[int]) -> None:
        self.inputs = inputs
        self.outputs = outputs


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    if value is None or not isinstance(value.type, ir.TensorType):
        return False
    return value.dtype == ir.DataType.FLOAT


def half_places(node: ir.Node, opset: int, dtype: str) -> HalfPlaces | str:
    """Where a node takes and gives 16-bit numbers instead of float32, or why it cannot.

    Args:
        node: Its values have types.
        opset: Version of the standard operator set.
        dtype: ``float16`` or ``bfloat16``.
    """
    import onnx.defs

    if node.domain not in DEFAULT_DOMAINS:
        return f"{node.domain}::{node.op_type} is not a standard operator"
    if any(True for _ in subgraphs(node)):
        return "it has bodies, whose inputs and outputs keep their types"
    version = node.version or opset
    if not onnx.defs.has(node.op_type, version, ""):
        return f"ONNX does not define {node.op_type}"
    schema: Any = onnx.defs.get_schema(node.op_type, version, "")
    allowed = {t.type_param_str: set(t.allowed_type_strs) for t in schema.type_constraints}
    free = {
        name
        for name, types in allowed.items()
        if "tensor(float)" in types and f"tensor({dtype})" in types
    }
    inputs = _places(schema.inputs, node.inputs, free)
    outputs = _places(schema.outputs, node.outputs, free)
    given = {_formal(schema.inputs, i).type_str for i in inputs}
    by_attribute = node.op_type in _TYPED_BY_ATTRIBUTE
    for position, value in enumerate(node.outputs):
        taken = _formal(schema.outputs, position).type_str in given
        if is_float(value) and not (position in outputs and (taken or by_attribute)):
            return f"{node.op_type} of opset {version} gives no {dtype}"
    if not inputs and not outputs:
        return f"{node.op_type} of opset {version} takes no {dtype}"
    return HalfPlaces(inputs, outputs)


def _places(formals: Any, values: Any, free: set[str]) -> frozenset[int]:
    return frozenset(
        position
        for position, value in enumerate(values)
        if is_float(value) and _formal(formals, position).type_str in free
    )


def _formal(formals: Any, position: int) -> Any:
    return formals[min(position, len(formals) - 1)]  # the last one may stand for many
