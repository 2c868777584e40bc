"""Arithmetic and comparison, element by element, with broadcasting."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation

_BINARY = {
    "Add": ("ADD", "AddOptions"),
    "Sub": ("SUB", "SubOptions"),
    "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"),
}
_PLAIN_BINARY = {
    "Pow": ("POW", "PowOptions"),
    "And": ("LOGICAL_AND", "LogicalAndOptions"),
    "Or": ("LOGICAL_OR", "LogicalOrOptions"),
    "Equal": ("EQUAL", "EqualOptions"),
    "Greater": ("GREATER", "GreaterOptions"),
    "GreaterOrEqual": ("GREATER_EQUAL", "GreaterEqualOptions"),
    "Less": ("LESS", "LessOptions"),
    "LessOrEqual": ("LESS_EQUAL", "LessEqualOptions"),
}
_UNARY = {
    "Abs": ("ABS", "AbsOptions"),
    "Ceil": ("CEIL", ""),
    "Cos": ("COS", "CosOptions"),
    "Exp": ("EXP", "ExpOptions"),
    "Floor": ("FLOOR", ""),
    "Log": ("LOG", ""),
    "Neg": ("NEG", "NegOptions"),
    "Not": ("LOGICAL_NOT", "LogicalNotOptions"),
    "Round": ("ROUND", ""),
    "Sin": ("SIN", ""),
    "Sqrt": ("SQRT", ""),
}


@op(*_BINARY)
def arithmetic(t: Translation, node: ir.Node) -> None:
    """ADD, SUB, MUL on floats or int8; DIV on floats."""
    a, b = node.inputs[0], node.inputs[1]
    rank = len(t.shape(node.outputs[0]))
    layout = t.layout_of(a, b)
    # Activation functions are of floats; integers that count something have none.
    floats = t.dtype(node.outputs[0]) == "float32"
    plan = t.plan(node, a, b, fuses=floats, integers=floats and node.op_type != "Div")
    code, options = _BINARY[node.op_type]
    inputs = [t.spread(v, rank, layout, integers=plan.integers) for v in (a, b)]
    target = t.output(plan, layout)
    t.emit(code, inputs, [target], options, fusedActivationFunction=t.fused(plan.activation))


@op("Sum", "Max", "Min")
def several(t: Translation, node: ir.Node) -> None:
    """One operator of two inputs after the other; a Sum of two may be on integers."""
    rank = len(t.shape(node.outputs[0]))
    layout = t.layout_of(*node.inputs)
    code, options = {
        "Sum": ("ADD", "AddOptions"),
        "Max": ("MAXIMUM", "MaximumMinimumOptions"),
        "Min": ("MINIMUM", "MaximumMinimumOptions"),
    }[node.op_type]
    pair = node.op_type == "Sum" and len(node.inputs) == 2
    plan = t.plan(node, *node.inputs, fuses=pair, integers=pair)
    parts = [t.spread(v, rank, layout, integers=plan.integers) for v in node.inputs]
    target = t.output(plan, layout)
    fields = {"fusedActivationFunction": t.fused(plan.activation)} if code == "ADD" else {}
    if len(parts) == 1:
        t.reshape(parts[0], target)
    while len(parts) > 1:
        a, b, *rest = parts
        shape = np.broadcast_shapes(a.shape, b.shape)
        made = t.fresh(f"{target.index};{len(rest)}", shape, a.dtype) if rest else target
        t.emit(code, [a, b], [made], options, **fields)
        parts = [made, *rest] if rest else []


@op(*_PLAIN_BINARY)
def binary(t: Translation, node: ir.Node) -> None:
    """An operator of two inputs, in float or on what they are."""
    a, b = node.inputs[0], node.inputs[1]
    rank = len(t.shape(node.outputs[0]))
    layout = t.layout_of(a, b)
    plan = t.plan(node, integers=False)
    code, options = _PLAIN_BINARY[node.op_type]
    exponent = t.array(b)
    inputs = [t.spread(v, rank, layout) for v in (a, b)]
    target = t.output(plan, layout)
    if node.op_type == "Pow" and exponent is not None and exponent.size == 1 and exponent == 2:
        t.emit("MUL", [inputs[0], inputs[0]], [target], "MulOptions")
        return
    if node.op_type == "Pow" and inputs[0].dtype != inputs[1].dtype:
        raise RefusalError("base and exponent are of different types")
    t.emit(code, inputs, [target], options)


@op(*_UNARY)
def unary(t: Translation, node: ir.Node) -> None:
    """An operator of one input, in float."""
    x = node.inputs[0]
    layout = t.layout_of(x)
    plan = t.plan(node, integers=False)
    code, options = _UNARY[node.op_type]
    t.emit(code, [t.read(x, layout)], [t.output(plan, layout)], options)


@op("Reciprocal")
def reciprocal(t: Translation, node: ir.Node) -> None:
    """DIV of 1."""
    x = node.inputs[0]
    layout = t.layout_of(x)
    plan = t.plan(node, integers=False)
    inputs = [t.number(1.0), t.read(x, layout)]
    t.emit("DIV", inputs, [t.output(plan, layout)], "DivOptions")


@op("Where")
def where(t: Translation, node: ir.Node) -> None:
    """SELECT_V2."""
    rank = len(t.shape(node.outputs[0]))
    layout = t.layout_of(*node.inputs)
    plan = t.plan(node, integers=False)
    inputs = [t.spread(v, rank, layout) for v in node.inputs]
    t.emit("SELECT_V2", inputs, [t.output(plan, layout)], "SelectV2Options")


@op("Cast")
def cast(t: Translation, node: ir.Node) -> None:
    """CAST; on floats that stay floats, nothing."""
    x = node.inputs[0]
    layout = t.layout_of(x)
    source = t.read(x, layout)
    plan = t.plan(node, integers=False)
    if source.dtype == t.dtype(plan.value):
        t.put(plan.value, source, layout)
        return
    target = t.output(plan, layout)
    kinds = (t.file.type_number(source.dtype), t.file.type_number(target.dtype))
    t.emit("CAST", [source], [target], "CastOptions", inDataType=kinds[0], outDataType=kinds[1])
