"""Inputs and outputs of the file: the names, types and shapes of the ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Affine8, Tensor
from edgecompress.litert_writer.ranges import affine_of, is_op
from edgecompress.litert_writer.translation import Translation

__all__ = ["make_input", "make_outputs"]

_SHIFT = 128
"""From int8 to the uint8 that ONNX has for the same number."""


def make_input(t: Translation, value: ir.Value) -> Tensor:
    """The tensor of a graph input; quantized where all its readers say with which scale.

    Raises:
        RefusalError: Its type or shape cannot be written.
    """
    name, shape, dtype = str(value.name), t.shape(value), t.dtype(value)
    affine = _read_as(value) if dtype in ("int8", "uint8") else None
    if affine is None:
        made = t.file.tensor(name, shape, dtype)
        t.put(value, made)
        return made
    if dtype == "int8":
        made = t.file.tensor(name, shape, dtype, quantization=affine)
        t.put(value, made)
        return made
    made = t.file.tensor(name, shape, dtype, quantization=_unsigned(affine))
    signed = t.fresh(f"{name};int8", shape, "int8", affine)
    t.emit("QUANTIZE", [made], [signed], "QuantizeOptions")
    t.put(value, signed)
    return made


def _read_as(value: ir.Value) -> Affine8 | None:
    readers = [use.node for use in value.uses()]
    found = {affine_of(node) for node in readers if is_op(node, "DequantizeLinear")}
    alike = len(found) == 1 and all(is_op(node, "DequantizeLinear") for node in readers)
    return found.pop() if alike else None


def _unsigned(affine: Affine8) -> Affine8:
    return Affine8(affine.scale, affine.zero_point + _SHIFT)


def make_outputs(t: Translation, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the graph's outputs, each one of its own."""
    taken = {tensor.index for tensor in inputs.values()}
    found = {}
    t.leave()
    for value in t.graph.outputs:
        tensor = _output(t, value)
        if tensor.index in taken or t.array(value) is not None:
            copy = t.fresh(f"{value.name};output", tensor.shape, tensor.dtype, tensor.affine)
            t.reshape(tensor, copy)
            tensor = copy
        taken.add(tensor.index)
        found[str(value.name)] = tensor
    return found


def _output(t: Translation, value: ir.Value) -> Tensor:
    affine = t.affine(value)
    declared = None if value.dtype is None else value.dtype.numpy().name
    if affine is None or declared not in ("int8", "uint8"):
        return t.read(value)
    signed = t.read(value, integers=True)
    if declared == "int8":
        return signed
    target = t.fresh(f"{value.name};uint8", signed.shape, "uint8", _unsigned(affine))
    t.emit("QUANTIZE", [signed], [target], "QuantizeOptions")
    return target
