"""What the ONNX checker lets pass, although nothing behind it can use it.

Values that do not fill their tensor, types that are not told, calls that do not fit their function,
functions that call themselves: the libraries that read a graph fail on these in the middle of some
work, or never come back. They are refused when a file is loaded, by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from edgecompress.errors import ModelError
from edgecompress.subgraphs import subgraphs

__all__ = ["check_sound"]

_CURE = "export the model again, or report the exporter's bug to its authors"
_DEEPEST = 20
"""Subgraphs within subgraphs: what reads a graph recurses, and protobuf itself ends at about 30."""


def check_sound(model: ir.Model, file: Path) -> None:
    """Refuse a graph that cannot be worked on.

    Args:
        model: The graph as it was read; external data are not looked at.
        file: Where it was read from.

    Raises:
        ModelError: Names the tensor, the value, the node or the function.
    """
    for what, where in _faults(model):
        raise ModelError(what, where=f"{file}: {where}", cure=_CURE)


def _faults(model: ir.Model) -> Iterator[tuple[str, str]]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        yield from _nesting(graph)
        yield from _names(graph)
    yield from _recursion(model)
    for graph in graphs:
        yield from _tensors(graph)
        yield from _constants(graph)
        yield from _calls(model, graph)
    yield from _signature(model.graph)


def _nesting(graph: ir.Graph | ir.Function) -> Iterator[tuple[str, str]]:
    level = [*graph]
    for _ in range(_DEEPEST):
        level = [node for outer in level for inner in subgraphs(outer) for node in inner]
        if not level:
            return
    yield f"nests subgraphs deeper than {_DEEPEST} levels", f"node {_name(level[0])}"


def _names(graph: ir.Graph | ir.Function) -> Iterator[tuple[str, str]]:
    for node in graph.all_nodes():
        values = [value.name for value in (*node.inputs, *node.outputs) if value is not None]
        for name in (node.op_type, node.domain, node.name, *values, *node.attributes):
            if name is not None and not isinstance(name, str):  # as protobuf gives what is no text
                yield f"expected text in UTF-8, got {bytes(name)[:80]!r}", "a name in the graph"


def _recursion(model: ir.Model) -> Iterator[tuple[str, str]]:
    calls = {
        key: {n.op_identifier() for n in function.all_nodes()} & model.functions.keys()
        for key, function in model.functions.items()
    }
    while ends := {key for key, called in calls.items() if not called}:
        calls = {key: called - ends for key, called in calls.items() if key not in ends}
    if calls:
        domain, name, _ = min(calls)
        yield "the function calls itself, which ONNX forbids", f"function {domain}::{name}"


def _tensors(graph: ir.Graph | ir.Function) -> Iterator[tuple[str, str]]:
    within = [graph] if isinstance(graph, ir.Graph) else []
    for each in (*within, *graph.subgraphs()):
        for name, value in each.initializers.items():
            if value.const_value is not None:
                yield from _tensor(value.const_value, f"tensor {name!r}")
    for node in graph.all_nodes():
        for attribute in node.attributes.values():
            where = f"attribute {attribute.name!r} of node {_name(node)}"
            if attribute.is_ref():
                if isinstance(graph, ir.Graph):
                    yield "refers to an attribute of a function, and there is none around it", where
            elif attribute.type == ir.AttributeType.TENSOR:
                yield from _tensor(attribute.value, where)


def _tensor(tensor: ir.TensorProtocol, where: str) -> Iterator[tuple[str, str]]:
    external = isinstance(tensor, ir.ExternalTensor)
    shape = list(tensor.shape)
    try:
        dtype = tensor.dtype
    except ValueError as error:  # a number that stands for no type
        yield str(error), where
        return
    if dtype == ir.DataType.UNDEFINED:
        yield "the type of its values is not told", where
    elif any(not isinstance(dim, int) or dim < 0 for dim in shape):
        yield f"expected dimensions of 0 or more, got {shape}", where
    elif external and dtype == ir.DataType.STRING:
        yield "its strings lie in external data, which ONNX does not allow", where
    elif not external:
        try:
            tensor.numpy()
        except (TypeError, ValueError, AssertionError) as error:  # onnx_ir asserts some
            kind = f"{dtype.name.lower()}{shape}"
            yield f"its values do not fill {kind}: {error}", where


def _constants(graph: ir.Graph | ir.Function) -> Iterator[tuple[str, str]]:
    for node in graph.all_nodes():
        if node.op_identifier() == ("", "Constant", "") and len(node.attributes) != 1:
            what = f"expected one attribute, its value, got {len(node.attributes)}"
            yield what, f"node {_name(node)}"


def _calls(model: ir.Model, graph: ir.Graph | ir.Function) -> Iterator[tuple[str, str]]:
    for node in graph.all_nodes():
        function = model.functions.get(node.op_identifier())
        if function is None:
            continue
        for side in ("inputs", "outputs"):
            given, taken = len(getattr(node, side)), len(getattr(function, side))
            if given > taken:
                what = f"expected at most {taken} {side} of the function, got {given}"
                yield what, f"node {_name(node)}"


def _signature(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    for side, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.dtype == ir.DataType.UNDEFINED:
                yield "the type of its values is not told", f"{side} {value.name!r}"


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')!r}"
