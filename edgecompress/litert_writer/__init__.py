"""An ONNX graph as a TFLite file for LiteRT, written operator by operator.

Float graphs stay float. In graphs with QuantizeLinear and DequantizeLinear, an operator between
them becomes one on int8 with the same scales, so that the file computes what was judged. No
converter stands between: ranges, weights and names are those of the ONNX graph.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir

from edgecompress.litert_writer.edges import make_input, make_outputs
from edgecompress.litert_writer.flatbuffer import Operator, Tensor
from edgecompress.litert_writer.registry import RefusalError, find, known_operators
from edgecompress.litert_writer.shapes import FreeDimensionError, fixed, read_shapes
from edgecompress.litert_writer.translation import Translation
from edgecompress.model import DEFAULT_DOMAINS, Model

__all__ = ["Operator", "Refused", "Written", "known_operators", "read_shapes", "translate"]

_DYNAMIC = frozenset(
    {
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "MatMulNBits",
        "DynamicQuantizeMatMul",
    }
)


@dataclass(frozen=True)
class Refused:
    """A node that cannot be written, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Written:
    """A file, and what is worth knowing of it.

    Attributes:
        data: Its bytes; empty where something was refused.
        operators: Its operators in order.
        absorbed: For each node that another one took in, first output of both.
        notes: What was assumed or changed, a sentence each.
        refused: What cannot be written; the file is whole where there is nothing.
    """

    data: bytes
    operators: tuple[Operator, ...]
    absorbed: Mapping[str, str]
    notes: tuple[str, ...]
    refused: tuple[Refused, ...]


@cache
def _load_operators() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def translate(
    model: Model, shapes: Mapping[str, int] | None = None, *, dynamic: bool = False
) -> Written:
    """Write a model as a TFLite file.

    The same model gives the same bytes. Inputs and outputs keep the names, types and order of axes
    of the ONNX model.

    Args:
        model: The model; it is not changed.
        shapes: Numbers for free dimensions, by name.
        dynamic: Let matrix products whose outputs the graph leaves in float, but whose weights are
            int8, quantize their inputs row by row while they run: fast, but other numbers.

    Raises:
        MissingDependencyError: The TFLite schema is not installed.
        ModelError: The file would be too large.
    """
    from edgecompress.litert_writer.gelu import fuse_gelu

    _load_operators()
    try:
        graph, notes = fixed(model, shapes or {})
    except FreeDimensionError as error:
        refused = [Refused(name, "graph input", _free(what)) for name, what in error.found.items()]
        return Written(b"", (), {}, (), tuple(refused))
    fuse_gelu(graph.ir.graph)
    t = Translation(graph.ir.graph, graph.opset, dynamic=dynamic)
    inputs, refused = _inputs(t)
    for node in graph.ir.graph:
        if node not in t.absorbed and (reason := _write(t, node)):
            refused.append(Refused(node.name or node.outputs[0].name or "", node.op_type, reason))
    if refused:
        return Written(b"", (), {}, tuple(notes), tuple(refused))
    data = t.file.finish(inputs, make_outputs(t, inputs))
    notes += [what.format(count) for what, count in t.notes.items()]
    absorbed = {str(node.outputs[0].name): origin for node, origin in t.absorbed.items()}
    return Written(data, tuple(t.file.operators), absorbed, tuple(notes), ())


def _free(what: str) -> str:
    return (
        f"TFLite files have fixed shapes, and {what} has no number; give one in the target's "
        'options, like shapes = "batch=1, sequence=128"'
    )


def _inputs(t: Translation) -> tuple[dict[str, Tensor], list[Refused]]:
    found, refused = {}, []
    for value in t.graph.inputs:
        name = str(value.name)
        try:
            found[name] = make_input(t, value)
        except RefusalError as error:
            refused.append(Refused(name, "graph input", str(error)))
            t.put(value, t.fresh(name, (), "float32"))
    return found, refused


def _write(t: Translation, node: ir.Node) -> str | None:
    """Write one node; the reason where that cannot be."""
    function = find(node.op_type) if node.domain in DEFAULT_DOMAINS else None
    if function is None:
        reason = _unknown(node)
    else:
        absorbed = dict(t.absorbed)
        t.begin(node)
        try:
            function(t, node)
            return None
        except RefusalError as error:
            reason = str(error)
            t.absorbed.clear()
            t.absorbed.update(absorbed)
    _stand_in(t, node)
    return reason


def _unknown(node: ir.Node) -> str:
    if node.op_type in _DYNAMIC:
        return "quantized while it runs; TFLite's integer kernels want ranges that are known"
    domain = "" if node.domain in DEFAULT_DOMAINS else f"{node.domain}::"
    return f"{domain}{node.op_type} is not written to TFLite files"


def _stand_in(t: Translation, node: ir.Node) -> None:
    """Outputs for a node that is refused, so that what comes behind it is looked at as well."""
    for value in node.outputs:
        shape = () if value.shape is None or not value.shape.is_static() else value.shape.numpy()
        t.put(value, t.fresh(str(value.name), tuple(map(int, shape)), "float32"))
