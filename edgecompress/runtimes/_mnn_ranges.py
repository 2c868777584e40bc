"""Our scales and zero points as MNN's compression parameters, so that MNN rounds as we did.

The file is a protobuf (``tools/converter/source/compression/MNN_compression.proto`` of MNN 3.6).
Ranges with a zero point are widened to one around zero except between convolutions: MNN 3.6.1
computes some operators wrongly with zero points (a padded Conv behind Add and Relu, a MaxPool), and
says nothing.

MNN looks a layer up by the name of its output after its own fusions, so each layer is written under
every name that it may have by then. Only layers with one computed input are taken, and these only
where input, weight and output are all quantized.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.runtimes._float_graph import FloatGraph, Grid, non_negative

__all__ = ["QuantizedLayer", "compression_file", "quantized_layers"]

_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
# What MNN may take into the layer in front of it, so that the layer bears its output's name.
_TAKEN_IN = frozenset({"Add", "Relu", "Clip"})
_MOVING = frozenset(
    {"MaxPool", "Pad", "Slice", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
)
_CONVERTED = (
    "__matmul_converted"  # what MNN appends to the name of a MatMul that it makes a Conv of
)
_VARINT, _BYTES, _FLOAT = 0, 2, 5
_LOWEST, _HIGHEST = -128, 127


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer that MNN can run on integers.

    Attributes:
        node: Output of the layer's node in the float graph.
        names: Names that its output may have in MNN's graph.
        input: Scale and zero point of its input, as int8.
        output: The same of its output.
        weight_scales: A scale per output channel.
    """

    node: str
    names: tuple[str, ...]
    input: tuple[float, int]
    output: tuple[float, int]
    weight_scales: tuple[float, ...]


def quantized_layers(found: FloatGraph) -> tuple[list[QuantizedLayer], dict[str, str]]:
    """Layers whose ranges MNN can be given, and why the others with rounded weights are not."""
    pools = _wrong_pools(found.model)
    layers: list[QuantizedLayer] = []
    left: dict[str, str] = {}
    for node in found.model.ir.graph:
        weight = node.inputs[1] if node.op_type in _LAYERS and len(node.inputs) > 1 else None
        grid = None if weight is None else found.weights.get(weight.name or "")
        if grid is None:
            continue
        name = node.outputs[0].name or ""
        layer = _layer(found, node, grid, pools)
        if isinstance(layer, str):
            left[name] = layer
        else:
            layers.append(layer)
    return layers, left


def _layer(
    found: FloatGraph, node: ir.Node, weight: Grid, pools: Collection[str]
) -> QuantizedLayer | str:
    source = node.inputs[0]
    given = None if source is None else found.activations.get(source.name or "")
    if source is None or given is None:
        return "its input is float"
    chain = list(_behind(node))
    last = next((v for v in chain if v.name in found.activations), None)
    if last is None:
        return "its output is float"
    if source.name in pools or last.name in pools:
        return "MNN's MaxPool of integers beside it is wrong for negative numbers"
    if not weight.symmetric:
        return "its weights have zero points"
    behind = found.activations[last.name or ""]
    if weight.dtype != "int8" or given.scale.size > 1 or behind.scale.size > 1:
        return "its numbers are not of 8 bits with one scale per tensor"
    assert node.inputs[1] is not None
    assert node.inputs[1].shape is not None
    names = [v.name or "" for v in chain[: chain.index(last) + 1]]
    axis = _output_axis(node)
    own = None if weight.axis is None else weight.axis % len(node.inputs[1].shape)
    if weight.scale.ndim > 1 or own not in (None, axis):
        return "its weight scales are not one per output channel"
    channels = int(str(node.inputs[1].shape[axis]))
    scales: npt.NDArray[np.float32] = np.broadcast_to(weight.scale.reshape(-1), (channels,))
    return QuantizedLayer(
        node=node.outputs[0].name or "",
        names=(*names, *(name + _CONVERTED for name in names)),
        input=_signed(given, _between_layers(source)),
        output=_signed(behind, _between_layers(last)),
        weight_scales=tuple(map(float, scales)),
    )


def _output_axis(node: ir.Node) -> int:
    """Axis of the weight that counts output channels."""
    if node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1:
        return 0
    return 1


def _behind(node: ir.Node) -> Iterator[ir.Value]:
    """The output of a layer, and of what MNN may fuse to it, up to a branch."""
    value = node.outputs[0]
    while True:
        yield value
        users = list(value.consumers())
        if len(users) != 1 or users[0].op_type not in _TAKEN_IN:
            return
        other = [v for v in users[0].inputs[1:] if v is not value and v is not None]
        if users[0].op_type == "Add" and any(v.const_value is None for v in other):
            return
        value = users[0].outputs[0]


def _wrong_pools(model: Model) -> set[str]:
    """Values that a MaxPool takes, or gives, as they are.

    MNN's MaxPool of integers compares them as if they had no sign, at least on x86.
    """
    marked: set[str] = set()
    for node in model.ir.graph:
        value = node.inputs[0] if node.op_type == "MaxPool" else None
        if value is None or non_negative(value):
            continue
        marked.add(node.outputs[0].name or "")
        while value is not None:
            marked.add(value.name or "")
            maker = value.producer()
            moved = maker is not None and maker.op_type in _MOVING
            value = maker.inputs[0] if maker is not None and moved else None
    for node in model.ir.graph:  # in topological order
        first = node.inputs[0] if node.inputs else None
        if first is not None and node.op_type in _MOVING and first.name in marked:
            marked.update(value.name or "" for value in node.outputs)
    return marked


def _between_layers(value: ir.Value) -> bool:
    """Whether a convolution makes the value, and nothing but convolutions read it."""
    maker = value.producer()
    while maker is not None and maker.op_type in ("Relu", "Clip") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    readers = [use.op_type for use in value.consumers()]
    return maker is not None and maker.op_type == "Conv" and set(readers) == {"Conv"}


def _signed(grid: Grid, keep_zero_point: bool) -> tuple[float, int]:
    """Scale and zero point as int8, or those of the grid around zero that holds the range."""
    scale, zero = float(grid.scale.reshape(-1)[0]), int(grid.zero_point.reshape(-1)[0])
    zero -= 128 if grid.dtype == "uint8" else 0
    if keep_zero_point or zero == 0:
        return scale, zero
    return scale * max(_HIGHEST - zero, zero - _LOWEST) / _HIGHEST, 0


def compression_file(layers: list[QuantizedLayer]) -> bytes:
    """The content of MNN's ``--compressionParamsFile``."""
    parts = [_message(4, _record(layer, name)) for layer in layers for name in layer.names]
    parameters = _message(2, _number(1, 0) + _message(2, b"".join(parts)))
    return _message(1, b"0.0.0") + parameters


def _record(layer: QuantizedLayer, name: str) -> bytes:
    limits = _number(4, _LOWEST) + _number(5, _HIGHEST)
    scales = b"".join(_float(3, scale) for scale in layer.weight_scales)
    weight = _message(1, name.encode()) + _number(2, 8) + scales + limits
    return (
        _message(1, _activation(name + "/input", *layer.input))
        + _message(2, weight)
        + _message(3, _activation(name, *layer.output))
    )


def _activation(name: str, scale: float, zero_point: int) -> bytes:
    limits = _number(5, _LOWEST) + _number(6, _HIGHEST)
    numbers = _number(2, 8) + _float(3, scale) + _number(4, zero_point)
    return _message(1, name.encode()) + numbers + limits


def _varint(number: int) -> bytes:
    number &= 2**64 - 1  # negative numbers are written as the 64 bits of their two's complement
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(number)


def _float(field: int, number: float) -> bytes:
    return _varint(field << 3 | _FLOAT) + struct.pack("<f", number)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content
