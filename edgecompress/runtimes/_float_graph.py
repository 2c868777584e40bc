"""The float graph under a Q/DQ graph, and the ranges that its pairs held.

Some runtimes take no QuantizeLinear and DequantizeLinear, but quantize a float graph themselves.
They are given this graph, whose weights are the rounded ones, and the same scales and zero points.

::

    x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> y      becomes      x -> Conv -> Relu -> y
    w (int8) -> DQ ---^                                            w (float, rounded) ---^
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.errors import ModelError
from edgecompress.model import Model

__all__ = [
    "FloatGraph",
    "Grid",
    "bits_of_pair",
    "float_graph",
    "is_quantized",
    "non_negative",
    "why_float",
]

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# The outputs of these are never below zero.
_NON_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs"})
# These move values, or take the mean or greatest of some, so they add no sign of their own.
_SIGN_KEEPING = frozenset(
    {
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Concat"),
        *("ReduceMax", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"),
        *("Slice", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
    }
)


@dataclass(frozen=True)
class Grid:
    """The numbers that a tensor is rounded to: ``scale * (integer - zero_point)``.

    Attributes:
        scale: One scale, or one per channel, or per block of a channel; float32.
        zero_point: Integers of the same shape.
        dtype: Name of the integer type, e.g. ``uint8``.
        axis: Axis of the channels where there are several scales, else None.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.int64]
    dtype: str
    axis: int | None = None

    @property
    def symmetric(self) -> bool:
        """Whether zero is in the middle of the integers, so that no zero point is needed."""
        middle = 0 if self.dtype.startswith("int") else 2 ** (int(self.dtype[4:]) - 1)
        return bool((self.zero_point == middle).all())

    @property
    def starts_at_zero(self) -> bool:
        """Whether the least of the numbers is zero."""
        lowest = 0 if self.dtype.startswith("uint") else -(2 ** (int(self.dtype[3:]) - 1))
        return bool((self.zero_point == lowest).all())


@dataclass(frozen=True)
class FloatGraph:
    """A model without Q/DQ pairs.

    Attributes:
        model: The float model; its weights are dequantized, its biases too.
        activations: Grids of computed values and inputs, by name in ``model``.
        weights: Grids of initializers, by name in ``model``.
        clipped: Values that a Relu was put behind, since their grid held no negative numbers.
    """

    model: Model
    activations: Mapping[str, Grid]
    weights: Mapping[str, Grid]
    clipped: tuple[str, ...] = ()


def is_quantized(model: Model) -> bool:
    """Whether the main graph holds anything that :func:`float_graph` takes out."""
    return any(
        node.op_type in (_QUANTIZE, _DEQUANTIZE) or _is_table(node) for node in model.ir.graph
    )


def float_graph(model: Model) -> FloatGraph:
    """Take the Q/DQ pairs out of the main graph.

    Operators between a QuantizeLinear and a DequantizeLinear that only move integers (Pad, Reshape,
    MaxPool, ...) then move floats. Tables of 8 bits that onnxruntime's GatherBlockQuantized reads
    become float tables.

    Raises:
        ModelError: A scale is computed instead of stored, or weights have fewer than 8 bits in a
            way that cannot be undone.
    """
    stripped = model.clone()
    graph = stripped.ir.graph
    activations: dict[ir.Value, Grid] = {}
    weights: dict[ir.Value, Grid] = {}
    clipped: list[ir.Value] = []
    for node in [n for n in graph if n.op_type == _DEQUANTIZE and _stored(n.inputs[0])]:
        weight = _float_weight(graph, node)
        weights[weight] = _grid(node)
        _replace(graph, node, weight)
    for node in [n for n in graph if n.op_type == _QUANTIZE and n.inputs[0] is not None]:
        source, grid = node.inputs[0], _grid(node)
        assert source is not None
        if _stored(source):
            weights[source] = grid
        elif grid.starts_at_zero and not non_negative(source):
            source = _relu_behind(graph, node, source)
            clipped.append(source)
        activations.setdefault(source, grid)
        _float_pads(graph, node, grid)
        activations.update({_replace(graph, node, source): grid})
    for node in [n for n in graph if n.op_type == _DEQUANTIZE and n.inputs[0] is not None]:
        source, grid = node.inputs[0], _grid(node)
        assert source is not None
        activations.setdefault(source, grid)
        activations.update({_replace(graph, node, source): grid})
    for node in [n for n in graph if _is_table(n)]:
        _float_table(graph, node)
    _drop_unused(graph)
    _forget_integer_types(graph)
    return FloatGraph(
        stripped,
        {v.name or "": grid for v, grid in activations.items() if not _stored(v)},
        {v.name or "": grid for v, grid in weights.items() if v.name in graph.initializers},
        tuple(value.name or "" for value in clipped),
    )


def bits_of_pair(node: ir.Node) -> int | None:
    """Bits of the integers of a QuantizeLinear or DequantizeLinear; None where it is not told."""
    integers = node.outputs[0] if node.op_type == _QUANTIZE else node.inputs[0]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    kind = next((v.dtype for v in (zero, integers) if v is not None and v.dtype is not None), None)
    return None if kind is None else round(kind.itemsize * 8)


def why_float(node: ir.Node) -> str:
    """The change of the pairs around a node that may bring it onto integers; empty if unknown."""
    producers = [value.producer() for value in node.inputs if value is not None]
    pairs = [each for each in producers if each is not None and each.op_type == _DEQUANTIZE]
    for pair in pairs:
        if (bits_of_pair(pair) or 8) == 16:
            return "quantize its inputs to 8 bits"
        grid = _grid(pair)
        if _stored(pair.inputs[0]) and not grid.symmetric and grid.dtype == "int8":
            return "quantize its weights without zero points"
        if not _stored(pair.inputs[0]) and grid.dtype == "int8" and not grid.symmetric:
            return "quantize activations as uint8, or as int8 without zero points"
    users = [use for value in node.outputs for use in value.consumers()]
    if pairs and not any(use.op_type == _QUANTIZE for use in users):
        return "quantize its output, too"
    return ""


def _stored(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.producer() is None


def _read(value: ir.Value) -> npt.NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


def _grid(node: ir.Node) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear.

    Raises:
        ModelError: Its scale or zero point is computed.
    """
    scale, zero = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if not _stored(scale) or not (zero is None or _stored(zero)):
        raise ModelError(
            "expected stored scales and zero points, got computed ones",
            where=f"node {node.name or node.outputs[0].name!r}",
            cure="quantize the model statically",
        )
    assert scale is not None
    scales = _read(scale).astype(np.float32)
    integers = node.outputs[0] if node.op_type == _QUANTIZE else node.inputs[0]
    kind = next((v.dtype for v in (zero, integers) if v is not None and v.dtype is not None), None)
    zeros = np.zeros(scales.shape, np.int64) if zero is None else _read(zero).astype(np.int64)
    axis = node.attributes.get_int("axis", 1) if scales.size > 1 else None
    return Grid(scales, zeros, "uint8" if kind is None else kind.name.lower(), axis)


def _spread(
    array: npt.NDArray[Any], shape: tuple[int, ...], axis: int | None
) -> npt.NDArray[np.float32]:
    """Scales or zero points as an array that broadcasts against a tensor of ``shape``."""
    if axis is None:
        return array.astype(np.float32).reshape(())
    if array.ndim == 1:
        places = [1] * len(shape)
        places[axis] = -1
        return array.astype(np.float32).reshape(places)
    repeated = np.repeat(array, -(-shape[axis] // array.shape[axis]), axis)
    return np.take(repeated, np.arange(shape[axis]), axis).astype(np.float32)


def _float_weight(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """An initializer with the values of a DequantizeLinear of stored integers."""
    source, grid = node.inputs[0], _grid(node)
    assert source is not None
    integers = _read(source).astype(np.float32)
    zeros = _spread(grid.zero_point, integers.shape, grid.axis)
    scales = _spread(grid.scale, integers.shape, grid.axis)
    return _initializer(graph, f"{node.outputs[0].name}/float", (integers - zeros) * scales)


def _is_table(node: ir.Node) -> bool:
    """Whether a node looks rows up in a stored table of 8-bit integers in blocks."""
    return (
        node.op_type == "GatherBlockQuantized"
        and node.attributes.get_int("bits", 4) == 8
        and all(value is None or _stored(value) for value in (node.inputs[0], *node.inputs[2:]))
    )


def _float_table(graph: ir.Graph, node: ir.Node) -> None:
    """Look the rows up in a float table instead."""
    table, rows, scale, *rest = node.inputs
    assert table is not None
    assert scale is not None
    integers, scales = _read(table), _read(scale)
    middle = 128 if integers.dtype == np.uint8 else 0
    zeros = _read(rest[0]) if rest and rest[0] is not None else np.full_like(scales, middle)
    axis = node.attributes.get_int("quantize_axis", 1)
    shape = integers.shape
    array = integers.astype(np.float32) - _spread(zeros, shape, axis)
    value = _initializer(graph, f"{table.name}/float", array * _spread(scales, shape, axis))
    axis = node.attributes.get_int("gather_axis", 0)
    gather = ir.node("Gather", inputs=[value, rows], attributes={"axis": axis}, name=node.name)
    given = node.outputs[0]
    gather.outputs[0].type, gather.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), given.shape
    graph.insert_before(node, gather)
    _replace(graph, node, gather.outputs[0])
    gather.outputs[0].name = given.name


def _initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    array = array.astype(np.float32)
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value


def non_negative(value: ir.Value) -> bool:
    """Whether a value is known never to be below zero."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "Clip" and len(node.inputs) > 1:
        lowest = node.inputs[1]
        return lowest is not None and _stored(lowest) and float(_read(lowest).min()) >= 0
    if node.op_type in (_QUANTIZE, _DEQUANTIZE):
        return _grid(node).starts_at_zero
    if node.op_type in _SIGN_KEEPING:
        data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return all(each is not None and non_negative(each) for each in data)
    return node.op_type in _NON_NEGATIVE


def _relu_behind(graph: ir.Graph, quantize: ir.Node, source: ir.Value) -> ir.Value:
    """A Relu of ``source``: unsigned integers without a zero point have cut it off there."""
    relu = ir.node("Relu", inputs=[source], name=f"{quantize.name or source.name}/relu")
    relu.outputs[0].name = f"{source.name}/relu"
    relu.outputs[0].shape, relu.outputs[0].type = source.shape, source.type
    graph.insert_before(quantize, relu)
    return relu.outputs[0]


def _float_pads(graph: ir.Graph, quantize: ir.Node, grid: Grid) -> None:
    """Let Pads of the integers fill with the number, not the integer, that they filled with."""
    for node in quantize.outputs[0].consumers():
        filling = node.inputs[2] if node.op_type == "Pad" and len(node.inputs) > 2 else None
        if filling is None or not _stored(filling):
            continue
        number = (_read(filling).astype(np.float32) - grid.zero_point) * grid.scale
        name = f"{node.outputs[0].name}/filling"
        node.replace_input_with(2, _initializer(graph, name, number.reshape(())))


def _replace(graph: ir.Graph, node: ir.Node, by: ir.Value) -> ir.Value:
    """Let ``by`` take the place of a node's output, and return what really took it.

    A graph output keeps its name and type, by an Identity where the name cannot be handed over.
    """
    value = node.outputs[0]
    output = value.is_graph_output()
    if output and (by.producer() is None or by.is_graph_output()):
        identity = ir.node("Identity", inputs=[by], name=f"{node.name}/output")
        graph.insert_before(node, identity)
        by = identity.outputs[0]
    if output:
        by.type, by.shape = value.type, value.shape
    ir.convenience.replace_all_uses_with(value, by, replace_graph_outputs=output)
    graph.remove(node, safe=True)
    if output:
        by.name = value.name
    return by


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in tuple(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]


def _forget_integer_types(graph: ir.Graph) -> None:
    """Let operators that stood between pairs give floats, as what they take is float now."""
    for node in graph:
        first = node.inputs[0] if node.inputs else None
        if first is None or node.op_type not in _SIGN_KEEPING | {"Pad"}:
            continue
        for value in node.outputs:
            if first.dtype == ir.DataType.FLOAT and value.dtype != first.dtype:
                value.type = ir.TensorType(ir.DataType.FLOAT)
