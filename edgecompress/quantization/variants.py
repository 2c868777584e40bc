"""One node of a graph as it is in a compressed graph, to be run on float inputs.

A variant is the whole model in one format, made by the pass that would write it. So what is judged
here is what would be delivered: the same ranges, rounding and layout.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.costs import int_attribute
from edgecompress.graph_pass import Applied
from edgecompress.model import Model
from edgecompress.qdq_plan import label
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.blocks import slice_between
from edgecompress.walk.liveness import reads

__all__ = ["Candidate", "Part", "candidates"]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Candidate:
    """A node that may have several formats.

    Attributes:
        node: Name, for people.
        op: Operator.
        output: Its first output, which identifies it.
        weights: Names of its float initializers of two dimensions or more.
        macs: Multiply-accumulates with them for one element of its output; 0 where it has none.
        parts: Format -> the node in it.
        bytes_float: Of its weights and bias in float.
        bytes: Format -> of its weights, bias and scales.
    """

    node: str
    op: str
    output: str
    weights: tuple[str, ...]
    macs: float
    parts: Mapping[str, Part]
    bytes_float: int
    bytes: Mapping[str, int]

    @property
    def reads(self) -> frozenset[str]:
        """Values of the float graph that its parts need."""
        return frozenset(name for part in self.parts.values() for name in part.inputs)


@dataclass(frozen=True)
class Part:
    """The nodes of a variant that stand for one node of the float graph.

    Attributes:
        model: The variant.
        nodes: In topological order.
        inputs: Values of the float graph that they read.
        stands_for: The node's output in the float graph, or where the variant has none such (a
            kernel took in the bias that follows), the next value that it has.
        output: The variant's value in its place.
    """

    model: Model
    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    stands_for: str
    output: str

    def module(self, device: str = "cpu") -> TorchGraph:
        """The part as a module of its own, without gradients."""
        made = to_torch(self.model, self.nodes, outputs=[self.output], device=device)
        return made.requires_grad_(False)

    def run(self, module: TorchGraph, values: Mapping[str, Tensor]) -> Tensor:
        """Its output on float values."""
        with torch.no_grad():
            found: Tensor = module({name: values[name] for name in self.inputs})[self.output]
        return found


def candidates(model: Model, variants: Mapping[str, Applied]) -> list[Candidate]:
    """Nodes that some variant has in another format, in graph order.

    Args:
        model: The float graph.
        variants: Format -> what the pass that writes it returned for the whole model.
    """
    changed = {
        format_: {change.node: change for change in applied.changed}
        for format_, applied in variants.items()
    }
    names = {label(node) for node in model.ir.graph}
    seen = {format_: _Variant(applied.model, names) for format_, applied in variants.items()}
    known = {v.name or "" for v in model.ir.graph.inputs}
    known |= {v.name or "" for node in model.ir.graph for v in node.outputs}
    found = []
    for node in model.ir.graph:
        name = label(node)
        listed = [f for f in variants if name in changed[f]]
        parts = {}
        for format_ in listed:
            part = seen[format_].part(node, known, changed[format_].keys())
            if part is not None:
                parts[format_] = part
        if parts:
            changes = {f: changed[f][name] for f in parts}
            found.append(
                Candidate(
                    node=name,
                    op=node.op_type,
                    output=node.outputs[0].name or "",
                    weights=_weights(node),
                    macs=_macs(node),
                    parts=parts,
                    bytes_float=(whole := max(c.bytes_before for c in changes.values())),
                    # A pass that leaves the bias alone does not count it.
                    bytes={f: whole - c.bytes_before + c.bytes_after for f, c in changes.items()},
                )
            )
    return found


def _weights(node: ir.Node) -> tuple[str, ...]:
    """Float matrices and kernels that a node reads."""
    return tuple(
        value.name or ""
        for value in node.inputs
        if value is not None
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and len(value.const_value.shape) > 1
    )


def _macs(node: ir.Node) -> float:
    """Multiply-accumulates behind each element of a layer's output."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type not in _LAYERS or weight is None or weight.const_value is None:
        return 0.0
    shape = weight.const_value.shape.numpy()
    if node.op_type == "MatMul":
        return float(shape[-2] if len(shape) > 1 else shape[0])
    if node.op_type == "Gemm":
        return float(shape[1 if int_attribute(node, "transB") else 0])
    if node.op_type == "Conv":
        return float(math.prod(shape[1:]))
    strides = node.attributes.get("strides")
    return shape[0] * math.prod(shape[2:]) / math.prod(strides.as_ints() if strides else (1,))


class _Variant:
    def __init__(self, model: Model, float_nodes: Collection[str]) -> None:
        self._model = model
        self._float_nodes = float_nodes
        self._values = {v.name: v for node in model.ir.graph for v in node.outputs}

    def part(self, node: ir.Node, known: Collection[str], changed: Collection[str]) -> Part | None:
        """The nodes that compute what stands for the output of ``node``, from float values."""
        passed = [node.outputs[0]]
        while (value := self._values.get(passed[-1].name)) is None:
            uses = list(passed[-1].uses())
            if len(uses) != 1 or uses[0].node.op_type != "Add":
                return None
            passed.append(uses[0].node.outputs[0])
        value = self._behind_own_pair(value, changed)
        given = set(known).difference(each.name or "" for each in passed)
        nodes = slice_between(self._model.ir.graph, given, [value.name or ""])
        if not nodes:
            return None
        made = {each for inner in nodes for each in inner.outputs}
        outside = dict.fromkeys(
            each.name or ""
            for inner in nodes
            for each in reads(inner)
            if each not in made and each.const_value is None
        )
        if not set(known).issuperset(outside):
            return None
        return Part(self._model, nodes, tuple(outside), passed[-1].name or "", value.name or "")

    def _behind_own_pair(self, value: ir.Value, changed: Collection[str]) -> ir.Value:
        """Past a Q/DQ pair that nobody else answers for.

        What is quantized for a reader counts there, as an error of the reader's input.
        """
        follower = _only_reader(value, "QuantizeLinear")
        behind = None if follower is None else _only_reader(follower.outputs[0], "DequantizeLinear")
        if behind is None:
            return value
        return value if self._has_reader(behind, changed) else behind.outputs[0]

    def _has_reader(self, pair: ir.Node, changed: Collection[str]) -> bool:
        """Whether a changed node reads behind a pair, perhaps through nodes that move integers."""
        stack = list(pair.outputs)
        while stack:
            for use in stack.pop().uses():
                node = use.node
                if label(node) in changed:
                    return True
                moves = any(_shares_scale(pair, after) for after in _readers(node.outputs[0]))
                if label(node) not in self._float_nodes or moves:
                    stack.extend(node.outputs)
        return False


def _readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def _only_reader(value: ir.Value, op: str) -> ir.Node | None:
    nodes = _readers(value)
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == op else None


def _shares_scale(before: ir.Node, after: ir.Node) -> bool:
    """Whether a QuantizeLinear has the scale of a DequantizeLinear."""
    if after.op_type != "QuantizeLinear":
        return False
    mine, theirs = (
        None if v is None else v.const_value for v in (before.inputs[1], after.inputs[1])
    )
    return mine is not None and theirs is not None and np.array_equal(mine.numpy(), theirs.numpy())
