"""Blocks: a graph cut into slices that data pass through one after the other.

No pattern matching and no layer names: a graph can be cut where exactly one activation is alive
(:mod:`edgecompress.walk.liveness`). Neighbouring cuts are merged until a block holds at least one
layer and, for repeated structures, one whole repeat, such as attention and MLP. Graphs with long
skips are cut where the live activations are smallest. What torch cannot run becomes a block of its
own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgecompress.model import Model
from edgecompress.torchgraph import is_supported
from edgecompress.walk.liveness import Liveness, analyse, reads
from edgecompress.walk.spans import Span, spans

__all__ = ["Block", "find_blocks", "join", "slice_between", "whole"]

_MOST_LAYERS = 16


@dataclass(frozen=True)
class Block:
    """A slice of the graph between two cuts.

    Attributes:
        name: The common part of its weights' names, or "block N".
        nodes: In topological order; with the context that it reads, computed again in each block.
        inputs: Values that earlier blocks compute for it.
        outputs: Values that later blocks read.
        context: Graph inputs that it reads.
        results: Graph outputs that it computes.
        layers: Number of its nodes that hold a weight matrix.
        parameters: Elements of its float initializers.
        live_bytes: Of the activations behind it, for one row.
        repeat: Blocks of the same structure, one after the other, have the same number; -1 else.
        opaque: torch cannot run it; onnxruntime does.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    context: tuple[str, ...]
    results: tuple[str, ...]
    layers: int
    parameters: int
    live_bytes: int
    repeat: int
    opaque: bool


def find_blocks(model: Model, *, max_layers: int = _MOST_LAYERS) -> list[Block]:
    """Cut a graph into blocks, in the order in which data pass through them.

    Every node is in some block; one that depends on no weights may be in several.

    Args:
        model: The model; it is not changed. Model-local functions are inlined in a copy.
        max_layers: A stretch without a natural cut is cut further if it holds more layers.
    """
    model = model.inlined()
    graph = model.ir.graph
    opaque = {node for node in graph if not is_supported(node, model.ir.opset_imports)}
    liveness = analyse(graph, opaque, _inferred(model))
    if not liveness.main:
        return [whole(model)]
    return _named(_blocks(graph, liveness, spans(liveness, opaque, max_layers)))


def whole(model: Model) -> Block:
    """The graph as one block."""
    graph = model.inlined().ir.graph
    opaque = not all(is_supported(node, model.ir.opset_imports) for node in graph)
    span = Span(0, 0, len(analyse(graph).layers), opaque=opaque)
    return _make("model", graph, set(graph), span, frozenset(), frozenset(), 0)


def join(model: Model, first: Block, second: Block) -> Block:
    """Two neighbouring blocks as one."""
    graph = model.inlined().ir.graph
    nodes = {*first.nodes, *second.nodes}
    inner = {value.name for node in first.nodes for value in node.outputs}
    parameters = {v for n in nodes for v in reads(n) if v.producer() is None}
    return replace(
        second,
        name=f"{first.name} + {second.name}",
        nodes=tuple(node for node in graph if node in nodes),
        inputs=tuple(sorted({*first.inputs, *(n for n in second.inputs if n not in inner)})),
        outputs=tuple(sorted({*first.outputs, *second.outputs})),
        context=tuple(dict.fromkeys((*first.context, *second.context))),
        results=(*first.results, *second.results),
        layers=first.layers + second.layers,
        parameters=sum(_parameters(value) for value in parameters),
        repeat=-1,
        opaque=first.opaque or second.opaque,
    )


def slice_between(
    graph: ir.Graph, inputs: Iterable[str], outputs: Iterable[str]
) -> tuple[ir.Node, ...] | None:
    """The nodes that compute some values from others, from graph inputs and constants.

    Args:
        graph: In topological order.
        inputs: Names of values that are given; nothing before them is taken.
        outputs: Names of the wanted values.

    Returns:
        In topological order; None where the graph has not all of the wanted values.
    """
    values = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
    wanted = [values.get(name) for name in outputs]
    if None in wanted:
        return None
    given = {values[name] for name in inputs if name in values}
    taken = _ancestors([value for value in wanted if value is not None], given)
    return tuple(node for node in graph if node in taken)


def _ancestors(wanted: Iterable[ir.Value], given: set[ir.Value]) -> set[ir.Node]:
    taken: set[ir.Node] = set()
    stack = list(wanted)
    while stack:
        value = stack.pop()
        node = value.producer()
        if node is not None and node not in taken and value not in given:
            taken.add(node)
            stack.extend(reads(node))
    return taken


def _inferred(model: Model) -> dict[ir.Value, ir.Value]:
    """Values without a type or shape -> those of a copy that went through shape inference."""
    ours = [value for node in model.ir.graph for value in node.outputs]
    if all(value.shape is not None and value.dtype is not None for value in ours):
        return {}
    copy = model.clone().ir
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    return dict(zip(ours, (v for node in copy.graph for v in node.outputs), strict=True))


def _blocks(graph: ir.Graph, liveness: Liveness, cut: list[Span]) -> list[Block]:
    main = set(liveness.main)
    dependent = {value for node in main for value in node.outputs}
    rest = set(graph) - main
    found: list[Block] = []
    before: frozenset[ir.Value] = frozenset()
    for number, span in enumerate(cut):
        own = set(liveness.main[span.start : span.stop])
        nodes = own | _ancestors((v for node in own for v in reads(node)), dependent)
        rest -= nodes
        if span is cut[-1]:
            nodes |= rest | _ancestors((v for node in rest for v in reads(node)), dependent)
        live = liveness.live[span.stop - 1]
        name = f"block {number}"
        behind = liveness.live_bytes[span.stop - 1]
        found.append(_make(name, graph, nodes, span, before, live, behind))
        before = live
    return found


def _make(
    name: str,
    graph: ir.Graph,
    nodes: set[ir.Node],
    span: Span,
    before: frozenset[ir.Value],
    behind: frozenset[ir.Value],
    live_bytes: int,
) -> Block:
    read = {value for node in nodes for value in reads(node)}
    made = {value for node in nodes for value in node.outputs}
    weights = {v for v in read if v.const_value is not None and v.producer() is None}
    return Block(
        name=name,
        nodes=tuple(node for node in graph if node in nodes),
        inputs=_names(before & read),
        outputs=_names(behind & made),
        context=tuple(v.name or "" for v in graph.inputs if v in read and v not in weights),
        results=tuple(v.name or "" for v in graph.outputs if v in made),
        layers=span.layers,
        parameters=sum(_parameters(value) for value in weights),
        live_bytes=live_bytes,
        repeat=span.repeat,
        opaque=span.opaque,
    )


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(sorted(value.name or "" for value in values))


def _parameters(value: ir.Value) -> int:
    tensor = value.const_value
    return tensor.size if tensor is not None and tensor.dtype.is_floating_point() else 0


def _named(blocks: list[Block]) -> list[Block]:
    """Name blocks after their weights, where that is unique."""
    names = [_common_name(block) for block in blocks]
    return [
        replace(block, name=name) if name and names.count(name) == 1 else block
        for block, name in zip(blocks, names, strict=True)
    ]


def _common_name(block: Block) -> str:
    """The leading parts that the names of all matrices of a block share."""
    weights = [
        (value.name or "").split(".")
        for node in block.nodes
        for value in node.inputs
        if value is not None
        and _parameters(value) > 1
        and value.producer() is None
        and value.const_value is not None
        and len(value.const_value.shape) > 1
    ]
    common: list[str] = []
    for parts in zip(*weights, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    if weights and common == weights[0]:
        common = common[:-1] or common
    return ".".join(common)
