"""What a comparison found, in the words of ``edgecompress compare``, and what to do about it."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from edgecompress.comparison import Findings, NodeError
from edgecompress.costs import COSTLY
from edgecompress.inspection import list_layers
from edgecompress.model import Model
from edgecompress.results import DeadChannels, KeepFloat, LayerInfo, NodeSqnr, RangeFit
from edgecompress.walk.liveness import LAYERS

__all__ = ["dead_channels", "node_sqnr", "range_fits", "worth_keeping"]

Basis = Literal["output", "node", "infinite"]

_MOST = 5
# They hand integers on as they are: their inputs are quantized for the sake of others.
_CARRIERS = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Slice", "Gather", "Pad"}
    | {"Expand", "Split", "DepthToSpace", "SpaceToDepth", "Identity", "Cast"}
)
# Costs below a twentieth of the model count as that: among cheap nodes the gain decides alone.
_LEAST_COST = 0.05


def node_sqnr(error: NodeError) -> NodeSqnr:
    """One node's figures."""
    return NodeSqnr(node=error.node, op=error.op, sqnr_db=error.sqnr_db, own_db=error.own_db)


def range_fits(found: Findings) -> list[RangeFit]:
    """All ranges of activations."""
    return [
        RangeFit(
            value=use.value,
            low=use.low,
            high=use.high,
            clipped_low=use.clipped_low / use.count,
            clipped_high=use.clipped_high / use.count,
            unused=use.unused,
            fault=use.fault,
        )
        for use in found.ranges
    ]


def dead_channels(found: Findings) -> list[DeadChannels]:
    """All layers that have some."""
    return [
        DeadChannels(
            node=use.node,
            op=use.op,
            channels=use.channels,
            dead=list(use.dead),
            dead_in_both=list(use.dead_in_both),
        )
        for use in found.channels
    ]


def worth_keeping(
    original: Model, compressed: Model, found: Findings, most: int = _MOST
) -> list[KeepFloat]:
    """The nodes whose errors cost the outputs most, for what they would cost in float.

    Q/DQ pairs that a node shares with the one in front of it stay where only one of them is kept in
    float, so their noise is no reason to keep either.

    The worth of a node is its share of the error over its share of the model: of the file's bytes
    that its weights would add, or of the multiply-accumulates, whichever is more. Where the
    outputs became infinite, the nodes count alike whose numbers their types cannot hold.

    Args:
        original: The float model.
        compressed: The other one.
        found: Of their comparison.
        most: So many at most.
    """
    before = {layer.node: layer for layer in list_layers(original)}
    after = {layer.node: layer for layer in list_layers(compressed)}
    ends = {spec.name for spec in original.signature.outputs}
    basis = _basis(found, ends)
    nodes = _candidates(found, before, basis)
    total = _total(found, basis, nodes)
    macs = sum(layer.macs or 0 for layer in before.values())
    ranked = []
    for node in nodes:
        was = before.get(node.name)
        now = sum(after[name].bytes for name in node.stands if name in after)
        extra = 0 if was is None or not now else max(was.bytes - now, 0)
        count = 0 if was is None else was.macs
        share = node.loss / total
        cost = max(extra / compressed.size_bytes, (count or 0) / macs if macs else 0, _LEAST_COST)
        ranked.append((share / cost, _keep(node, share, basis, extra, count)))
    ranked.sort(key=lambda each: -each[0])
    return [keep for _, keep in ranked[:most]]


def _basis(found: Findings, ends: Collection[str]) -> Basis:
    if any(not math.isfinite(error.noise) for error in found.nodes if error.value in ends):
        return "infinite"
    return "output" if any(error.gain is not None for error in found.nodes) else "node"


@dataclass
class _Node:
    """A node, by the name that a recipe knows, with what its errors cost.

    Attributes:
        stands: Names of the nodes that stand for it in the compressed graph.
    """

    name: str
    op: str
    loss: float = field(default=0.0)
    stands: set[str] = field(default_factory=set)


def _candidates(found: Findings, layers: Mapping[str, LayerInfo], basis: Basis) -> list[_Node]:
    """Nodes that lose something by being compressed, and that could be left out."""
    nodes: dict[str, _Node] = {}
    for error in found.nodes:
        loss = _loss(error, basis)
        segment = found.segments.get(error.value, ())
        name, op = _named(error, segment)
        weights = name in layers and layers[name].parameters > 0
        if loss and (weights or op not in _CARRIERS):
            node = nodes.setdefault(name, _Node(name, op))
            node.loss += loss
            node.stands.update(_name(each) for each in segment)
    return list(nodes.values())


def _loss(error: NodeError, basis: Basis) -> float | None:
    """What would be won by keeping the node in float."""
    if basis == "output" or error.own_noise is None:
        return error.avoidable_gain
    if basis == "infinite":
        return float(not math.isfinite(error.own_noise))
    return (error.avoidable_noise or 0.0) / error.signal if error.signal > 0 else None


def _total(found: Findings, basis: Basis, nodes: Iterable[_Node]) -> float:
    """What is lost at all nodes, also what no node can avoid alone."""
    if basis == "infinite":
        return sum(node.loss for node in nodes)
    if basis == "output":
        return sum(error.gain or 0.0 for error in found.nodes)
    return sum((error.own_noise or 0.0) / error.signal for error in found.nodes if error.signal > 0)


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _named(error: NodeError, segment: Iterable[ir.Node]) -> tuple[str, str]:
    """Name and operator of the layer that makes the value.

    Where the original is not the graph that was compressed (a batch normalization, say, became a
    part of the convolution in front of it), that is the layer in the compressed graph.
    """
    if error.op not in COSTLY | LAYERS:
        for node in segment:
            if node.op_type in COSTLY | LAYERS:
                return _name(node), node.op_type
    return error.node, error.op


def _keep(node: _Node, share: float, basis: Basis, extra: int, macs: int | None) -> KeepFloat:
    # Names are patterns in recipes, and keys in TOML.
    pattern = json.dumps(glob.escape(node.name), ensure_ascii=False)
    return KeepFloat(
        node=node.name,
        op=node.op,
        share=share,
        basis=basis,
        extra_bytes=extra,
        macs=macs,
        line=f"{pattern} = false",
    )
