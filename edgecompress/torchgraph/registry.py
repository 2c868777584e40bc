"""The table of ONNX operators that have a torch translation.

An operator is one function: the node's inputs are its positional arguments (None where one is
absent), the node's attributes its keyword arguments, under their ONNX names (with ``_`` behind a
name that is a Python builtin) and with the defaults of the specification. It returns a tensor, or
a tuple where the operator has several outputs. A function that must know how many outputs the
node has, up to the last one that is named, takes ``n_outputs``.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir
from torch import Tensor

from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.subgraphs import subgraphs

__all__ = [
    "NEWEST_OPSET",
    "Kernel",
    "Operator",
    "domain_and_opset",
    "find",
    "has_translation",
    "is_supported",
    "op",
    "supported_operators",
]

# The functions follow the specification up to this opset of the standard domain.
NEWEST_OPSET = 28

Kernel = Callable[..., Tensor | tuple[Tensor, ...]]
_K = TypeVar("_K", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operator:
    """One version of an operator.

    Attributes:
        function: Its torch translation.
        keywords: ONNX attribute name -> keyword of the function.
        required: Attributes without a default.
        host: Positions of inputs that are read as numbers on the host (shapes, axes, bounds).
        statistics: Positions of inputs that are running statistics, not weights to be trained.
        counts_outputs: Whether the function takes ``n_outputs``.
        widens: Whether it reads 4-bit inputs, which arrive as 8-bit tensors.
    """

    function: Kernel
    keywords: Mapping[str, str]
    required: frozenset[str]
    host: frozenset[int]
    statistics: frozenset[int]
    counts_outputs: bool
    widens: bool


_OPERATORS: defaultdict[tuple[str, str], dict[int, Operator]] = defaultdict(dict)


def op(
    name: str,
    since: int,
    *,
    domain: str = "",
    host: Collection[int] = (),
    statistics: Collection[int] = (),
    widens: bool = False,
) -> Callable[[_K], _K]:
    """Register a function as the translation of ``domain::name`` from opset ``since`` on.

    The newest version that is not newer than the graph's opset is used. The other arguments are
    described at :class:`Operator`.
    """

    def register(function: _K) -> _K:
        keywords: dict[str, str] = {}
        required: set[str] = set()
        counts_outputs = False
        for parameter in _parameters(function):
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if parameter.name == "n_outputs":
                counts_outputs = True
                continue
            attribute = parameter.name.removesuffix("_")
            keywords[attribute] = parameter.name
            if parameter.default is inspect.Parameter.empty:
                required.add(attribute)
        _OPERATORS[domain, name][since] = Operator(
            function,
            keywords,
            frozenset(required),
            frozenset(host),
            frozenset(statistics),
            counts_outputs,
            widens,
        )
        return function

    return register


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # torch's own functions are registered as they are: no attributes
        return []


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The translation that holds for an operator at an opset, if there is one."""
    if domain == "" and opset > NEWEST_OPSET:
        return None
    versions = _OPERATORS.get((domain, name), {})
    since = max((version for version in versions if version <= opset), default=None)
    return None if since is None else versions[since]


def domain_and_opset(node: ir.Node, opsets: Mapping[str, int]) -> tuple[str, int]:
    """Where an operator is looked up: "" is the standard domain, under either of its names.

    Args:
        node: Of the main graph or of a sub-graph.
        opsets: Domain -> version, as the model imports them.
    """
    if node.domain in DEFAULT_DOMAINS:
        return "", opsets.get("", opsets.get("ai.onnx", 1))
    return node.domain, opsets.get(node.domain, 1)


def has_translation(node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """As :func:`is_supported`, but for the node alone."""
    domain, opset = domain_and_opset(node, opsets)
    return (domain, node.op_type) == ("", "Constant") or find(
        domain, node.op_type, opset
    ) is not None


def is_supported(node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """Whether a node, and every node of its sub-graphs, has a translation.

    Its attributes and element types are looked at only when it is translated.

    Args:
        node: Of the main graph or of a sub-graph.
        opsets: Domain -> version, as the model imports them.
    """
    return has_translation(node, opsets) and all(
        is_supported(inner, opsets) for graph in subgraphs(node) for inner in graph
    )


def supported_operators() -> dict[tuple[str, str], tuple[int, ...]]:
    """(domain, operator) -> the opsets since which a translation of its own holds, ascending."""
    return {key: tuple(sorted(versions)) for key, versions in sorted(_OPERATORS.items())}
