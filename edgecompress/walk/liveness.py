"""Which values are alive where: what cutting a graph into blocks is decided by.

Only values that depend on a weight matrix count. Masks, position ids and rotary tables depend on
none: they are *context*, cheap to compute again wherever they are read, and so are the constants.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.subgraphs import subgraphs

__all__ = ["LAYERS", "Liveness", "analyse", "reads"]

LAYERS = frozenset(
    {
        *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv"),
        *("MatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulNBits"),
        *("DynamicQuantizeMatMul", "FusedMatMul", "Gemm", "FusedGemm", "QGemm", "Einsum"),
        *("LSTM", "GRU", "RNN", "Attention", "EmbedLayerNormalization", "GatherBlockQuantized"),
    }
)
"""Operators that multiply by a weight matrix, where one of their inputs is one."""

_EMBEDDING = "Gather"
# Shapes, indices and truth values are carried along; they are no activations.
_ASIDE = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
# What an unknown dimension that is not the first one counts as: a short sequence, a small image.
_NOMINAL = 64


@dataclass(frozen=True)
class Liveness:
    """The nodes that depend on weights, in order, and what is alive behind each of them.

    Attributes:
        main: Nodes that depend on a weight matrix, in topological order.
        layers: Those of them that hold one.
        live: Behind each main node: the values that a later one reads.
        known: Values of a copy whose types and shapes are inferred, where the graph has none.
    """

    main: tuple[ir.Node, ...]
    layers: frozenset[ir.Node]
    live: tuple[frozenset[ir.Value], ...]
    known: Mapping[ir.Value, ir.Value]

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Positions behind which exactly one activation is alive; the last node is none."""
        return tuple(
            i
            for i, values in enumerate(self.live[:-1])
            if sum(self._is_activation(value) for value in values) == 1
        )

    @cached_property
    def live_bytes(self) -> tuple[int, ...]:
        """Bytes of the live activations behind each main node, for one row."""
        return tuple(
            sum(self._row_bytes(value) for value in values if self._is_activation(value))
            for values in self.live
        )

    def _is_activation(self, value: ir.Value) -> bool:
        return self.known.get(value, value).dtype not in _ASIDE

    def _row_bytes(self, value: ir.Value) -> int:
        value = self.known.get(value, value)
        itemsize = 4 if value.dtype is None else value.dtype.itemsize
        return math.ceil(math.prod(_dims(value)) * itemsize)


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, also those that its sub-graphs take from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for graph in subgraphs(node):
        inside = {value for inner in graph.all_nodes() for value in inner.outputs}
        for inner in graph.all_nodes():
            for value in inner.inputs:
                if value is not None and value not in inside:
                    yield value
        yield from (value for value in graph.outputs if value not in inside)


def analyse(
    graph: ir.Graph,
    barriers: Collection[ir.Node] = (),
    known: Mapping[ir.Value, ir.Value] = MappingProxyType({}),
) -> Liveness:
    """Find the nodes that depend on weights, and what is alive between them.

    Tables that are looked up by position (rotary embeddings) are weights only where that does not
    cost cuts.

    Args:
        graph: In topological order.
        barriers: Nodes that count as if they held weights, whatever they are.
        known: As in :class:`Liveness`.
    """
    nodes = list(graph)
    matrices = _matrices(nodes)
    layers = {n for n in nodes if _is_layer(n, matrices)}
    tables = [n for n in nodes if _is_embedding(n, matrices)]
    largest = sorted(tables, key=lambda n: -_elements(n.inputs[0]))[:1]
    found = [
        _liveness(nodes, layers | set(chosen), set(barriers), known) for chosen in (tables, largest)
    ]
    return max(found, key=lambda liveness: len(liveness.cuts))


def _liveness(
    nodes: list[ir.Node],
    layers: set[ir.Node],
    barriers: set[ir.Node],
    known: Mapping[ir.Value, ir.Value],
) -> Liveness:
    dependent: set[ir.Value] = set()
    main = []
    for node in nodes:
        is_seed = node in layers or node in barriers
        if is_seed or any(value in dependent for value in reads(node)):
            main.append(node)
            dependent.update(node.outputs)
    last: dict[ir.Value, int] = {}
    for position, node in enumerate(main):
        for value in reads(node):
            if value in dependent:
                last[value] = position
    live, alive = [], set[ir.Value]()
    for position, node in enumerate(main):
        alive = {value for value in (*alive, *node.outputs) if last.get(value, -1) > position}
        live.append(frozenset(alive))
    return Liveness(tuple(main), frozenset(layers), tuple(live), known)


def _matrices(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    """Values that are computed from constants alone, among them a matrix."""
    fixed: set[ir.Value] = set()
    found: set[ir.Value] = set()

    def note(value: ir.Value) -> None:
        if value.const_value is not None and value.producer() is None:
            fixed.add(value)
            if sum(size > 1 for size in value.const_value.shape.numpy()) > 1:
                found.add(value)

    for node in nodes:
        values = list(reads(node))
        for value in values:
            note(value)
        if all(value in fixed for value in values):
            fixed.update(node.outputs)
            if any(value in found for value in values):
                found.update(node.outputs)
    return found


def _is_layer(node: ir.Node, matrices: set[ir.Value]) -> bool:
    if any(value in matrices for value in node.outputs):
        return False  # a weight in the making
    if node.op_type in LAYERS:
        return any(value in matrices for value in node.inputs)
    return any(inner.op_type in LAYERS for graph in subgraphs(node) for inner in graph.all_nodes())


def _is_embedding(node: ir.Node, matrices: set[ir.Value]) -> bool:
    """A look-up in a table by numbers that come from outside, not by counted positions."""
    if node.op_type != _EMBEDDING or node.domain not in DEFAULT_DOMAINS:
        return False
    table, index = node.inputs[0], node.inputs[1]
    if table not in matrices or index is None or any(v in matrices for v in node.outputs):
        return False
    producer = index.producer()
    while producer is not None and len(producer.inputs) == 1 and producer.inputs[0] is not None:
        index = producer.inputs[0]
        producer = index.producer()
    return producer is None and index.const_value is None


def _elements(value: ir.Value | None) -> int:
    if value is None:
        return 0
    if value.const_value is not None:
        return math.prod(value.const_value.shape.numpy())
    return math.prod(_dims(value))


def _dims(value: ir.Value) -> list[int]:
    """Sizes for one row; of what is not known, a nominal one."""
    if value.shape is None:
        return [_NOMINAL]
    return [
        size if isinstance(size, int) else (1 if axis == 0 else _NOMINAL)
        for axis, size in enumerate(value.shape)
    ]
