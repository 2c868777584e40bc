"""Which nodes compute in 16-bit floating point, and which stay float32 and why.

Float32 stays what has no 16-bit kernel, what the recipe leaves out, and what 16 bits cannot hold:

- *Large*: a constant, or with data a measured activation, past the largest finite number, and what
  is computed from it until something bounds it (Softmax, Sigmoid, Clip ...). A constant that only
  masks a Softmax is no such case: half the largest number masks as well.
- *Counted*: what is computed from integers alone (positions, angles, lengths of masks). Integers
  past 2,048 are not exact in float16.
- *Sums and squares* (means, norms, powers, exponentials): they overflow or lose small addends,
  unless the data show that their inputs and outputs keep well inside the range. The list is that
  of PyTorch's automatic mixed precision, as far as ONNX has the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgecompress.constraints import HalfFormat
from edgecompress.graph_pass import Skip
from edgecompress.model import Model
from edgecompress.numerics.half import half_limit
from edgecompress.qdq_plan import label
from edgecompress.quantization.editing import body_graphs
from edgecompress.quantization.half_types import HalfPlaces, half_places, is_float
from edgecompress.quantization.half_weights import QUANTIZERS, constant_problem
from edgecompress.statistics import TensorStatistics

__all__ = ["CUTTING", "HalfPlan", "plan_half", "watchable"]

_SENSITIVE = frozenset(
    {
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "CumSum", "Pow", "Exp", "Log", "Reciprocal"),
        *("Softplus", "LpNormalization", "GroupNormalization", "InstanceNormalization"),
        *("Sin", "Cos", "Tan", "Sinh", "Cosh", "Asin", "Acos"),
    }
)
_BOUNDED = frozenset(
    {"Softmax", "Sigmoid", "HardSigmoid", "Tanh", "Sin", "Cos", "Erf", "Softsign", "Sign"}
)
# Operators that are cheap: one between float32 values stays there, which saves two Casts.
_CHEAP = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Sqrt", "Neg", "Abs", "Max", "Min", "Clip", "Where", "Relu"),
        *("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Concat", "Slice"),
        *("Gather", "Split", "Identity", "Floor", "Ceil", "Round", "Equal", "Less", "Greater"),
        *("LessOrEqual", "GreaterOrEqual", "Cast", "Sigmoid", "Tanh", "Tile", "Pad"),
    }
)
# What a mask goes through on its way to the Softmax.
_MASKING = frozenset(
    {
        *("Where", "Mul", "Add", "Sub", "Cast", "Reshape", "Transpose", "Unsqueeze", "Squeeze"),
        *("Expand", "Concat", "Slice", "Gather", "Identity", "Tile", "Trilu", "Flatten"),
    }
)
CUTTING = frozenset({"Clip", "Max", "Min"})
"""Operators that cut their input at a constant: in 16 bits it may as well end with the range."""
_ROOM = 2.0
"""Rows that were not measured may reach further than those that were."""
_LEAST_RMS = 2.0**-10
"""Smaller numbers have fewer digits in float16 from 2^-14 on; most lie well below the mean."""


@dataclass
class HalfPlan:
    """What becomes of each node.

    Attributes:
        places: Nodes that compute in 16 bits.
        cut: Constants past the range that may be cut to the given absolute value.
        skipped: Nodes with float32 numbers that stay, and why.
    """

    places: dict[ir.Node, HalfPlaces] = field(default_factory=dict)
    cut: dict[ir.Value, float] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)


def plan_half(
    model: Model,
    half: HalfFormat,
    wanted: Callable[[ir.Node], bool],
    measured: Mapping[str, TensorStatistics] | None = None,
) -> HalfPlan:
    """Decide for each node.

    Args:
        model: Its values have types.
        half: The 16-bit type, and what the target has no kernels for.
        wanted: Whether a node may compute in 16 bits, as far as the recipe says.
        measured: Statistics of values of the main graph; None where there are no data.
    """
    planner = _Planner(model, half, wanted, measured or {})
    for graph in body_graphs(model):
        planner.take(graph)
    return planner.plan


def watchable(model: Model, half: HalfFormat) -> list[str]:
    """Float32 values of the main graph whose range decides, and can be measured.

    What comes from masks cannot: it may be infinite.
    """
    planner = _Planner(model, half, lambda _: True, {})
    names = []
    for node in model.ir.graph:
        planner.see(node)
        for value in node.outputs:
            if is_float(value) and value not in planner.masked and value not in planner.counted:
                names.append(value.name or "")
    return names


class _Planner:
    def __init__(
        self,
        model: Model,
        half: HalfFormat,
        wanted: Callable[[ir.Node], bool],
        measured: Mapping[str, TensorStatistics],
    ) -> None:
        self.plan = HalfPlan()
        self.counted: set[ir.Value] = set()
        self.masked: set[ir.Value] = set()
        self._large: set[ir.Value] = set()
        self._kept: set[ir.Value] = set()  # float32 values of nodes that stay
        self._half, self._wanted, self._measured = half, wanted, measured
        self._opset = model.opset
        self._limit = half_limit(half.dtype)
        self._problems: dict[ir.Value, str] = {}

    def take(self, graph: ir.Graph) -> None:
        for node in graph:
            if not any(is_float(v) for v in (*node.inputs, *node.outputs)):
                self.see(node)
                continue
            reason = self._reason(node)
            places = half_places(node, self._opset, self._half.dtype)
            self.see(node)
            if reason or isinstance(places, str):
                why = reason or str(places)
                self._kept.update(node.outputs)
                self.plan.skipped.append(Skip(label(node), node.op_type, f"{why}: float32"))
            else:
                self.plan.places[node] = places

    def see(self, node: ir.Node) -> None:
        """Follow what is counted, masked or too large through a node."""
        changing = [v for v in node.inputs if v is not None and not _is_constant(v)]
        floats = [v for v in changing if is_float(v)]
        from_integers = not floats and node.op_type in ("Cast", "Range")
        counted = from_integers or (bool(floats) and all(v in self.counted for v in floats))
        if counted and node.op_type not in _BOUNDED:
            self.counted.update(v for v in node.outputs if is_float(v))
        read = [v for v in node.inputs if v is not None]
        if node.op_type in _BOUNDED or node.op_type in CUTTING:
            return
        if any(v in self.masked or self._is_mask(v) for v in read):
            self.masked.update(node.outputs)
        if any(v in self._large for v in changing) or any(self._too_large(v) for v in read):
            self._large.update(v for v in node.outputs if is_float(v))

    def _reason(self, node: ir.Node) -> str:
        if not self._wanted(node):
            return "left out by the recipe"
        if node.op_type in QUANTIZERS:
            return "it stands between integers and float32"
        if node.op_type in self._half.float32_ops:
            return f"the target has no {self._half.dtype} kernel for {node.op_type}"
        changing = [v for v in node.inputs if is_float(v) and v and not _is_constant(v)]
        if any(v in self.counted for v in changing) and all(v in self.counted for v in changing):
            return "it is computed from integers, which must stay exact"
        if not changing and node.op_type in ("Cast", "Range"):
            return "it makes numbers of integers, which must stay exact"
        return (
            self._constant_reason(node)
            or self._range_reason(node, changing)
            or self._sum_reason(node, changing)
            or self._between_reason(node, changing)
        )

    def _constant_reason(self, node: ir.Node) -> str:
        for value in node.inputs:
            if value is None or not is_float(value) or not _is_constant(value):
                continue
            reason = self._problem(value)
            if reason and not (self._past_range(value) and self._cut(value)):
                return f"its constant {value.name!r} {reason}"
        return ""

    def _cut(self, value: ir.Value) -> float:
        """To which absolute value a constant past the range may be cut; 0 if it may not."""
        if value not in self.plan.cut:
            negative = value.const_value is not None and value.const_value.numpy().max() <= 0
            if all(use.node.op_type in CUTTING for use in value.uses()):
                self.plan.cut[value] = self._limit
            elif negative and _only_masks(value):
                self.plan.cut[value] = self._limit / 2
        return self.plan.cut.get(value, 0.0)

    def _range_reason(self, node: ir.Node, changing: list[ir.Value]) -> str:
        if any(v in self._large for v in changing):
            return f"its input may lie outside the range of {self._half.dtype}"
        for value in (*changing, *node.outputs):
            seen = self._seen(value)
            reach = 0.0 if seen is None else max(-seen.low, seen.high)
            if reach * _ROOM > self._limit:
                return f"{value.name!r} reaches {reach:.3g}"
        return ""

    def _sum_reason(self, node: ir.Node, changing: list[ir.Value]) -> str:
        square = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
        if node.op_type not in _SENSITIVE and not square:
            return ""
        found = [self._seen(v) for v in (*changing, *node.outputs) if is_float(v)]
        if all(seen is not None and seen.rms >= _LEAST_RMS for seen in found):
            return ""
        known = "" if None in found else ", and its numbers are small"
        return f"{node.op_type} may overflow or lose small addends{known}"

    def _between_reason(self, node: ir.Node, changing: list[ir.Value]) -> str:
        if node.op_type in _CHEAP and changing and all(v in self._kept for v in changing):
            return "it lies behind float32 values"
        return ""

    def _seen(self, value: ir.Value) -> TensorStatistics | None:
        return self._measured.get(value.name or "")

    def _problem(self, value: ir.Value) -> str:
        if value not in self._problems:
            self._problems[value] = constant_problem(value, self._half.dtype)
        return self._problems[value]

    def _too_large(self, value: ir.Value) -> bool:
        """Whether a value is a constant past the range that may not be cut."""
        return self._past_range(value) and not self._cut(value)

    def _past_range(self, value: ir.Value) -> bool:
        return is_float(value) and _is_constant(value) and "ends at" in self._problem(value)

    def _is_mask(self, value: ir.Value) -> bool:
        """A constant that is infinite or past the range."""
        if not is_float(value) or not _is_constant(value) or value.const_value is None:
            return False
        array = value.const_value.numpy()
        return array.size > 0 and bool(np.abs(array).max() > self._limit)


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _only_masks(value: ir.Value) -> bool:
    """Whether all ways from a value lead to a Softmax, past nothing but what moves and adds."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if current.is_graph_output() or not current.uses():
            return False
        for use in current.uses():
            if use.node.op_type == "Softmax":
                continue
            if use.node.op_type not in _MASKING:
                return False
            fresh = [out for out in use.node.outputs if out not in seen]
            seen.update(fresh)
            waiting += fresh
    return True
