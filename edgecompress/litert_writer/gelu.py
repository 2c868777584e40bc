"""Gelu written out by exporters, as the one operator that TFLite has for it.

::

    x -> Div(sqrt 2) -> Erf -> Add(1) -> Mul(x) -> Mul(0.5)      becomes      x -> Gelu

in any order of the last two products.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgecompress.litert_writer.ranges import array_of, is_op

__all__ = ["fuse_gelu"]

_CLOSE = 1e-3


def fuse_gelu(graph: ir.Graph) -> None:
    """Replace what is Gelu, in place."""
    for node in [n for n in graph if is_op(n, "Erf")]:
        x = _scaled_input(node.inputs[0])
        end = None if x is None else _end(node, x)
        if x is None or end is None:
            continue
        value = end.outputs[0]
        made = ir.node("Gelu", inputs=[x], name=end.name)
        made.outputs[0].name, made.outputs[0].shape = value.name, value.shape
        made.outputs[0].type = value.type
        graph.insert_before(end, made)
        ir.convenience.replace_all_uses_with(value, made.outputs[0], replace_graph_outputs=True)
        _remove(graph, end)


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """A node that nobody reads, and those that then nobody reads."""
    inputs = [v for v in node.inputs if v is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        producer = value.producer()
        if producer is not None and not value.uses() and not value.is_graph_output():
            _remove(graph, producer)


def _number(value: ir.Value | None) -> float | None:
    array = array_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _times(node: ir.Node | None, factor: float) -> ir.Value | None:
    """What a node multiplies by ``factor``, or None."""
    if node is None or not is_op(node, "Mul", "Div"):
        return None
    for place in (0, 1) if node.op_type == "Mul" else (1,):
        number = _number(node.inputs[place])
        if number:
            found = number if node.op_type == "Mul" else 1 / number
            if math.isclose(found, factor, rel_tol=_CLOSE):
                return node.inputs[1 - place]
    return None


def _scaled_input(value: ir.Value | None) -> ir.Value | None:
    return None if value is None else _times(value.producer(), math.sqrt(0.5))


def _reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _end(erf: ir.Node, x: ir.Value) -> ir.Node | None:
    """The last node of the pattern that starts with this Erf, or None."""
    one = _reader(erf.outputs[0])
    if one is None or not is_op(one, "Add"):
        return None
    if _number(_other(one, erf.outputs[0])) != 1.0:
        return None
    first = _reader(one.outputs[0])
    if first is None or not is_op(first, "Mul"):
        return None
    other = _other(first, one.outputs[0])
    if other is not None and _times(other.producer(), 0.5) is x:
        return first
    last = _reader(first.outputs[0])
    halves = _times(last, 0.5) is first.outputs[0]
    if other is x and halves:
        return last
    if _number(other) == 0.5 and last is not None and is_op(last, "Mul"):
        return last if _other(last, first.outputs[0]) is x else None
    return None
