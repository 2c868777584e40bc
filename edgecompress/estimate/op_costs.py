"""What makes a kernel slow: counts from its shapes, by kind of kernel.

Each count gets a time by calibration. Counts of compute are multiply-accumulates and what small
shapes add to them, such as output channels that do not fill a register block; counts of the rest
are elements and calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgecompress.estimate.kernels import LOOKUPS, Kernel, Tensor

__all__ = [
    "Work",
    "work_of",
    "far_part",
    "CALL",
    "RUN",
    "FAR",
    "FAR_WEIGHTS",
    "MEMORY_WEIGHTS",
    "OTHER",
]

CALL, RUN, FAR, OTHER = "kernel", "run", "far bytes", "other"
FAR_WEIGHTS, MEMORY_WEIGHTS = "far weights", "weights from memory"
"""Counts that all kinds share: calls of kernels, runs of a model, bytes from beyond the cache.

Weights are read from one end to the other, once; the rest is written and read soon.
"""
_OUTER = 8  # times a core's cache: weights that exceed that mostly come from main memory

_INTEGERS = frozenset({"int8", "uint8"})
_BLOCK, _WIDE = (
    16,
    64,
)  # channels in a block of convolutions, and of as many blocks as one turn takes
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvInteger"})
_PRODUCTS: Mapping[str, int] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulIntegerToFloat"), 1),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulInteger", "MatMulNBits"), 1),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), 3),
}
_RECURRENT = frozenset({"LSTM", "GRU"})
_VIEWS = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Dropout"}
)
_CONTROL = frozenset({"If", "Loop", "Scan"})
_GROUPS: Mapping[str, Iterable[str]] = {
    "binary": ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"),
    "compare": ("And", "Or", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"),
    "unary": ("Relu", "LeakyRelu", "Clip", "Neg", "Abs", "Reciprocal", "Not", "Floor"),
    "exponential": (
        "Sigmoid",
        "Tanh",
        "Exp",
        "QuickGelu",
        "Log",
        "Sqrt",
        "Sin",
        "Cos",
        "HardSigmoid",
    ),
    "gelu": ("Gelu", "BiasGelu", "FastGelu"),
    "reduce": ("ReduceMean", "ReduceSum", "ReduceL2", "ReduceMax", "ReduceMin", "ReduceProd"),
    "pool": ("MaxPool", "AveragePool"),
    "slice": ("Slice", "Split", "Pad", "Expand"),
    "lookup": LOOKUPS,
    "integer table": ("QLinearSigmoid", "QLinearLeakyRelu"),
    "integer binary": ("QLinearAdd", "QLinearMul"),
}
_GROUP_OF = {op: group for group, ops in _GROUPS.items() for op in ops}
_OWN = frozenset(
    {
        *("Pow", "Softmax", "LayerNormalization", "SkipLayerNormalization", "BatchNormalization"),
        *(
            "Erf",
            "GlobalAveragePool",
            "Concat",
            "Cast",
            "ReorderInput",
            "ReorderOutput",
            "QuantizeLinear",
        ),
        *("DequantizeLinear", "QLinearGlobalAveragePool", "NonMaxSuppression", "Resize"),
    }
)
_BY_ROWS = frozenset(
    {"Softmax", "LayerNormalization", "SkipLayerNormalization", "reduce rows", "transpose rows"}
)


@dataclass(frozen=True)
class Work:
    """What a kernel does.

    Attributes:
        kind: Kind of kernel.
        integer: Whether it multiplies 8-bit integers with the instructions of an integer peak.
        operations: Two per multiply-accumulate, else one per element: what a peak is divided by.
        bytes: Bytes read and written.
        counts: What its time is made of, by name.
    """

    kind: str
    integer: bool
    operations: float
    bytes: float
    counts: Mapping[str, float]


def far_part(size: float, cache_bytes: float) -> float:
    """Part of something read again and again that a cache does not hold, from 0 to 1.

    Other things want room as well: it starts where half of the cache is filled.
    """
    return min(1.0, max(0.0, 2 * size / cache_bytes - 1))


def work_of(kernel: Kernel, cache_bytes: float, all_weights: float) -> Work:
    """What a kernel does.

    Args:
        kernel: The kernel.
        cache_bytes: Size of the cache of a core; what exceeds it comes from further away.
        all_weights: Bytes of the weights of the model, of which the cache holds what it can.
    """
    moved = kernel.bytes - kernel.weight_bytes
    kind, macs, elements, counts = _counts(kernel)
    # The others move integers or widen them: their time goes with the width of registers.
    dots = macs > 0 and "depthwise" not in kind
    integer = dots and any(tensor.dtype in _INTEGERS for tensor in kernel.inputs)
    named = {f"{kind}: {name}": count for name, count in counts.items() if count > 0}
    return Work(
        kind=kind,
        integer=integer,
        operations=2 * macs if macs else elements,
        bytes=kernel.bytes,
        counts={
            CALL: 1.0,
            FAR: moved * far_part(moved, cache_bytes),
            FAR_WEIGHTS: kernel.weight_bytes * far_part(all_weights, cache_bytes),
            MEMORY_WEIGHTS: kernel.weight_bytes * far_part(all_weights, _OUTER * cache_bytes),
            **named,
        },
    )


def _counts(kernel: Kernel) -> tuple[str, float, float, dict[str, float]]:
    """Kind, multiply-accumulates, elements and counts."""
    found = None
    if kernel.op in _CONVOLUTIONS:
        found = _convolution(kernel)
    elif kernel.op in _PRODUCTS:
        found = _product(kernel)
    elif kernel.op in _RECURRENT:
        found = _recurrent(kernel)
    if found is not None:
        return *found[:2], 0.0, found[2]
    if kernel.op in _VIEWS:
        return "view", 0.0, 1.0, {}
    if kernel.op in _CONTROL:
        return "control flow", 0.0, 1.0, {"calls": 1.0}
    kind = _kind(kernel)
    elements = float(_elements(kernel, kind))
    counts = {"calls": 1.0, "elements": elements}
    if kind in _BY_ROWS:
        counts["rows"] = elements / max(1, kernel.inputs[0].shape[-1])
    return kind, 0.0, max(1.0, elements), counts


def _kind(kernel: Kernel) -> str:
    if kernel.op == "Transpose":
        same = kernel.inputs[0].shape[-1:] == kernel.outputs[0].shape[-1:]
        return "transpose rows" if same else "transpose"
    if _GROUP_OF.get(kernel.op) == "reduce":
        same = kernel.inputs[0].shape[-1:] == kernel.outputs[0].shape[-1:]
        return "reduce columns" if same else "reduce rows"
    return _GROUP_OF.get(kernel.op) or (kernel.op if kernel.op in _OWN else OTHER)


def _elements(kernel: Kernel, kind: str) -> int:
    made = sum(tensor.elements for tensor in kernel.outputs)
    if kind in ("slice", "lookup"):
        return made
    return max(made, *(tensor.elements for tensor in kernel.inputs), 0)


def _tensor(kernel: Kernel, place: int, rank: int) -> Tensor | None:
    """The input at ``place``, if it has at least ``rank`` dimensions."""
    if place < len(kernel.inputs) and len(kernel.inputs[place].shape) >= rank:
        return kernel.inputs[place]
    return None


def _convolution(kernel: Kernel) -> tuple[str, float, dict[str, float]] | None:
    weight = _tensor(kernel, 3 if kernel.op == "QLinearConv" else 1, 3)
    if weight is None:
        return None
    made = kernel.outputs[0].elements
    channels, depth, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    macs = float(made) * depth * taps
    depthwise = depth == 1 and channels > 1 and len(weight.shape) > 3
    shape = "depthwise" if depthwise else "shallow" if depth < _BLOCK else ""
    if kernel.op in ("QLinearConv", "ConvInteger"):
        return _integer_convolution(shape, macs, made, weight)
    if "nchwc" not in kernel.name:
        kind = f"{shape} convolution by columns".strip()
        positions = made // channels
        columns = positions * depth * taps if taps > 1 else 0.0
        # Few positions fill no register: they are computed as if they were as many as that takes.
        padded = macs * _up(positions, _BLOCK) / positions if positions else 0.0
        return kind, macs, {"MACs": padded, "columns": columns, "weights": weight.elements}
    if shape == "depthwise":
        return "depthwise convolution", macs, {"MACs": macs, "made": made}
    narrow = macs * _BLOCK / min(channels, _WIDE)
    kind = shape or ("pointwise" if taps == 1 else "dense")
    counts = {"MACs": macs, "narrow": narrow, "weights": weight.elements}
    return f"{kind} convolution", macs, counts


def _integer_convolution(
    shape: str, macs: float, made: int, weight: Tensor
) -> tuple[str, float, dict[str, float]]:
    channels, depth, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    if shape == "depthwise":
        return "integer depthwise convolution", macs, {"MACs": macs, "made": made}
    padded = made / channels * _up(channels, _BLOCK) * _up(depth * taps, 4)
    columns = made / channels * depth * taps
    counts = {"MACs": padded, "made": made, "columns": columns, "weights": weight.elements}
    kind = "shallow" if shape else "pointwise" if taps == 1 else "dense"
    return f"integer {kind} convolution", macs, counts


def _up(number: int, step: int) -> int:
    return -(-number // step) * step


def _product(kernel: Kernel) -> tuple[str, float, dict[str, float]] | None:
    weight = _tensor(kernel, _PRODUCTS[kernel.op], 2)
    first = kernel.inputs[0]
    if weight is None or not kernel.outputs[0].shape or not first.shape:
        return None
    made, columns = kernel.outputs[0].elements, kernel.outputs[0].shape[-1]
    rows = made / max(1, columns)
    # Packed weights have shapes of their own; the rows tell the depth of two plain matrices.
    batched = len(weight.shape) > 2 and kernel.op != "MatMulNBits"
    depth = first.shape[-1] if batched else first.elements / max(1.0, rows)
    macs = float(made) * depth
    prefix = "" if kernel.op in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm") else "integer "
    if batched:
        matrices = math.prod(weight.shape[:-2])
        counts = {"MACs": macs, "second": weight.elements, "matrices": matrices}
        return f"{prefix}products of activations", macs, counts
    if rows == 1:
        return f"{prefix}matrix times vector", macs, {"MACs": macs}
    counts = {"MACs": macs, "weights": depth * columns, "made": made, "read": first.elements}
    return f"{prefix}matrix product", macs, counts


def _recurrent(kernel: Kernel) -> tuple[str, float, dict[str, float]] | None:
    weights = [tensor.elements for tensor in kernel.inputs[1:3] if len(tensor.shape) == 3]
    if len(weights) < 2:
        return None
    steps = float(math.prod(kernel.inputs[0].shape[:2]))
    made = sum(tensor.elements for tensor in kernel.outputs)
    macs = steps * sum(weights)
    return kernel.op, macs, {"MACs": macs, "steps": steps, "made": float(made), "calls": 1.0}
