"""How single operators move channels: labels of the output from those of the input.

See :mod:`edgecompress.quantization.channels` for what labels are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgecompress.qdq_plan import label
from edgecompress.quantization.linear_channels import Arrival, Fold, Labels, Stop, why_fixed

__all__ = ["PASSED", "RULES", "Here", "Route", "Shape", "Shapes", "refusal"]

Shape = tuple[int | str | None, ...]
"""Sizes, names of open dimensions, or None where nothing is known."""

Shapes = Mapping[ir.Value, Shape]


@dataclass
class Route:
    """All ways from a source.

    Attributes:
        layers: What reads the channels at the ends, in graph order.
        folds: Constants on the way that the channels are added to: they are divided with them.
        stop: Why the channels also reach something else; empty where they do not.
    """

    layers: list[Arrival] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    stop: str = ""


@dataclass(frozen=True)
class Here:
    """A node, and the labels of those of its inputs that carry channels."""

    node: ir.Node
    carried: Mapping[int, Labels]
    shapes: Shapes
    route: Route

    def only(self, *positions: int) -> Labels:
        """The labels of the one input that carries channels."""
        if len(self.carried) != 1 or next(iter(self.carried)) not in positions:
            raise Stop(f"it reaches {_told(self.node)} more than once")
        return next(iter(self.carried.values()))

    def shape(self, value: ir.Value | None) -> Shape:
        """The shape of a value."""
        found = None if value is None else self.shapes.get(value)
        if found is None:
            raise Stop(f"a shape at {_told(self.node)} is unknown")
        return found

    @property
    def output_shape(self) -> Shape:
        """The shape of the first output."""
        return self.shape(self.node.outputs[0])


def _told(node: ir.Node) -> str:
    return f"{node.op_type} {label(node)!r}"


def refusal(node: ir.Node) -> str:
    """Why channels cannot pass a node."""
    if node.op_type == "Clip":
        return f"{_told(node)} cuts at a number that scales do not move"
    if node.op_type in ("Add", "Sub", "Sum"):
        return f"it reaches the residual {_told(node)}"
    return f"it reaches {_told(node)}, which does not keep the scales of channels"


# ---------------------------------------------------------------- element by element


def _unchanged(here: Here) -> Labels:
    return here.only(0)


def _clipped(here: Here) -> Labels:
    """Only the Clip that is a Relu."""
    low, high = [*here.node.inputs[1:3], None, None][:2]
    at_zero = low is not None and low.const_value is not None and not low.const_value.numpy().any()
    if not at_zero or high is not None:
        raise Stop(refusal(here.node))
    return here.only(0)


def _times(here: Here) -> Labels:
    """Products and quotients with anything that does not carry the channels itself."""
    found = here.only(0) if here.node.op_type == "Div" else here.only(0, 1)
    return _widened(found, len(here.output_shape))


def _plus(here: Here) -> Labels:
    node, rank = here.node, len(here.output_shape)
    if len(here.carried) > 1:
        first, *others = (_widened(found, rank) for found in here.carried.values())
        if any(not _same(first, other) for other in others):
            raise Stop(f"it reaches {_told(node)} in two orders")
        return first
    ((position, found),) = here.carried.items()
    other = node.inputs[1 - position]
    if other is None or other.const_value is None:
        raise Stop(refusal(node))
    fixed = why_fixed(other)
    if fixed:
        raise Stop(f"{other.name!r} {fixed}")
    labels = _widened(found, rank)
    here.route.folds.append(Fold(node, 1 - position, _aligned(labels, other)))
    return labels


def _aligned(labels: Labels, constant: ir.Value) -> Labels:
    """Labels without the leading dimensions that a constant does not need."""
    assert constant.const_value is not None  # asked before
    needed = len(constant.const_value.shape)
    while labels.ndim > max(needed, 1) and labels.shape[0] == 1:
        labels = labels[0]
    return labels


def _widened(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _same(a: Labels, b: Labels) -> bool:
    return a.shape == b.shape and bool((a == b).all())


# ---------------------------------------------------------------- what moves entries


def _transposed(here: Here) -> Labels:
    labels = here.only(0)
    perm = here.node.attributes.get("perm")
    return labels.transpose(perm.as_ints() if perm is not None else None)


def _reshaped(here: Here) -> Labels:
    """Row-major order stays: what is equal at both ends stands for itself.

    Of the rest, the last ``n`` entries of a row become the last ``n`` entries.
    """
    labels = here.only(0)
    before, after = here.shape(here.node.inputs[0]), here.output_shape
    tail = _common(before[::-1], after[::-1])
    stop, new_stop = len(before) - tail, len(after) - tail
    head = _common(before[:stop], after[:new_stop])
    ends = labels.shape[:head], labels.shape[stop:]
    first = next((axis for axis in range(head, stop) if labels.shape[axis] > 1), stop)
    if first == stop:
        return labels.reshape(*ends[0], *(1,) * (new_stop - head), *ends[1])
    inner = _static(before[first:stop])
    for start in range(new_stop, head - 1, -1):
        new = _static(after[start:new_stop])
        if inner is not None and new is not None and math.prod(new) == math.prod(inner):
            whole = np.broadcast_to(labels, (*labels.shape[:first], *inner, *ends[1]))
            return _narrowed(whole.reshape(*ends[0], *(1,) * (start - head), *new, *ends[1]))
    raise Stop(f"{_told(here.node)} mixes channels with another dimension")


def _common(a: Shape, b: Shape) -> int:
    """How many dimensions are the same from the start."""
    count = 0
    for one, other in zip(a, b, strict=False):
        if one is None or one != other:
            break
        count += 1
    return count


def _static(shape: Shape) -> tuple[int, ...] | None:
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


def _narrowed(labels: Labels) -> Labels:
    """Size 1 along each axis on which labels do not differ."""
    for axis in range(labels.ndim):
        head = labels.take([0], axis)
        if bool((labels == head).all()):
            labels = head
    return labels


def _expanded(here: Here) -> Labels:
    return _widened(here.only(0), len(here.output_shape))


def _pooled(here: Here) -> Labels:
    """Pools, pads and resizes: of anything but the axes that carry channels."""
    labels = here.only(0)
    before, after = here.shape(here.node.inputs[0]), here.output_shape
    for axis, size in enumerate(labels.shape):
        if size > 1 and (axis > 1 or before[axis] != after[axis]):
            raise Stop(f"{_told(here.node)} mixes channels")
    return labels


def _padded(here: Here) -> Labels:
    mode = here.node.attributes.get("mode")
    fill = here.node.inputs[2] if len(here.node.inputs) > 2 else None
    if (mode is None or mode.value == "constant") and fill is not None:
        tensor = fill.const_value
        if tensor is None or np.any(tensor.numpy()):
            raise Stop(f"{_told(here.node)} fills in something else than zero")
    labels = here.only(0)
    if here.shape(here.node.inputs[0])[:2] != here.output_shape[:2]:
        raise Stop(f"{_told(here.node)} pads channels")
    if any(size > 1 for size in labels.shape[2:]):
        raise Stop(f"{_told(here.node)} mixes channels")
    return labels


def _reduced(here: Here) -> Labels:
    labels = here.only(0)
    after = here.output_shape
    if len(after) != labels.ndim:
        raise Stop(f"{_told(here.node)} drops dimensions")
    for axis, size in enumerate(labels.shape):
        if size > 1 and after[axis] != size:
            raise Stop(f"{_told(here.node)} mixes channels")
    return labels


def _joined(here: Here) -> Labels:
    attribute = here.node.attributes.get("axis")
    first, *others = here.carried.values()
    axis = 0 if attribute is None else attribute.as_int()
    if len(here.carried) < len(here.node.inputs) or any(not _same(first, o) for o in others):
        raise Stop(f"it reaches {_told(here.node)} beside other values")
    if first.shape[axis] > 1:
        raise Stop(f"{_told(here.node)} joins channels")
    return first


def _multiplied(here: Here) -> Labels:
    """A product of two activations keeps the channels that it does not sum over."""
    labels = here.only(0, 1)
    rank = len(here.output_shape)
    summed = -1 if 0 in here.carried else -2
    if labels.ndim < 2 or labels.ndim > rank or labels.shape[summed] > 1:
        raise Stop(f"{_told(here.node)} sums over the channels")
    return _widened(labels, rank)


_Rule = Callable[[Here], Labels]
RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Identity", "Relu", "LeakyRelu", "PRelu", "Abs", "Neg"), _unchanged),
    **dict.fromkeys(("Mul", "Div"), _times),
    **dict.fromkeys(("Add", "Sub"), _plus),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"), _pooled
    ),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduced),
    "Clip": _clipped,
    "Transpose": _transposed,
    "Expand": _expanded,
    "Pad": _padded,
    "Concat": _joined,
    "MatMul": _multiplied,
}

PASSED = frozenset(RULES)
"""Operators that channels can pass, most of them only in some forms."""
