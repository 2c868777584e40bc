"""Groups of layers whose input channels can be scaled, and the edit that scales them.

::

    source (layer, normalization, product with a constant)   its constants / s
      -> Relu, Transpose, Reshape, products, Add of a constant (constant / s) ...
        -> layers                                            their weights x s

What the graph computes stays, up to the rounding of the constants; with powers of two it stays
exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.qdq import QdqWriter
from edgecompress.qdq_plan import label
from edgecompress.quantization.channel_rules import PASSED, Shape
from edgecompress.quantization.channels import follow
from edgecompress.quantization.linear_channels import (
    LAYERS,
    Arrival,
    Fold,
    Source,
    Stop,
    is_norm,
    source_of,
    why_fixed,
)
from edgecompress.rewrite import infer_shapes

# Passed on the way back from a layer to what could have been its source.
_PLAIN = PASSED | {"Slice"}

__all__ = ["Group", "Groups", "find_groups", "fold"]


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that read the channels of one source, and nothing else that does.

    Attributes:
        source: What divides the channels.
        layers: What multiplies them again.
        between: Constants on the way that are divided as well.
    """

    source: Source
    layers: tuple[Arrival, ...]
    between: tuple[Fold, ...]

    @property
    def folds(self) -> tuple[Fold, ...]:
        """All constants that take part."""
        return (*self.source.folds, *self.between, *(layer.weight for layer in self.layers))

    def among(self, nodes: Mapping[ir.Node, ir.Node]) -> Group:
        """The same group of a copy of the graph.

        Args:
            nodes: Node of this graph -> node of the copy.
        """

        def moved(part: Fold) -> Fold:
            return replace(part, node=nodes[part.node])

        source = replace(
            self.source,
            node=nodes[self.source.node],
            folds=tuple(moved(part) for part in self.source.folds),
        )
        layers = tuple(
            replace(layer, node=nodes[layer.node], weight=moved(layer.weight))
            for layer in self.layers
        )
        return Group(source, layers, tuple(moved(part) for part in self.between))


@dataclass(frozen=True)
class Groups:
    """What can be equalized.

    Attributes:
        found: In graph order.
        reasons: Every other layer with a weight -> why its input cannot be scaled.
    """

    found: tuple[Group, ...]
    reasons: Mapping[ir.Node, str]


def find_groups(model: Model, allowed: Callable[[ir.Node], bool]) -> Groups:
    """Find all layers whose inputs can be scaled at no cost.

    Where several sources could do it, the nearest one does.

    Args:
        model: A float model.
        allowed: Whether a node may be changed.
    """
    graph = model.ir.graph
    order = {node: place for place, node in enumerate(graph)}
    shapes = _shapes(model)
    found: list[Group] = []
    taken: set[ir.Node] = set()
    reasons: dict[ir.Node, str] = {}
    fixed: dict[ir.Node, str] = {}
    for node in reversed(order):
        value = node.outputs[0]
        shape = shapes.get(value)
        if shape is None:
            continue
        try:
            source = source_of(node, len(shape))
        except Stop as stop:
            fixed[node] = str(stop)
            continue
        if source is None or source.channels < 2 or not _fits(source, shape):
            continue
        route = follow(graph, order, shapes, value, source.labels)
        readers = [layer.node for layer in route.layers]
        left_out = [
            f"{label(n)!r} is left out by the recipe" for n in (node, *readers) if not allowed(n)
        ]
        ended = next(iter(left_out), route.stop)
        if ended:
            fixed[node] = ended
            for reader in readers:
                reasons.setdefault(reader, f"its input comes from {_told(node)}, and {ended}")
        elif readers and not taken.intersection(readers):
            found.append(Group(source, tuple(route.layers), tuple(route.folds)))
            taken.update(readers)
    for node in graph:
        if node.op_type in LAYERS and node not in taken and _has_weight(node):
            reasons.setdefault(node, _no_source(node, fixed))
    rest = {node: reasons[node] for node in order if node in reasons and node not in taken}
    return Groups(tuple(found[::-1]), rest)


def fold(graph: ir.Graph, group: Group, scales: npt.NDArray[np.float64]) -> None:
    """Divide the source's channels, and multiply the weights that read them.

    A constant that others read too is copied for the group.

    Args:
        graph: The main graph; changed in place.
        group: One of its groups.
        scales: float64 [channels], positive.
    """
    writer = QdqWriter(graph)
    for part in group.folds:
        value = part.value
        assert value.const_value is not None  # found to be constant
        old = value.const_value.numpy()
        factors = scales[part.labels]
        new = (old * factors if part.times else old / factors).astype(old.dtype)
        if new.shape == old.shape and len(value.uses()) == 1 and not value.is_graph_output():
            value.const_value = ir.tensor(new, name=value.name)
        else:
            own = writer.initializer(f"{value.name}_scaled", new)
            part.node.replace_input_with(part.position, own)
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[value.name or ""]


def _shapes(model: Model) -> dict[ir.Value, Shape]:
    """Shapes of the values of the main graph, inferred in a copy."""
    copy = model.clone()
    infer_shapes(copy)
    found: dict[ir.Value, Shape] = {}
    for value, other in zip(_values(model.ir.graph), _values(copy.ir.graph), strict=True):
        shape = other.shape if value.shape is None else value.shape
        if shape is None and is_norm(value.producer()):
            found[value] = (None, None, None)  # what runtimes make of exported graphs has no shapes
        elif shape is not None:
            found[value] = tuple(d if isinstance(d, int) else d.value for d in shape)
    return found


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _fits(source: Source, shape: Shape) -> bool:
    """Whether the channels are a dimension of the output, and not spread over it."""
    sizes = source.labels.shape
    known = [size if isinstance(size, int) else None for size in shape]
    return all(a in (1, b) or b is None for a, b in zip(sizes, known, strict=True))


def _has_weight(node: ir.Node) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return weight is not None and weight.const_value is not None


def _no_source(node: ir.Node, fixed: Mapping[ir.Node, str]) -> str:
    """Why a layer that no source leads to has none, from what lies in front of it."""
    own = why_fixed(node.inputs[1], alone=True)
    if own:
        return f"its weight {own}"
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    while producer is not None and producer not in fixed and producer.op_type in _PLAIN:
        changing = {v for v in producer.inputs if v is not None and v.const_value is None}
        if len(changing) != 1:
            break
        producer = changing.pop().producer()
    if producer is None:
        return "its input is an input of the model"
    reason = fixed.get(producer, "no scales can be folded in there")
    return f"its input comes from {_told(producer)}, and {reason}"


def _told(node: ir.Node) -> str:
    return f"{node.op_type} {label(node)!r}"
