"""Where each node of a model runs, from what onnxruntime says: its optimized graph and assignment.

Nodes carry tags as names (see :mod:`edgecompress.runtimes._fusion`), so kernels can be traced back.
What has no kernel of its own was absorbed by a kernel whose inputs and outputs lie around it, was
computed before the first run, or was left out; each node of the model is one of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.runtimes import Break, PlacedNode, Placement, RuntimeNode
from edgecompress.runtimes._fusion import OptimizedGraph, tag_of
from edgecompress.runtimes._mends import CPU, integer_break, provider_break

__all__ = ["NOWHERE", "Said", "constant_nodes", "place"]

NOWHERE = ""
"""``PlacedNode.runs_on`` of nodes that no kernel stands for at run time."""

_CONSTANT = "computed when the model is loaded"
_REMOVED = "left out"
_WITHIN = "in "
_IDLE = frozenset({"Identity", "Dropout"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Said:
    """What the runtime said of a tagged model.

    Attributes:
        assigned: Provider and number of the piece, by the runtime's name of the node.
        optimized: The optimized graph; None where the provider compiled it into its own form.
        reasons: Why a provider did not take a node, by tag, as far as the runtime tells.
        kernels: Where there is no optimized graph: the provider's operator for a node, and whether
            it reads integers, by the runtime's name of the node.
        compiled: Whether the provider takes whole pieces of the graph rather than single nodes.
    """

    assigned: Mapping[str, tuple[str, int]]
    optimized: OptimizedGraph | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    compiled: bool = False


@dataclass
class _Found:
    """What became of one node."""

    runs_on: str
    kernel: str
    integer: bool | None = None
    piece: int | None = None


def place(
    model: Model,
    said: Said,
    accelerator: str,
    *,
    source: str,
    note: str | None = None,
    signed_int8: bool = True,
) -> Placement:
    """Account for every node of the main graph.

    Args:
        model: The model before :func:`edgecompress.runtimes._fusion.tag_nodes`.
        said: What the runtime said of it with tags.
        accelerator: The provider that is wanted.
        source: What told so; passed on.
        note: Passed on.
        signed_int8: Whether the CPU provider fuses signed activations, as it does on ARM.
    """
    nodes = list(model.ir.graph)
    found = _Trace(nodes, said).found()
    pieces = _pieces(nodes, found, accelerator, said)
    placed = tuple(
        PlacedNode(_label(node), node.op_type, each.runs_on, each.kernel, each.integer, piece)
        for node, each, piece in zip(nodes, found, pieces, strict=True)
    )
    breaks = []
    for node, each, index in zip(nodes, found, range(len(nodes)), strict=True):
        why = None
        if each.kernel.startswith(_WITHIN):
            continue  # the node whose kernel it is in tells
        if each.runs_on not in (accelerator, NOWHERE):
            reason = said.reasons.get(tag_of(index))
            why = provider_break(node, accelerator, each.runs_on, reason)
        elif each.integer is False:
            why = integer_break(node, each.kernel, each.runs_on, signed=signed_int8)
        if why is not None:
            breaks.append(Break(_label(node), node.op_type, *why))
    count = len({piece for piece in pieces if piece is not None})
    return Placement(placed, accelerator, count, tuple(breaks), source, note)


def _label(node: ir.Node) -> str:
    return node.name or next((v.name for v in node.outputs if v.name), "")


class _Trace:
    """Looks for the kernel of each node."""

    def __init__(self, nodes: Sequence[ir.Node], said: Said) -> None:
        self._nodes = nodes
        self._said = said
        self._index = {id(node): place for place, node in enumerate(nodes)}
        self._constants = constant_nodes(nodes)
        self._producers = {
            v.name: i for i, node in enumerate(nodes) for v in node.outputs if v.name
        }
        self._found: list[_Found | None] = [None] * len(nodes)
        optimized = said.optimized
        self._kernels = _as_kernels(nodes, said) if optimized is None else optimized.nodes
        self._initializers = set() if optimized is None else optimized.initializers
        self._named = {_tag_in(name): kernel for name, kernel in said.kernels.items()}
        self._providers = {
            _tag_in(name): where for name, where in said.assigned.items() if _tag_in(name)
        }

    def found(self) -> list[_Found]:
        """What became of each node, in their order."""
        made = {output for kernel in self._kernels for output in kernel.outputs}
        for kernel in self._kernels:
            self._own(kernel)
        for kernel in self._kernels:
            self._cone(kernel, made)
        return [
            self._gone(node) if each is None else each
            for node, each in zip(self._nodes, self._found, strict=True)
        ]

    def _own(self, kernel: RuntimeNode) -> None:
        index = _index_in(kernel.name)
        if index is None or index >= len(self._nodes):
            return
        before = self._found[index]
        now = self._of(kernel, kernel.op_type, index)
        if now.runs_on != CPU and (named := self._named.get(tag_of(index))):
            now.kernel, now.integer = named
        if before is not None and before.kernel != now.kernel:
            now.kernel = f"{before.kernel}, {now.kernel}"
            now.integer = before.integer if before.integer == now.integer else False
        self._found[index] = now

    def _of(self, kernel: RuntimeNode, what: str, index: int) -> _Found:
        # A fused kernel has a name of its own; then what it stands for tells the provider.
        tag = _tag_in(kernel.name) or tag_of(index)
        provider, piece = self._providers.get(tag, (kernel.provider or CPU, None))
        return _Found(provider, what, self._integer(kernel), piece)

    def _integer(self, kernel: RuntimeNode) -> bool | None:
        optimized = self._said.optimized
        if optimized is None or kernel.op_type in _QUANTIZERS:
            return None
        return optimized.is_integer(kernel)

    def _cone(self, kernel: RuntimeNode, made: set[str]) -> None:
        """Give a kernel the nodes between its outputs and what other kernels made."""
        within = kernel.op_type
        own = _index_in(kernel.name)
        if own is not None and own < len(self._nodes):
            within = f"{_WITHIN}{kernel.op_type} of {_label(self._nodes[own])}"
            made_here = [v.name for v in self._nodes[own].outputs if v.name]
        else:
            made_here = []
        pending = [*kernel.outputs, *made_here]
        seen = set()
        first = True
        while pending:
            value = pending.pop(0)
            index = self._producers.get(value)
            if index is None or index in seen or value in self._initializers:
                continue
            seen.add(index)
            op = self._nodes[index].op_type
            if self._found[index] is None and index in self._constants and op not in _QUANTIZERS:
                continue
            if op in _IDLE:
                pass
            elif self._found[index] is None:
                # A kernel without a tag stands for the node that makes its output.
                what = kernel.op_type if own is None and first else within
                if own is None and not first:
                    what = f"{_WITHIN}{kernel.op_type}"
                self._found[index] = self._of(kernel, what, index)
            elif index != own:
                continue
            first = False
            inputs = [v.name for v in self._nodes[index].inputs if v is not None and v.name]
            pending += [name for name in inputs if name not in made]

    def _gone(self, node: ir.Node) -> _Found:
        folded = any(v.name in self._initializers for v in node.outputs)
        constant = folded or self._index[id(node)] in self._constants
        return _Found(NOWHERE, _CONSTANT if constant else _REMOVED)


def _as_kernels(nodes: Sequence[ir.Node], said: Said) -> tuple[RuntimeNode, ...]:
    """The assigned nodes as kernels of their own, where there is no optimized graph."""
    tags = {_tag_in(name) for name in said.assigned}
    return tuple(
        RuntimeNode(
            node.op_type,
            node.domain,
            tag_of(index),
            tuple(v.name or "" if v is not None else "" for v in node.inputs),
            tuple(v.name or "" for v in node.outputs),
            None,
        )
        for index, node in enumerate(nodes)
        if tag_of(index) in tags
    )


def _tag_in(name: str) -> str:
    return name[: name.find(">") + 1] if name.startswith("<") else ""


def _index_in(name: str) -> int | None:
    digits = _tag_in(name)[1:-1]
    return int(digits) if digits.isdigit() else None


def constant_nodes(nodes: Sequence[ir.Node]) -> set[int]:
    """Places of nodes whose outputs depend on no input of the model."""
    known: set[str | None] = set()
    places = set()
    for place, node in enumerate(nodes):  # in topological order
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in ("Shape", "Size"):
            constant = all(v.shape is not None and v.shape.is_static() for v in inputs)
        else:
            constant = all(v.is_initializer() or v.name in known for v in inputs)
        if constant:
            known.update(value.name for value in node.outputs)
            places.add(place)
    return places


def _pieces(
    nodes: Sequence[ir.Node], found: Sequence[_Found], accelerator: str, said: Said
) -> list[int | None]:
    """Number of the piece of each node on the accelerator, from 0 in topological order.

    Providers that compile say it themselves. For others, a piece is what can run without leaving
    the accelerator: nodes with the same number of changes of provider before them.
    """
    raw: list[object] = [each.piece for each in found]
    if not said.compiled:
        raw = list(_changes_before(nodes, found))
    numbers: dict[object, int] = {}
    return [
        numbers.setdefault(piece, len(numbers)) if each.runs_on == accelerator else None
        for each, piece in zip(found, raw, strict=True)
    ]


def _changes_before(nodes: Sequence[ir.Node], found: Sequence[_Found]) -> Iterator[int]:
    """Largest number of changes of provider on a way from an input to each node."""
    states: dict[str | None, tuple[int, str]] = {}
    for node, each in zip(nodes, found, strict=True):
        before = [states[v.name] for v in node.inputs if v is not None and v.name in states]
        if each.runs_on == NOWHERE:
            state = max(before, default=(0, NOWHERE))
        else:
            count = max((n + (p not in (each.runs_on, NOWHERE)) for n, p in before), default=0)
            state = (count, each.runs_on)
        states.update({value.name: state for value in node.outputs})
        yield state[0]
