"""From the kernels that a runtime executes back to the nodes of the model.

Nodes are tagged by their place before the model is handed over (see ``_fusion.tag_nodes``); the
runtime then tells which of them each of its kernels stands for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.runtimes import Break, FusionCoverage, PlacedNode, Placement
from edgecompress.runtimes._float_graph import why_float

__all__ = ["Executed", "place_of", "coverage_of", "placement_of"]

_TAG = re.compile(r"<(\d+)>(/|$)")
_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_NOWHERE = ""  # what was computed beforehand, or is part of another kernel
_GONE = "not among what is executed: computed beforehand, or part of another kernel"


@dataclass(frozen=True)
class Executed:
    """A kernel that is executed.

    Attributes:
        op: The runtime's name of the operator.
        kernel: The runtime's name of the code that runs it, or what else it tells.
        integer: Whether it computes on, or moves, integers.
        nodes: Places of the nodes, in the model's main graph, that it stands for.
    """

    op: str
    kernel: str
    integer: bool
    nodes: frozenset[int]

    def __str__(self) -> str:
        return f"{self.op} ({self.kernel})" if self.kernel else self.op


def place_of(name: str) -> int | None:
    """Place of the node that a tagged name, or one that the runtime derived from it, stands for."""
    found = _TAG.match(name)
    return None if found is None else int(found.group(1))


def _label(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def coverage_of(
    model: Model, claimed: Sequence[str], kernels: Sequence[Executed], note: str | None = None
) -> FusionCoverage:
    """Look up what became of each claimed node."""
    by_place = {place: kernel for kernel in kernels for place in kernel.nodes}
    places = {v.name: i for i, node in enumerate(model.ir.graph) for v in node.outputs}
    nodes = list(model.ir.graph)
    unfused = {}
    for output in claimed:
        if output not in places:
            unfused[output] = "the model has no node with this output"
            continue
        kernel = by_place.get(places[output])
        if kernel is None:
            unfused[_label(nodes[places[output]])] = _GONE
        elif not kernel.integer:
            unfused[_label(nodes[places[output]])] = f"{kernel} in float"
    return FusionCoverage(
        claimed=len(claimed),
        fused=len(claimed) - len(unfused),
        unfused=unfused,
        integer_kernels=sum(kernel.integer for kernel in kernels),
        note=note,
    )


def placement_of(
    model: Model,
    kernels: Sequence[Executed],
    *,
    accelerator: str,
    source: str,
    note: str | None = None,
    mend: Callable[[ir.Node], str] = why_float,
) -> Placement:
    """Where each node runs; a break is a node with dequantized inputs that runs in float.

    Nodes that no kernel stands for run nowhere: they were computed beforehand, or are part of
    another kernel that does not tell.
    """
    by_place = {place: kernel for kernel in kernels for place in kernel.nodes}
    nodes, breaks = [], []
    for place, node in enumerate(model.ir.graph):
        kernel = by_place.get(place)
        nodes.append(
            PlacedNode(
                node=_label(node),
                op=node.op_type,
                runs_on=_NOWHERE if kernel is None else accelerator,
                kernel="" if kernel is None else str(kernel),
                integer=None if kernel is None else kernel.integer,
                partition=None if kernel is None else 0,
            )
        )
        if kernel is not None and not kernel.integer and _wants_integers(node):
            breaks.append(Break(_label(node), node.op_type, f"{kernel} in float", mend(node)))
    return Placement(tuple(nodes), accelerator, 1, tuple(breaks), source, note)


def _wants_integers(node: ir.Node) -> bool:
    """Whether all that a node computes on comes out of DequantizeLinear."""
    if node.op_type in _PAIR or not node.inputs or node.inputs[0] is None:
        return False
    producers = [value.producer() for value in node.inputs[:2] if value is not None]
    computed = [each for each in producers if each is not None]
    return bool(computed) and all(each.op_type == "DequantizeLinear" for each in computed)
