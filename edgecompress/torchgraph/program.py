"""A slice of a graph, read once: steps that call torch, and the constants they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.subgraphs import named_subgraphs
from edgecompress.torchgraph.bodies import Body, OutputType, Place, all_graphs
from edgecompress.torchgraph.constants import Constants, Use, is_constant, is_fixed
from edgecompress.torchgraph.execution import Step
from edgecompress.torchgraph.lookup import find_operators
from edgecompress.torchgraph.registry import Operator
from edgecompress.torchgraph.slices import ancestors, border, graph_inputs, values_by_name
from edgecompress.torchgraph.straight_through import float_side, straight_through
from edgecompress.torchgraph.values import to_tensor

__all__ = ["Origin", "Program", "read"]

Origin = tuple[tuple[tuple[str, str], ...], str]
"""Path to a sub-graph, and the name of an initializer in it."""


@dataclass
class Program:
    """Steps in order, the names at their borders, and the constants sorted by their role.

    Constants of sub-graphs are here too, under names of their own; the steps of the nodes that
    hold the sub-graphs list them among their inputs, with all other outer values that they read.

    Attributes:
        constants: Those that the steps read, and those that are returned as they are.
        origins: Where those initializers lie that are not in the main graph.
        place: Where the sub-graphs run.
    """

    steps: list[Step]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Constants
    origins: dict[str, Origin]
    place: Place


def read(
    model: Model, nodes: Sequence[ir.Node] | None, outputs: Sequence[str] | None = None
) -> Program:
    """Translate the nodes of a slice (None: of the whole graph).

    Args:
        model: The graph.
        nodes: Of the main graph, in order.
        outputs: Take only the nodes that these values need.

    Raises:
        UnsupportedOperatorError: Operators, or attributes of theirs, without a translation.
        ModelError: A required attribute is missing, a constant's type is unknown to torch, or a
            wanted value does not exist.
    """
    graph = model.ir.graph
    chosen = list(graph) if nodes is None else list(nodes)
    if outputs is None:
        returned = border(graph, chosen, whole=nodes is None)
    else:
        returned = values_by_name(graph, chosen, outputs)
        chosen = ancestors(chosen, returned)
    reader = _Reader(graph, chosen, find_operators(model, chosen))
    steps, outer = reader.scope(chosen, (), returned)
    fed = {value: None for value in outer if not is_fixed(value)}
    if nodes is None and outputs is None:
        fed = dict.fromkeys(graph_inputs(graph))
    elif nodes is None:
        fed = {value: None for value in graph_inputs(graph) if value in fed}
    constants = Constants({}, {}, {})
    for value, uses in reader.uses.items():
        constants.place(reader.key(value), value, uses)
    return Program(
        steps=steps,
        inputs=tuple(reader.key(value) for value in fed),
        outputs=tuple(reader.key(value) for value in returned),
        constants=constants,
        origins=reader.origins,
        place=reader.place,
    )


class _Reader:
    """Reads scope after scope; values of sub-graphs get names that nobody else has.

    Attributes:
        uses: Constants of all scopes, and who reads them.
    """

    def __init__(
        self, graph: ir.Graph, chosen: Iterable[ir.Node], operators: dict[ir.Node, Operator]
    ) -> None:
        self.uses: dict[ir.Value, list[Use]] = {}
        self.origins: dict[str, Origin] = {}
        self.place = Place()
        self._operators = operators
        self._keys: dict[ir.Value, str] = {}
        nested = [found for node in chosen for found in all_graphs(node)]
        taken = {value.name for value in _own_values(graph)} if nested else set()
        for path, inner in nested:
            for value in _own_values(inner):
                name = key = _name(value)
                copies = 1
                while key in taken:
                    copies += 1
                    key = f"{name}_{copies}"
                taken.add(key)
                self._keys[value] = key
                if value.is_initializer():
                    self.origins[key] = path, name

    def key(self, value: ir.Value) -> str:
        """The name of a value in the program."""
        return self._keys.get(value) or _name(value)

    def scope(
        self, nodes: Iterable[ir.Node], given: Iterable[ir.Value], returned: Iterable[ir.Value]
    ) -> tuple[list[Step], dict[ir.Value, None]]:
        """Steps of a graph, and the outer values that it reads.

        Args:
            nodes: Its nodes.
            given: Its inputs.
            returned: Its outputs.
        """
        running = [node for node in nodes if not is_constant(node)]
        known = {*given, *(value for node in running for value in node.outputs)}
        outer: dict[ir.Value, None] = {}
        steps: list[Step] = []
        for node in running:
            operator = self._operators[node]
            bodies = {name: self._body(graph) for name, graph in named_subgraphs(node)}
            captured = dict.fromkeys(value for _, reads in bodies.values() for value in reads)
            for position, value in enumerate(node.inputs):
                if value is not None and value not in known:
                    outer.setdefault(value)
                    if is_fixed(value):
                        self.uses.setdefault(value, []).append(Use(operator, position))
            outer.update(dict.fromkeys(value for value in captured if value not in known))
            steps.append(self._step(node, operator, bodies, tuple(captured), known))
        for value in returned:
            if value not in known:
                outer.setdefault(value)
                if is_fixed(value):
                    self.uses.setdefault(value, [])
        return steps, outer

    def _body(self, graph: ir.Graph) -> tuple[Body, dict[ir.Value, None]]:
        steps, outer = self.scope(graph, graph.inputs, graph.outputs)
        body = Body(
            steps,
            inputs=tuple(self.key(value) for value in graph.inputs),
            outputs=tuple(self.key(value) for value in graph.outputs),
            outer=tuple(self.key(value) for value in outer),
            types=tuple(OutputType.of(value) for value in graph.outputs),
            place=self.place,
        )
        return body, outer

    def _step(
        self,
        node: ir.Node,
        operator: Operator,
        bodies: dict[str, tuple[Body, dict[ir.Value, None]]],
        captured: tuple[ir.Value, ...],
        known: set[ir.Value],
    ) -> Step:
        label = f"{node.op_type} node {node.name or node.outputs[0].name!r}"
        keywords = _keywords(node, operator, label)
        places = {value: position for position, value in enumerate(captured)}
        for name, (body, reads) in bodies.items():
            body.captured = tuple(places[value] for value in reads)
            keywords[operator.keywords[name]] = body
        inputs = tuple("" if value is None else self.key(value) for value in node.inputs)
        step = Step(
            run=partial(operator.function, **keywords) if keywords else operator.function,
            inputs=inputs + tuple(self.key(value) for value in captured),
            outputs=tuple(self.key(value) if value.name else "" for value in node.outputs),
            # The nodes of a sub-graph know themselves which of their inputs may stay on the host.
            host=frozenset(range(len(inputs) + len(captured))) if bodies else operator.host,
            label=label,
        )
        x = float_side(node)
        if x is None or node.inputs[0] not in known:
            return step
        form = {name: keywords[name] for name in ("axis", "block_size") if name in keywords}
        return step._replace(
            run=partial(straight_through, step.run, **form),
            inputs=(*(*inputs, "")[:3], self.key(x)),
            plain=step,
        )


def _own_values(graph: ir.Graph) -> Iterable[ir.Value]:
    named = (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs))
    return dict.fromkeys(value for value in named if value.name)


def _name(value: ir.Value) -> str:
    if not value.name:
        raise ModelError("a value of the graph has no name", cure="save and load the model first")
    return value.name


def _keywords(node: ir.Node, operator: Operator, label: str) -> dict[str, Any]:
    """The attributes of a node, but for its sub-graphs."""
    lacking = operator.required - node.attributes.keys()
    if lacking:
        raise ModelError(f"lacks the attribute {', '.join(sorted(lacking))}", where=label)
    keywords: dict[str, Any] = {
        operator.keywords[name]: _attribute(attribute)
        for name, attribute in node.attributes.items()
        if attribute.type != ir.AttributeType.GRAPH
    }
    if operator.counts_outputs:
        named = (i + 1 for i, value in enumerate(node.outputs) if value.name)
        keywords["n_outputs"] = max(named, default=0)
    return keywords


def _attribute(attribute: ir.Attr) -> Tensor | Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return to_tensor(attribute.as_tensor())
    return attribute.value
