"""From the operators of a TFLite file, and where they run, back to the nodes of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgecompress.litert_writer import Written
from edgecompress.model import Model
from edgecompress.runtimes import Break, PlacedNode, Placement
from edgecompress.runtimes._executed import Executed

__all__ = ["kernels_of", "placement_of"]

XNNPACK = "XNNPACK"
BUILTIN = "builtin"
# Written around an operator, to bring its inputs into another form.
_HELPERS = frozenset({"DEQUANTIZE", "QUANTIZE", "RESHAPE", "TRANSPOSE", "PAD", "PADV2"})
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_EVERYWHERE = "quantize what it makes as well: int8.everywhere = true in the target"


def kernels_of(model: Model, made: Written, operators: list[dict[str, Any]]) -> list[Executed]:
    """What became of each node: its main operator, and where that runs.

    ``Executed.kernel`` is the back end and, of a delegate, the number of the piece.
    """
    places = {str(v.name): i for i, node in enumerate(model.ir.graph) for v in node.outputs}
    nodes: dict[str, set[int]] = {}
    for made_for in (each.origin for each in made.operators):
        if made_for in places:
            nodes.setdefault(made_for, set()).add(places[made_for])
    for output, origin in made.absorbed.items():
        if origin in nodes and output in places:
            nodes[origin].add(places[output])
    by_origin: dict[str, list[dict[str, Any]]] = {}
    for ours, theirs in zip(made.operators, operators, strict=True):
        by_origin.setdefault(ours.origin, []).append(theirs)
    kernels = []
    for origin, held in nodes.items():
        mine = by_origin[origin]
        own = [each for each in mine if each["op"] not in _HELPERS] or mine[:1]
        by = next((each for each in own if each["piece"] is None), own[0])
        where = BUILTIN if by["piece"] is None else f"{XNNPACK} {by['piece']}"
        integer = all(each["integer"] for each in own)
        op = "+".join(dict.fromkeys(each["op"] for each in own))
        kernels.append(Executed(op, where, integer, frozenset(held)))
    return kernels


def placement_of(
    model: Model, kernels: Sequence[Executed], provider: str, source: str
) -> Placement:
    """Where each node runs; a break is one without the provider, or a layer kept from integers."""
    by_place = {place: kernel for kernel in kernels for place in kernel.nodes}
    nodes, breaks = [], []
    for place, node in enumerate(model.ir.graph):
        kernel = by_place.get(place)
        if kernel is None:
            continue
        name = node.name or node.outputs[0].name or ""
        by, _, piece = kernel.kernel.partition(" ")
        number = int(piece) if piece else None
        nodes.append(PlacedNode(name, node.op_type, by, kernel.op, kernel.integer, number))
        if by != provider:
            breaks.append(Break(name, node.op_type, f"{kernel.op} runs on LiteRT's own kernel"))
        elif not kernel.integer and _between_integers(node):
            reason = f"{kernel.op} computes in float, since nothing quantizes what it makes"
            breaks.append(Break(name, node.op_type, reason, _EVERYWHERE))
    pieces = {each.partition for each in nodes if each.partition is not None}
    return Placement(tuple(nodes), provider, len(pieces), tuple(breaks), source)


def _between_integers(node: ir.Node) -> bool:
    """Whether a layer has integers as input and weights."""
    makers = [value.producer() for value in node.inputs[:2] if value is not None]
    return node.op_type in _LAYERS and all(
        maker is not None and maker.op_type == "DequantizeLinear" for maker in makers
    )
