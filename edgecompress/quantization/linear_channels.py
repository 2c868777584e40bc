"""Which entries of a node's constants make a channel of its output, or read one of its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.qdq_plan import label

__all__ = [
    "LAYERS",
    "Arrival",
    "Fold",
    "Labels",
    "Source",
    "Stop",
    "arrive",
    "input_channels",
    "is_norm",
    "output_axis",
    "source_of",
    "why_fixed",
]

Labels = npt.NDArray[np.int64]
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

# Where the factors of a normalization lie among its inputs; the shift is divided with them.
_NORMS = {
    "LayerNormalization": ("last", (1, 2)),
    "RMSNormalization": ("last", (1,)),
    "SimplifiedLayerNormalization": ("last", (1,)),
    "SkipLayerNormalization": ("last", (2, 3)),
    "SkipSimplifiedLayerNormalization": ("last", (2,)),
    "BatchNormalization": ("second", (1, 2)),
    "InstanceNormalization": ("second", (1, 2)),
}


class Stop(Exception):  # noqa: N818 - it ends a search and never reaches a user
    """Channels cannot be followed any further, and why."""


@dataclass(frozen=True, eq=False)
class Fold:
    """A constant that takes up the factors of channels.

    Attributes:
        node: What reads it.
        position: At which input.
        labels: Channel of each of its entries, broadcastable against it.
        times: Whether it is multiplied by the factors, not divided.
    """

    node: ir.Node
    position: int
    labels: Labels
    times: bool = False

    @property
    def value(self) -> ir.Value:
        """The constant."""
        value = self.node.inputs[self.position]
        assert value is not None  # a fold is made for an input that is there
        return value


@dataclass(frozen=True, eq=False)
class Arrival:
    """A layer that reads channels.

    Attributes:
        node: The layer.
        labels: int64 [inputs]: the channel that each of its input channels is.
        weight: Its weight, by input channel.
    """

    node: ir.Node
    labels: Labels
    weight: Fold


@dataclass(frozen=True, eq=False)
class Source:
    """A node whose constants can divide the channels of its output.

    Attributes:
        node: The node.
        labels: Of its first output.
        folds: Its constants.
        channels: How many there are.
    """

    node: ir.Node
    labels: Labels
    folds: tuple[Fold, ...]
    channels: int

    @property
    def is_layer(self) -> bool:
        """Whether it multiplies by a weight matrix."""
        return self.node.op_type in LAYERS


def why_fixed(value: ir.Value | None, *, alone: bool = False) -> str:
    """Why the numbers of a value cannot be changed, or an empty string.

    Args:
        value: Some input of a node.
        alone: Whether other readers are a reason.
    """
    if value is None or value.const_value is None:
        return "is computed at run time"
    if value.producer() is not None:
        return "is a Constant node (the pass 'cleanup' makes it an initializer)"
    if value.is_graph_input():
        return "may be overridden by an input (the pass 'cleanup' forbids that)"
    if value.const_value.dtype != ir.DataType.FLOAT:
        return f"is {value.const_value.dtype.name.lower()}, expected float"
    if alone and value.is_graph_output():
        return "is also an output of the model"
    if alone and len(value.uses()) > 1:
        others = [use.node for use in value.uses()]
        return f"is shared by {', '.join(sorted(label(node) for node in others))}"
    return ""


def arrive(node: ir.Node, labels: Labels) -> Arrival | None:
    """How a layer with a constant weight reads channels; None where it is none.

    Args:
        node: Any node.
        labels: Of its first input.

    Raises:
        Stop: The layer's weight cannot be changed, or the channels are not those that it reads.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None or node.domain not in DEFAULT_DOMAINS:
        return None
    axis = labels.ndim - 1 if node.op_type in ("Gemm", "MatMul") else 1
    if labels.size > labels.shape[axis] or _flag(node, "transA"):
        raise Stop(f"{node.op_type} {label(node)!r} reads them along another dimension")
    if fixed := why_fixed(weight, alone=True):
        raise Stop(f"the weight {weight.name!r} {fixed}")
    row, sizes = labels.reshape(-1), _sizes(weight)
    if node.op_type in ("Gemm", "MatMul") and len(sizes) != 2:
        raise Stop(f"{node.op_type} {label(node)!r} reads them along another dimension")
    return Arrival(node, row, Fold(node, 1, _read_by(node, sizes, row), times=True))


def source_of(node: ir.Node, rank: int) -> Source | None:
    """The channels that a node's constants make; None where it has no such constants.

    Args:
        node: Any node.
        rank: Dimensions of its first output.

    Raises:
        Stop: It has them, but they cannot be changed.
    """
    if node.op_type in LAYERS and node.domain in DEFAULT_DOMAINS:
        return _layer_source(node, rank)
    if node.op_type in _NORMS:
        return _norm_source(node, rank)
    if node.op_type == "Mul" and node.domain in DEFAULT_DOMAINS:
        return _factor_source(node, rank)
    return None


def is_norm(node: ir.Node | None) -> bool:
    """Whether a node normalizes the last dimension."""
    return node is not None and _NORMS.get(node.op_type, ("", ()))[0] == "last"


def input_channels(node: ir.Node) -> tuple[int, int]:
    """How many channels a layer reads, and the dimensions of its weight."""
    weight = node.inputs[1]
    assert weight is not None  # asked of layers with constant weights
    sizes = _sizes(weight)
    if node.op_type == "Conv":
        return sizes[1] * _groups(node), len(sizes)
    return sizes[1 if node.op_type == "Gemm" and _flag(node, "transB") else 0], len(sizes)


def output_axis(node: ir.Node) -> int:
    """Axis of a layer's weight that counts output channels."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _flag(node, "transB")):
        return 0
    return 1


def _layer_source(node: ir.Node, rank: int) -> Source | None:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    sizes = _sizes(weight)
    if node.op_type in ("Gemm", "MatMul") and len(sizes) != 2:
        return None
    if fixed := why_fixed(weight, alone=True):
        raise Stop(f"the weight {weight.name!r} {fixed}")
    made = _made_by(node, sizes)
    count = int(made.max()) + 1
    folds = [Fold(node, 1, made)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        fixed = why_fixed(bias)
        if fixed:
            raise Stop(f"the bias {bias.name!r} {fixed}")
        folds.append(Fold(node, 2, np.arange(count)))
    axis = rank - 1 if node.op_type in ("Gemm", "MatMul") else 1
    return Source(node, _along(axis, rank, count), tuple(folds), count)


def _norm_source(node: ir.Node, rank: int) -> Source | None:
    where, positions = _NORMS[node.op_type]
    axis = rank - 1 if where == "last" else 1
    normalized = node.attributes.get("axis")
    if normalized is not None and normalized.as_int() not in (-1, rank - 1):
        return None
    given = [p for p in positions if p < len(node.inputs) and node.inputs[p] is not None]
    values = [node.inputs[position] for position in given]
    if positions[0] not in given or any(v is None or v.const_value is None for v in values):
        return None
    for value in values:
        fixed = why_fixed(value)
        if fixed and value is not None:
            raise Stop(f"{value.name!r} {fixed}")
    sizes = [_sizes(value) for value in values if value is not None]
    if any(len(size) != 1 or size != sizes[0] for size in sizes):
        return None
    count = sizes[0][0]
    folds = tuple(Fold(node, position, np.arange(count)) for position in given)
    return Source(node, _along(axis, rank, count), folds, count)


def _factor_source(node: ir.Node, rank: int) -> Source | None:
    """A product with a constant for each channel, as exported normalizations end in."""
    for position, value in enumerate(node.inputs):
        if value is None or value.const_value is None or why_fixed(value):
            continue
        sizes = _sizes(value)
        wide = [axis for axis, size in enumerate(sizes) if size > 1]
        if len(wide) != 1 or len(sizes) > rank:
            return None
        count, axis = sizes[wide[0]], rank - len(sizes) + wide[0]
        labels = np.arange(count).reshape([-1 if a == wide[0] else 1 for a in range(len(sizes))])
        return Source(node, _along(axis, rank, count), (Fold(node, position, labels),), count)
    return None


def _along(axis: int, rank: int, count: int) -> Labels:
    return np.arange(count).reshape([-1 if a == axis else 1 for a in range(rank)])


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None  # asked before
    return tuple(int(size) for size in value.const_value.shape.numpy())


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.value)


def _groups(node: ir.Node) -> int:
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def _made_by(node: ir.Node, sizes: tuple[int, ...]) -> Labels:
    """Output channel of each entry of a weight."""
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not _flag(node, "transB")):
        return _along(1, 2, sizes[1])
    if node.op_type != "ConvTranspose":
        return _along(0, len(sizes), sizes[0])
    inputs, each = sizes[:2]
    group = np.arange(inputs) // (inputs // _groups(node))
    channels = group[:, None] * each + np.arange(each)
    return channels.reshape(inputs, each, *[1] * (len(sizes) - 2))


def _read_by(node: ir.Node, sizes: tuple[int, ...], row: Labels) -> Labels:
    """What each entry of a weight reads, where input channel j is ``row[j]``."""
    if node.op_type == "MatMul":
        return row[:, None]
    if node.op_type == "Gemm":
        return row[None, :] if _flag(node, "transB") else row[:, None]
    ones = [1] * (len(sizes) - 2)
    if node.op_type == "ConvTranspose":
        return row.reshape(-1, 1, *ones)
    outputs, each = sizes[:2]
    group = np.arange(outputs) // (outputs // _groups(node))
    channels = group[:, None] * each + np.arange(each)
    return np.asarray(row[channels]).reshape(outputs, each, *ones)
