"""Where the channels of a value go: followed through a graph until layers read them.

Each value on the way has *labels*: an integer array that broadcasts to the value's shape and says
which channel of the source an entry belongs to. ``[1, 1, 384]`` behind a linear layer becomes
``[1, 1, 12, 32]`` where heads are parted, ``[1, 12, 1, 32]`` behind the transposition, and is a
plain row again where the heads are joined. A node can be passed where dividing its input's channels
by positive numbers divides those of its output by the same numbers.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.quantization.channel_rules import RULES, Here, Route, Shapes, refusal
from edgecompress.quantization.linear_channels import LAYERS, Labels, Stop, arrive

__all__ = ["follow"]


def follow(
    graph: ir.Graph,
    order: Mapping[ir.Node, int],
    shapes: Shapes,
    source: ir.Value,
    labels: Labels,
) -> Route:
    """Follow channels from a value to all layers that read them.

    Args:
        graph: The main graph.
        order: Place of each of its nodes.
        shapes: Of its values.
        source: The value that has the channels.
        labels: Of its entries, one dimension for each of the value's.
    """
    route = Route()
    known: dict[ir.Value, Labels] = {}
    waiting: list[int] = []
    nodes: dict[int, ir.Node] = {}

    def reach(value: ir.Value, found: Labels) -> None:
        known[value] = found
        if value.is_graph_output():
            _end(route, f"{value.name!r} is an output of the model")
        for use in value.uses():
            place = order.get(use.node)
            if use.node.graph is not graph or place is None:
                _end(route, f"{value.name!r} is read inside a subgraph")
            elif place not in nodes:
                nodes[place] = use.node
                heapq.heappush(waiting, place)

    reach(source, labels)
    while waiting:
        node = nodes[heapq.heappop(waiting)]
        carried = {
            i: known[value]
            for i, value in enumerate(node.inputs)
            if value is not None and value in known
        }
        try:
            found = _pass(Here(node, carried, shapes, route))
        except Stop as stop:
            _end(route, str(stop))
            continue
        for value, their in found.items():
            reach(value, their)
    return route


def _end(route: Route, reason: str) -> None:
    route.stop = route.stop or reason


def _pass(here: Here) -> dict[ir.Value, Labels]:
    """Labels of the node's outputs; none behind a layer."""
    node = here.node
    if node.op_type in LAYERS and set(here.carried) == {0}:
        arrival = arrive(node, here.only(0))
        if arrival is not None:
            here.route.layers.append(arrival)
            return {}
    rule = RULES.get(node.op_type)
    if rule is None or node.domain not in DEFAULT_DOMAINS:
        raise Stop(refusal(node))
    found = rule(here)
    return {value: found for value in node.outputs if value.name}
