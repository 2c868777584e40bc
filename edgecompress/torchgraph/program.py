"""A slice of a graph, read once: steps that call torch, and the constants they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import onnx_ir as ir
from torch import Tensor

from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.torchgraph import registry
from edgecompress.torchgraph.registry import Kernel, Operator
from edgecompress.torchgraph.values import NARROW_TYPES, to_tensor

__all__ = ["HOST_LIMIT", "Program", "Step", "read"]

HOST_LIMIT = 4096
"""Elements up to which an integer tensor may live on the host beside a module on a device."""

_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


class Step(NamedTuple):
    """One node, with its attributes parsed.

    Attributes:
        run: Inputs in, outputs out.
        inputs: Value names; "" where an optional input is absent.
        outputs: Value names; "" where nobody wants the output.
        host: Positions of inputs that may stay on the host.
        label: The node as errors name it.
    """

    run: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    host: frozenset[int]
    label: str


@dataclass
class Program:
    """Steps in order, the names at their borders, and the constants sorted by their role.

    Attributes:
        parameters: Float initializers of rank >= 1 that some node uses as a weight.
        buffers: Constants that follow the module to its device.
        host: Constants that stay on the host: scalars, small integers, shapes and axes.
    """

    steps: list[Step]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    host: dict[str, Tensor]


def read(model: Model, nodes: Sequence[ir.Node] | None) -> Program:
    """Translate the nodes of a slice (None: of the whole graph).

    Raises:
        UnsupportedOperatorError: Operators, or attributes of theirs, without a translation.
        ModelError: A required attribute is missing, or a constant's type is unknown to torch.
    """
    graph = model.ir.graph
    chosen = list(graph) if nodes is None else list(nodes)
    running = [node for node in chosen if not _is_constant(node)]
    operators = _find_operators(model, running)
    produced = {value for node in running for value in node.outputs}
    constants: dict[str, tuple[ir.Value, list[_Use]]] = {}
    inputs: dict[str, None] = {}
    for node, operator in zip(running, operators, strict=True):
        for index, value in enumerate(node.inputs):
            if value is None or value in produced:
                continue
            if _is_fixed(value):
                uses = constants.setdefault(_name(value), (value, []))[1]
                uses.append(_Use(node, operator, index))
            else:
                inputs.setdefault(_name(value))
    returned = _border(graph, chosen, whole=nodes is None)
    for value in returned:
        if value in produced:
            continue
        if _is_fixed(value):
            constants.setdefault(_name(value), (value, []))
        else:
            inputs.setdefault(_name(value))
    program = Program(
        steps=[_step(n, o) for n, o in zip(running, operators, strict=True)],
        inputs=_graph_inputs(graph) if nodes is None else tuple(inputs),
        outputs=tuple(_name(value) for value in returned),
        parameters={},
        buffers={},
        host={},
    )
    for name, (value, uses) in constants.items():
        _place_constant(program, name, value, uses)
    return program


class _Use(NamedTuple):
    node: ir.Node
    operator: Operator
    position: int


def _name(value: ir.Value) -> str:
    if not value.name:
        raise ModelError("a value of the graph has no name", cure="save and load the model first")
    return value.name


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS


def _is_fixed(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is not None:
        return _is_constant(producer)
    return value.const_value is not None


def _graph_inputs(graph: ir.Graph) -> tuple[str, ...]:
    return tuple(_name(v) for v in graph.inputs if v.name not in graph.initializers)


def _border(graph: ir.Graph, chosen: list[ir.Node], *, whole: bool) -> list[ir.Value]:
    """Values that somebody outside of the slice wants."""
    if whole:
        return list(graph.outputs)
    inside = set(chosen)
    wanted = set(graph.outputs)
    return [
        value
        for node in chosen
        if not _is_constant(node)
        for value in node.outputs
        if value in wanted or any(use.node not in inside for use in value.uses())
    ]


def _find_operators(model: Model, nodes: list[ir.Node]) -> list[Operator]:
    """The translation of each node, or one error that names all that have none."""
    found: list[Operator] = []
    missing: list[str] = []
    for node in nodes:
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        opset = model.opset if domain == "" else model.ir.opset_imports.get(domain, 1)
        operator = registry.find(domain, node.op_type, opset)
        text = f"{domain or 'ai.onnx'}::{node.op_type} (opset {opset})"
        if operator is None or (domain == "" and opset > registry.NEWEST_OPSET):
            missing.append(text)
            continue
        narrow = [] if operator.widens else _narrow_types(node)
        if narrow:
            missing.append(f"{text} of {', '.join(narrow)}")
            continue
        odd = [name for name in node.attributes if name not in operator.keywords]
        if odd:
            missing.append(f"{text} with attribute {', '.join(sorted(odd))}")
            continue
        found.append(operator)
    if missing:
        raise UnsupportedOperatorError(
            "operators without a torch translation",
            missing,
            where=str(model.path or "model"),
            cure="leave their nodes out of the slice, rewrite them in standard operators, "
            "or add a function for each in edgecompress/torchgraph",
        )
    return found


def _narrow_types(node: ir.Node) -> list[str]:
    """Element types of its inputs that torch only holds in a wider type."""
    found = set()
    for value in node.inputs:
        if value is not None:
            tensor = value.const_value
            found.add(value.dtype if tensor is None else tensor.dtype)
    return sorted(dtype.name for dtype in found if dtype in NARROW_TYPES)


def _step(node: ir.Node, operator: Operator) -> Step:
    label = f"{node.op_type} node {node.name or node.outputs[0].name!r}"
    lacking = operator.required - node.attributes.keys()
    if lacking:
        raise ModelError(f"lacks the attribute {', '.join(sorted(lacking))}", where=label)
    keywords: dict[str, Any] = {
        operator.keywords[name]: _attribute(attribute)
        for name, attribute in node.attributes.items()
    }
    if operator.counts_outputs:
        named = (i + 1 for i, value in enumerate(node.outputs) if value.name)
        keywords["n_outputs"] = max(named, default=0)
    return Step(
        run=partial(operator.function, **keywords) if keywords else operator.function,
        inputs=tuple("" if value is None else _name(value) for value in node.inputs),
        outputs=tuple(value.name or "" for value in node.outputs),
        host=operator.host,
        label=label,
    )


def _attribute(attribute: ir.Attr) -> Any:
    if attribute.type == ir.AttributeType.TENSOR:
        return to_tensor(attribute.as_tensor())
    return attribute.value


def _place_constant(program: Program, name: str, value: ir.Value, uses: list[_Use]) -> None:
    tensor = _constant(value)
    real = [use for use in uses if use.position not in use.operator.host]
    trained = any(use.position not in use.operator.statistics for use in real)
    is_float = tensor.dtype in _FLOATS
    rank = len(tensor.shape)
    if is_float and rank > 0 and trained and value.is_initializer():
        program.parameters[name] = to_tensor(tensor, copy=True)
    elif rank == 0 or not real or (not is_float and tensor.size <= HOST_LIMIT):
        program.host[name] = to_tensor(tensor)
    else:
        program.buffers[name] = to_tensor(tensor)


def _constant(value: ir.Value) -> ir.TensorProtocol:
    producer = value.producer()
    if producer is None:
        if value.const_value is None:
            raise ModelError(f"initializer {value.name!r} has no values")
        return value.const_value
    attributes = producer.attributes
    if "value" in attributes:
        return attributes["value"].as_tensor()
    for name, dtype in _CONSTANT_FORMS.items():
        if name in attributes:
            return ir.tensor(attributes[name].value, dtype=dtype)
    raise UnsupportedOperatorError(
        "operators without a torch translation",
        [f"ai.onnx::Constant with attribute {', '.join(attributes)}"],
        where=f"constant {value.name!r}",
        cure="store it as a dense tensor of numbers",
    )


_CONSTANT_FORMS = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}
