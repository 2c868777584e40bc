"""Which operator translates each node of a slice, sub-graphs included."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgecompress.errors import UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import registry
from edgecompress.torchgraph.bodies import all_graphs
from edgecompress.torchgraph.constants import is_constant
from edgecompress.torchgraph.registry import Operator
from edgecompress.torchgraph.values import NARROW_TYPES

__all__ = ["find_operators"]


def find_operators(model: Model, nodes: Iterable[ir.Node]) -> dict[ir.Node, Operator]:
    """The translation of each node and of those in its sub-graphs; none for constants.

    Raises:
        UnsupportedOperatorError: Some have none; it names all of them.
    """
    found: dict[ir.Node, Operator] = {}
    missing: list[str] = []
    for outer in nodes:
        for node in (outer, *(inner for _, graph in all_graphs(outer) for inner in graph)):
            if is_constant(node):
                continue
            operator = _find(model, node)
            if isinstance(operator, Operator):
                found[node] = operator
            else:
                missing.append(operator)
    if missing:
        raise UnsupportedOperatorError(
            "operators without a torch translation",
            missing,
            where=str(model.path or "model"),
            cure="leave their nodes out of the slice, rewrite them in standard operators, "
            "or add a function for each in edgecompress/torchgraph",
        )
    return found


def _find(model: Model, node: ir.Node) -> Operator | str:
    """The translation of a node, or what is missing."""
    domain, opset = registry.domain_and_opset(node, model.ir.opset_imports)
    operator = registry.find(domain, node.op_type, opset)
    text = f"{domain or 'ai.onnx'}::{node.op_type} (opset {opset})"
    if operator is None:
        return text
    narrow = [] if operator.widens else _narrow_types(node)
    if narrow:
        return f"{text} of {', '.join(narrow)}"
    odd = [name for name in node.attributes if name not in operator.keywords]
    if odd:
        return f"{text} with attribute {', '.join(sorted(odd))}"
    return operator


def _narrow_types(node: ir.Node) -> list[str]:
    """Element types of its inputs that torch only holds in a wider type."""
    found = set()
    for value in node.inputs:
        if value is not None:
            tensor = value.const_value
            found.add(value.dtype if tensor is None else tensor.dtype)
    return sorted(dtype.name for dtype in found if dtype in NARROW_TYPES)
