"""A graph on its way into a file: where each value is found, in which form, and who makes it.

A value may be there as float or as int8 with a scale, and plain or with channels last. The form
that somebody wants is made of the one that is there when it is asked for: DEQUANTIZE and TRANSPOSE
appear only where they are needed, and once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.litert_writer import ranges
from edgecompress.litert_writer.facts import Facts
from edgecompress.litert_writer.flatbuffer import (
    Affine8,
    FileBuilder,
    Quantization,
    Tensor,
    tensor_type,
)
from edgecompress.litert_writer.layouts import (
    LAST,
    PLAIN,
    Layout,
    free_move,
    permutation,
    shape_in,
    to_plain,
)
from edgecompress.litert_writer.ranges import is_op
from edgecompress.litert_writer.registry import RefusalError

__all__ = ["Plan", "Translation"]

Form = tuple[bool, Layout]
"""Whether as integers, and the layout."""


@dataclass(frozen=True)
class Plan:
    """How a node and what follows it become one operator.

    Attributes:
        integers: Whether it computes on int8.
        activation: Name of the activation function that it takes in.
        value: The value that it makes.
        affine: What its integers stand for; None in float.
    """

    integers: bool
    activation: str
    value: ir.Value
    affine: Affine8 | None


class Translation(Facts):
    """State of one translation; what the functions of operators work with.

    Args:
        graph: A graph with fixed shapes.
        opset: Version of its operator set.
        dynamic: Whether matrix products that the graph leaves in float, but on int8 weights, may
            quantize their inputs while they run.
    """

    def __init__(self, graph: ir.Graph, opset: int, *, dynamic: bool = False) -> None:
        self.graph = graph
        self.opset = opset
        self.dynamic = dynamic
        self.file = FileBuilder()
        self.absorbed: dict[ir.Node, str] = {}
        """Nodes that others took in, and the origin of those."""
        self.notes: dict[str, int] = {}
        self._forms: dict[ir.Value, dict[Form, Tensor]] = {}
        self._origin = ""

    # Forms

    def affine(self, value: ir.Value | None) -> Affine8 | None:
        """What the integers of a value stand for, where it is there as integers."""
        if value is None:
            return None
        for (integers, _), tensor in self._forms.get(value, {}).items():
            if integers:
                return tensor.affine
        held = ranges.stored(value)
        if held is not None and held.axis is None:
            return Affine8(float(held.scales), int(held.zero_points))
        return None

    def in_layout(self, value: ir.Value | None, layout: Layout) -> bool:
        """Whether a value is there in a layout."""
        return value is not None and any(at == layout for _, at in self._forms.get(value, ()))

    def layout_of(self, *values: ir.Value | None) -> Layout:
        """The layout in which an operator that takes any should read these."""
        spread = [v for v in values if v is not None and v.shape is not None and len(v.shape) > 2]
        last = [v for v in spread if self.in_layout(v, LAST) and not self.in_layout(v, PLAIN)]
        ranks = {len(v.shape) for v in values if v is not None and v.shape is not None}
        return LAST if last and max(ranks) == len(last[0].shape or ()) else PLAIN

    # Plans

    def plan(
        self, node: ir.Node, *inputs: ir.Value | None, fuses: bool = False, integers: bool = True
    ) -> Plan:
        """What to take in, and whether to compute on integers.

        Args:
            node: The node.
            inputs: Values that must be there as integers for that.
            fuses: Whether the operator can apply an activation function.
            integers: Whether it can compute on integers at all.
        """
        value, taken, activation = node.outputs[0], [], "NONE"
        if fuses and (follower := self._only_reader(value)) is not None:
            activation = self._activation(follower)
            if activation != "NONE":
                taken.append(follower)
                value = follower.outputs[0]
        quantize = self._only_reader(value)
        if integers and is_op(quantize, "QuantizeLinear"):
            affine = ranges.affine_of(quantize)  # type: ignore[arg-type]
            if affine is not None and all(self.affine(v) is not None for v in inputs):
                assert quantize is not None
                self.absorb(*taken, quantize)
                return Plan(True, activation, quantize.outputs[0], affine)
        self.absorb(*taken)
        return Plan(False, activation, value, None)

    def _only_reader(self, value: ir.Value) -> ir.Node | None:
        uses = list(value.uses())
        return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None

    def _activation(self, node: ir.Node) -> str:
        if is_op(node, "Relu"):
            return "RELU"
        if is_op(node, "Clip"):
            return self.clip_name(node)
        return "NONE"

    # Reading and writing

    def read(
        self, value: ir.Value | None, layout: Layout = PLAIN, *, integers: bool = False
    ) -> Tensor:
        """The tensor that holds a value in some form; made where it is not there yet."""
        if value is None:
            raise RefusalError("an input that it needs is left out")
        forms = self._forms.setdefault(value, {})
        wanted = (integers, layout)
        if wanted not in forms:
            forms[wanted] = self._made(value, forms, integers, layout)
        return forms[wanted]

    def _made(
        self, value: ir.Value, forms: dict[Form, Tensor], integers: bool, layout: Layout
    ) -> Tensor:
        other: Layout = PLAIN if layout == LAST else LAST
        if (integers, other) in forms:
            return self._moved(value, forms[integers, other], layout)
        if not integers and (True, layout) in forms:
            return self._dequantized(value, forms[True, layout])
        if not integers and (True, other) in forms:
            return self._moved(value, self.read(value, other), layout)
        if integers and (held := ranges.stored(value)) is not None and held.axis is None:
            array = held.integers
            affine = Affine8(float(held.scales), int(held.zero_points))
            return self._constant(value, array, layout, affine)
        found = self.array(value)
        if found is None or integers:
            raise RefusalError(f"{value.name!r} is not there")
        if tensor_type(found.dtype.name) is None:
            raise RefusalError(f"the constant {value.name!r} is of type {found.dtype.name}")
        return self._constant(value, found, layout, None)

    def _constant(
        self, value: ir.Value, array: npt.NDArray[Any], layout: Layout, affine: Affine8 | None
    ) -> Tensor:
        if layout == LAST:
            array = array.transpose(permutation(array.ndim))
        name = value.name or "constant"
        return self.file.tensor(
            name, array.shape, array.dtype.name, data=array, quantization=affine
        )

    def _moved(self, value: ir.Value, source: Tensor, layout: Layout) -> Tensor:
        plain = self.shape(value)
        order = permutation(len(plain)) if layout == LAST else to_plain(len(plain))
        name = f"{value.name};{layout}"
        target = self.fresh(name, shape_in(plain, layout), source.dtype, source.affine)
        if free_move(plain):
            self.reshape(source, target)
        else:
            self.emit("TRANSPOSE", [source, self.integers(order)], [target], "TransposeOptions")
        return target

    def _dequantized(self, value: ir.Value, source: Tensor) -> Tensor:
        target = self.fresh(f"{value.name};float", source.shape, "float32")
        self.emit("DEQUANTIZE", [source], [target], "DequantizeOptions")
        return target

    def requantized(self, source: Tensor, affine: Affine8, name: str) -> Tensor:
        """A tensor's numbers as int8 of another scale; itself where it has that scale."""
        if source.affine == affine:
            return source
        target = self.fresh(name, source.shape, "int8", affine)
        self.emit("QUANTIZE", [source], [target], "QuantizeOptions")
        return target

    def fresh(
        self, name: str, shape: Sequence[int], dtype: str, affine: Affine8 | None = None
    ) -> Tensor:
        """A new tensor that an operator will write."""
        return self.file.tensor(name, shape, dtype, quantization=affine)

    def put(self, value: ir.Value, tensor: Tensor, layout: Layout = PLAIN) -> None:
        """Say where a value is found."""
        self._forms.setdefault(value, {})[tensor.affine is not None, layout] = tensor

    def alias(self, value: ir.Value, source: ir.Value) -> None:
        """Say that a value is another one, in all forms that there are or will be."""
        self._forms[value] = self._forms.setdefault(source, {})

    def output(self, plan: Plan, layout: Layout = PLAIN) -> Tensor:
        """The tensor for the value of a plan, in a layout."""
        shape = shape_in(self.shape(plan.value), layout)
        dtype = "int8" if plan.integers else self.dtype(plan.value)
        made = self.fresh(str(plan.value.name), shape, dtype, plan.affine)
        self.put(plan.value, made, layout)
        return made

    def moved_output(self, node: ir.Node, like: Tensor, layout: Layout = PLAIN) -> Tensor:
        """The tensor for the first output of a node that only moves values."""
        value = node.outputs[0]
        shape = shape_in(self.shape(value), layout)
        made = self.fresh(str(value.name), shape, like.dtype, like.affine)
        self.put(value, made, layout)
        return made

    def spread(
        self, value: ir.Value | None, rank: int, layout: Layout, *, integers: bool = False
    ) -> Tensor:
        """A value to be broadcast with others of ``rank``, in their layout."""
        shape = self.shape(value)
        if layout == PLAIN or len(shape) == rank or not shape:
            return self.read(value, layout if len(shape) == rank else PLAIN, integers=integers)
        full = (1,) * (rank - len(shape)) + shape
        source = self.read(value, integers=integers)
        target = self.fresh(
            f"{value.name};rank{rank}",  # type: ignore[union-attr]
            shape_in(full, LAST),
            source.dtype,
            source.affine,
        )
        if free_move(full):
            self.reshape(source, target)
            return target
        wide = self.fresh(f"{target.index};wide", full, source.dtype, source.affine)
        self.reshape(source, wide)
        order = self.integers(permutation(rank))
        self.emit("TRANSPOSE", [wide, order], [target], "TransposeOptions")
        return target

    # Operators

    def begin(self, node: ir.Node) -> None:
        """Operators from now on are for this node."""
        self._origin = node.outputs[0].name or ""

    def leave(self) -> None:
        """Operators from now on are for no node: they bring outputs into their form."""
        self._origin = ""

    def absorb(self, *nodes: ir.Node) -> None:
        """These nodes are done with the one that is being written."""
        self.absorbed.update(dict.fromkeys(nodes, self._origin))

    def emit(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: str = "",
        version: int | None = None,
        **fields: Any,
    ) -> None:
        """Add an operator; see :meth:`FileBuilder.operator`."""
        self.file.operator(code, inputs, outputs, options, self._origin, version, **fields)

    def reshape(self, source: Tensor, target: Tensor) -> None:
        """The same values in other dimensions."""
        shape = np.array(target.shape, np.int32)
        inputs = [source, self.file.constant("shape", shape)]
        self.emit("RESHAPE", inputs, [target], "ReshapeOptions", newShape=list(target.shape))

    def integers(self, numbers: Sequence[int]) -> Tensor:
        """A constant vector of int32."""
        return self.file.constant("numbers", np.array(numbers, np.int32))

    def number(self, value: float) -> Tensor:
        """A constant float."""
        return self.file.constant("number", np.array(value, np.float32))

    def weights(
        self,
        name: str,
        array: npt.NDArray[Any],
        scales: npt.NDArray[np.float32] | None = None,
        axis: int = 0,
    ) -> Tensor:
        """A constant of a layer: float, or int8 or int32 with scales along ``axis``."""
        kind = None
        if scales is not None:
            kind = Quantization(scales, np.zeros(scales.size, np.int64), axis)
        return self.file.tensor(name, array.shape, array.dtype.name, data=array, quantization=kind)

    def fused(self, activation: str) -> int:
        """Number of an activation function."""
        return self.file.word("ActivationFunctionType", activation)

    def note(self, what: str) -> None:
        """Count something that is worth telling."""
        self.notes[what] = self.notes.get(what, 0) + 1
