"""Sub-graphs: where they hang in a graph, and how an operator calls one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.subgraphs import named_subgraphs
from edgecompress.torchgraph.execution import Schedule, Step, execute, schedule
from edgecompress.torchgraph.values import torch_dtype, unsupported

__all__ = ["Body", "OutputType", "Place", "all_graphs", "read_values"]


def all_graphs(node: ir.Node) -> Iterator[tuple[tuple[tuple[str, str], ...], ir.Graph]]:
    """Every sub-graph of a node, at any depth, with the path to it.

    A step of the path is the name of a node's first output, and that of its attribute.
    """
    for name, graph in named_subgraphs(node):
        path = ((node.outputs[0].name or "", name),)
        yield path, graph
        for inner in graph:
            for deeper, nested in all_graphs(inner):
                yield path + deeper, nested


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node and its sub-graphs read, those of the sub-graphs among them."""
    yield from (value for value in node.inputs if value is not None)
    for _, graph in all_graphs(node):
        yield from graph.outputs
        for inner in graph:
            yield from (value for value in inner.inputs if value is not None)


@dataclass
class Place:
    """Where a graph runs; shared by all of its sub-graphs."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class OutputType(NamedTuple):
    """What a sub-graph declares of an output; None where it says nothing."""

    dtype: ir.DataType | None
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, value: ir.Value) -> OutputType:
        """Dimensions that are not numbers count as 0, as onnxruntime has it."""
        if value.shape is None:
            return cls(value.dtype, None)
        return cls(value.dtype, tuple(d if isinstance(d, int) else 0 for d in value.shape))

    def empty(self, device: torch.device) -> Tensor:
        """What a loop of no trips gives: ``[0, *shape]``.

        Raises:
            ModelError: The sub-graph does not say what it would have given.
        """
        if self.dtype is None or self.shape is None:
            raise unsupported("no trips, and an output whose type and rank are not declared")
        return torch.empty(0, *self.shape, dtype=torch_dtype(self.dtype), device=device)


class Body:
    """A sub-graph as a function of its inputs and of the outer values that it reads.

    Attributes:
        outer: Names of the outer values it reads, at any depth.
        types: What it declares of its outputs.
        captured: Positions of ``outer`` among all values that its node's sub-graphs capture.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        outer: tuple[str, ...],
        types: tuple[OutputType, ...],
        place: Place,
    ) -> None:
        self._steps = steps
        self.inputs = inputs
        self.outputs = outputs
        self.outer = outer
        self.types = types
        self.captured: tuple[int, ...] = ()
        self._place = place
        self._schedules: dict[bool, Schedule] = {}

    @property
    def device(self) -> torch.device:
        """Where the graph runs."""
        return self._place.device

    def __call__(self, arguments: Sequence[Any], captured: Sequence[Any]) -> list[Any]:
        """Run it once.

        Args:
            arguments: Its inputs, in order.
            captured: The outer values of all sub-graphs of the node.
        """
        gradients = torch.is_grad_enabled()
        if gradients not in self._schedules:
            self._schedules[gradients] = schedule(self._steps, self.outputs, gradients=gradients)
        values = {
            name: captured[i] for name, i in zip(self.outer, self.captured, strict=True)
        } | dict(zip(self.inputs, arguments, strict=True))
        execute(self._schedules[gradients].steps, values, self.device)
        return [values[name] for name in self.outputs]
