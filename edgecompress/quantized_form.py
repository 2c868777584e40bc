"""Whether a graph carries integers already, and in which of the ways that are in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgecompress.costs import int_attribute
from edgecompress.model import Model

__all__ = ["Form", "QuantizedForm", "quantized_form"]

Form = Literal["static QDQ", "static QOperator", "dynamic", "weight-only", "half precision"]
"""Activations and weights between Q/DQ pairs; integer operators with given scales; activations
quantized at run time; weights alone, as integers or 16-bit floating point; all of it in that."""

# Operators that carry integers by themselves: their form, and the float operator that they were.
_OWN: dict[str, tuple[Form, str]] = {
    "ConvInteger": ("dynamic", "Conv"),
    "MatMulInteger": ("dynamic", "MatMul"),
    "MatMulIntegerToFloat": ("dynamic", "MatMul"),
    "DynamicQuantizeMatMul": ("dynamic", "MatMul"),
    "DynamicQuantizeLSTM": ("dynamic", "LSTM"),
    "QAttention": ("dynamic", "Attention"),
    "QGemm": ("static QOperator", "Gemm"),
    "MatMulNBits": ("weight-only", "MatMul"),
    "MatMulBnb4": ("weight-only", "MatMul"),
    "GatherBlockQuantized": ("weight-only", "Gather"),
}
# Layers, and where their weights are among the inputs.
_LAYERS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "LSTM": 1, "GRU": 1, "Gather": 0}
_HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_TABLES = frozenset({ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8})
_MOVES = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})


@dataclass(frozen=True)
class QuantizedForm:
    """How a graph is quantized.

    Attributes:
        kinds: The forms that occur, the most frequent first; empty where Q/DQ pairs or integer
            operators stand around no layer.
        weights: Types of the weights, such as ``int8``, ``uint8``, ``4-bit``, ``float16``.
        activations: Types of activations between Q/DQ pairs, such as ``uint8``, ``uint16``.
        layers: By float operator: how many layers carry integers, and how many there are. Gather
            counts where its table is quantized.
    """

    kinds: tuple[Form, ...]
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    layers: dict[str, tuple[int, int]]

    def __str__(self) -> str:
        """One line: ``static QDQ (int8): 28 of 29 Conv``."""
        if not self.kinds:
            return "integers around no layer"
        counts = ", ".join(f"{done} of {all_} {op}" for op, (done, all_) in self.layers.items())
        wide = [f"{name} activations" for name in self.activations if name.endswith("16")]
        kept = ", ".join((*self.weights, *wide))
        types = f" ({kept})" if kept else ""
        return f"{' and '.join(self.kinds)}{types}: {counts}"


def quantized_form(model: Model) -> QuantizedForm | None:
    """How a graph is quantized already; None where it is float. Only types are looked at.

    Args:
        model: The model; it is not changed.
    """
    nodes = list(_nodes(model.ir))
    kinds: Counter[Form] = Counter()
    done: Counter[str] = Counter()
    total: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    activations: Counter[str] = Counter()
    for node in nodes:
        found = _layer(node)
        if found is None:
            continue
        total[found.op] += 1
        if found.form is not None:
            kinds[found.form] += 1
            done[found.op] += 1
            weights.update([found.weight] if found.weight else [])
            activations.update([found.activation] if found.activation else [])
    if not kinds and not any(_makes_integers(node) for node in nodes):
        return None
    return QuantizedForm(
        kinds=tuple(kind for kind, _ in kinds.most_common()),
        weights=tuple(name for name, _ in weights.most_common()),
        activations=tuple(name for name, _ in activations.most_common()),
        layers={op: (done[op], total[op]) for op in sorted(done)},
    )


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


@dataclass(frozen=True)
class _Layer:
    """Form (None: float32), float operator, and types of weights and activations."""

    form: Form | None
    op: str
    weight: str = ""
    activation: str = ""


def _layer(node: ir.Node) -> _Layer | None:
    own = _OWN.get(node.op_type)
    if own is not None:
        return _Layer(*own, _own_type(node))
    if node.op_type.startswith("QLinear") and node.op_type.removeprefix("QLinear") in _LAYERS:
        op = node.op_type.removeprefix("QLinear")
        return _Layer("static QOperator", op, _dtype(_input(node, 3)), _dtype(_input(node, 0)))
    if node.op_type == "Gather":
        return _table(node)
    place = _LAYERS.get(node.op_type)
    if place is None:
        return None
    weight, other = _input(node, place), _input(node, 1 - place)
    inside = _dequantized(weight)
    if inside is None:
        return _half(weight, node.op_type) or _Layer(None, node.op_type)
    activation = _dequantized(other)
    if activation is None:
        return _Layer("weight-only", node.op_type, _dtype(inside))
    return _Layer("static QDQ", node.op_type, _dtype(inside), _dtype(activation))


def _table(node: ir.Node) -> _Layer | None:
    """A Gather whose table is quantized, in front of it or behind; others are no layers."""
    table = _input(node, 0)
    inside = _dequantized(table)
    if inside is not None and inside.const_value is not None:
        return _Layer("weight-only", "Gather", _dtype(inside))
    if table is not None and table.const_value is not None and table.dtype in _TABLES:
        if any(use.node.op_type == "DequantizeLinear" for use in node.outputs[0].uses()):
            return _Layer("weight-only", "Gather", _dtype(table))
        return None
    return _half(table, "Gather")


def _half(weight: ir.Value | None, op: str) -> _Layer | None:
    """A layer with a constant in 16-bit floating point; behind a Cast it is only stored so."""
    form: Form = "half precision"
    while weight is not None and (producer := weight.producer()) is not None:
        if producer.op_type == "Cast" and weight.dtype not in _HALF:
            form = "weight-only"
        elif producer.op_type not in _MOVES:
            return None
        weight = _input(producer, 0)
    if weight is None or weight.const_value is None or weight.const_value.dtype not in _HALF:
        return None
    return _Layer(form, op, _dtype(weight))


def _own_type(node: ir.Node) -> str:
    if "bits" in node.attributes:
        return f"{int_attribute(node, 'bits')}-bit"
    if node.op_type in ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"):
        return "4-bit"
    return _dtype(_input(node, 3 if node.op_type == "QGemm" else 1))


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _dequantized(value: ir.Value | None) -> ir.Value | None:
    """What lies in front of the DequantizeLinear that makes ``value``, through shape changes."""
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type == "DequantizeLinear":
            return _input(producer, 0)
        if producer.op_type not in _MOVES:
            return None
        value = _input(producer, 0)
    return None


def _dtype(value: ir.Value | None) -> str:
    """Type of a value; of what a QuantizeLinear makes where shapes were never inferred."""
    if value is None:
        return ""
    tensor = value.const_value
    dtype = value.dtype if tensor is None else tensor.dtype
    producer = value.producer()
    if dtype is None and producer is not None and producer.op_type == "QuantizeLinear":
        zero = _input(producer, 2)
        return _dtype(zero) if zero is not None else "uint8"
    return "" if dtype is None else dtype.name.lower()


def _makes_integers(node: ir.Node) -> bool:
    return node.op_type in (
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
    ) or node.op_type.startswith("QLinear")
