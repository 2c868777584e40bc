"""Nodes that take longer on integers than they did in float, with the conversions around them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.graph_pass import Change
from edgecompress.measure import Measurement
from edgecompress.model import Model
from edgecompress.qdq_plan import label

__all__ = ["Loss", "slow_nodes"]

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"})
# Below this share of the float model's time, a difference is noise of the profiler.
_LEAST_SHARE = 0.003
# The profiler's own work lengthens short kernels a little.
_DISTURBED = 1.3


@dataclass(frozen=True)
class Loss:
    """What a node costs in microseconds per inference.

    Attributes:
        before_us: Its kernel in the float model; 0 where another kernel has absorbed it.
        after_us: Its kernel in the compressed model.
        conversions_us: Its part of the conversions around it.
    """

    node: str
    op: str
    before_us: float
    after_us: float
    conversions_us: float

    @property
    def kernel_us(self) -> float:
        """Time lost by its kernel alone."""
        return self.after_us - self.before_us

    @property
    def lost_us(self) -> float:
        """Time lost; negative where some was won."""
        return self.kernel_us + self.conversions_us


def slow_nodes(
    original: Model,
    before: Measurement,
    compressed: Model,
    after: Measurement,
    changes: Iterable[Change],
) -> list[Loss]:
    """Changed nodes that lose time, by themselves or with all that they are joined to.

    Nodes that hand integers to one another are an island; the conversions at its shores are shared
    by the nodes that they lead to. Where one node goes, its conversions move on to the next: so an
    island that would lose as a whole without the nodes that are slow themselves is named whole.

    Args:
        original: The float model.
        before: Its time per operator.
        compressed: The model that passes made of it.
        after: Its time per operator.
        changes: What these passes changed.

    Returns:
        The largest loss first; empty where the operators were not timed, or other work disturbed
        their timing.
    """
    if not (_is_sound(before) and _is_sound(after)):
        return []
    operators = {change.node: change.op for change in changes}
    times_before, times_after = _times(original, before), _times(compressed, after)
    graph = _Timed(compressed, times_after, operators)
    conversions = graph.conversions()
    losses = {
        name: Loss(
            name, op, times_before.get(name, 0.0), times_after.get(name, 0.0), conversions[name]
        )
        for name, op in operators.items()
    }
    least = _LEAST_SHARE * sum(kernel.mean_us for kernel in before.operators)
    slow = {name for name, loss in losses.items() if loss.lost_us > least}
    for island in graph.islands():
        members = [losses[name] for name in island]
        kernels = sum(loss.kernel_us for loss in members if loss.kernel_us <= least)
        if kernels + sum(loss.conversions_us for loss in members) > least:
            slow |= island
    return sorted((losses[name] for name in slow), key=lambda loss: -loss.lost_us)


def _is_sound(measured: Measurement) -> bool:
    """Whether the kernels' times add up to no more than a run takes, about."""
    if not measured.operators or measured.latency_ms is None:
        return False
    whole_ms = sum(kernel.mean_us for kernel in measured.operators) / 1000
    return whole_ms <= _DISTURBED * measured.latency_ms.p50


def _times(model: Model, measured: Measurement) -> dict[str, float]:
    """Label of a node in the file -> time of the kernel that it gave its operator."""
    labels = {out.name: label(node) for node in model.ir.graph for out in node.outputs}
    times: dict[str, float] = defaultdict(float)
    for kernel in measured.operators:
        if kernel.output_names and kernel.output_names[0] in labels:
            times[labels[kernel.output_names[0]]] += kernel.mean_us
    return dict(times)


class _Timed:
    """A compressed graph with the times of its nodes.

    Args:
        model: The graph.
        times: By label of the node.
        changed: Labels of the nodes that passes changed.
    """

    def __init__(self, model: Model, times: Mapping[str, float], changed: Collection[str]) -> None:
        self._times = times
        self._nodes = {label(node): node for node in model.ir.graph}
        self._changed = {name for name in changed if name in self._nodes}

    def conversions(self) -> dict[str, float]:
        """Time of the conversions that are left in the graph, shared by the nodes they serve."""
        shares: dict[str, float] = defaultdict(float)
        for name, node in self._nodes.items():
            if node.op_type not in _CONVERSIONS or name not in self._times:
                continue
            first, second = (_readers, _makers)
            if node.op_type == "DequantizeLinear":
                first, second = second, first
            served = self._reach(node, first) or self._reach(node, second)
            for each in served:
                shares[each] += self._times[name] / len(served)
        return shares

    def islands(self) -> list[set[str]]:
        """Changed nodes that hand values to one another without a conversion in between."""
        islands: list[set[str]] = []
        for name in self._changed:
            joined = {name, *self._reach(self._nodes[name], _readers, through_conversions=False)}
            for other in [island for island in islands if island & joined]:
                islands.remove(other)
                joined |= other
            islands.append(joined)
        return islands

    def _reach(
        self,
        start: ir.Node,
        step: Callable[[ir.Node], Iterable[ir.Node]],
        *,
        through_conversions: bool = True,
    ) -> set[str]:
        """Changed nodes next to ``start``, past nodes that vanish in the runtime."""
        found: set[str] = set()
        seen: set[ir.Node] = {start}
        waiting = [start]
        while waiting:
            for node in step(waiting.pop()):
                if node in seen:
                    continue
                seen.add(node)
                name = label(node)
                if name in self._changed:
                    found.add(name)
                elif name not in self._times or (
                    through_conversions and node.op_type in _CONVERSIONS
                ):
                    waiting.append(node)
        return found


def _readers(node: ir.Node) -> Iterable[ir.Node]:
    return [use.node for out in node.outputs for use in out.uses()]


def _makers(node: ir.Node) -> Iterable[ir.Node]:
    producers = [value.producer() for value in node.inputs if value is not None]
    return [producer for producer in producers if producer is not None]
