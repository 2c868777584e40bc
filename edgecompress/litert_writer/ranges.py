"""What QuantizeLinear and DequantizeLinear say, in the terms of TFLite's 8-bit specification.

Activations are int8 with one scale (https://ai.google.dev/edge/litert/models/quantization_spec);
uint8 values become int8 by taking 128 from them and from the zero point, which is exact. Weights
are int8 with zero point 0, with one scale or one per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Affine8
from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.weights.external_data import read as read_tensor

__all__ = ["Stored", "affine_of", "array_of", "dequantized", "is_op", "stored"]


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant that is stored as int8.

    Attributes:
        integers: int8 values.
        scales: float32, a scalar or one per slice of ``axis``.
        zero_points: Of the same shape as the scales.
        axis: Of scales per channel, else None.
    """

    integers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    axis: int | None

    @property
    def symmetric(self) -> bool:
        """Whether it may be a weight of TFLite's integer kernels."""
        return not self.zero_points.any()


def is_op(node: ir.Node | None, *names: str) -> bool:
    """Whether a node is one of these operators of ONNX."""
    return node is not None and node.op_type in names and node.domain in DEFAULT_DOMAINS


def array_of(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """Values of an initializer, or None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return read_tensor(value.const_value)


def affine_of(node: ir.Node) -> Affine8 | None:
    """Scale and zero point of a Q or DQ node for an activation; None where it is not 8-bit."""
    scale = array_of(node.inputs[1])
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    kind = _integer_type(node) if zero is None else zero.dtype.name
    number = 0 if zero is None else int(zero.reshape(-1)[0])
    if kind not in ("uint8", "int8"):
        return None
    return Affine8(float(scale.reshape(-1)[0]), number - (128 if kind == "uint8" else 0))


def _integer_type(node: ir.Node) -> str:
    value = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    unknown = value is None or value.dtype is None
    return "uint8" if unknown else value.dtype.numpy().name  # type: ignore[union-attr]


def stored(value: ir.Value | None) -> Stored | None:
    """The constant behind a DequantizeLinear, where it is one of 8 bits."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    integers, scales = array_of(node.inputs[0]), array_of(node.inputs[1])
    if integers is None or scales is None or integers.dtype not in (np.int8, np.uint8):
        return None
    if node.attributes.get_int("block_size", 0) or scales.dtype != np.float32:
        return None
    zeros = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    zero_points = np.zeros(scales.shape, np.int64) if zeros is None else zeros.astype(np.int64)
    if integers.dtype == np.uint8:
        integers, zero_points = (integers.astype(np.int16) - 128).astype(np.int8), zero_points - 128
    axis = None
    if scales.size > 1:
        axis = node.attributes.get_int("axis", 1) % integers.ndim
    else:
        scales, zero_points = scales.reshape(()), zero_points.reshape(())
    return Stored(integers.astype(np.int8), scales.astype(np.float32), zero_points, axis)


def dequantized(node: ir.Node) -> npt.NDArray[np.generic] | None:
    """Values of a DequantizeLinear of constants, or None where it is not of constants."""
    integers, scales = array_of(node.inputs[0]), array_of(node.inputs[1])
    blocks = node.attributes.get_int("block_size", 0) > 0
    if integers is None or scales is None or blocks:
        return None
    zeros = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    shape = [1] * integers.ndim
    if scales.size > 1:
        shape[node.attributes.get_int("axis", 1) % integers.ndim] = scales.size
    offset = 0 if zeros is None else zeros.astype(np.int64).reshape(shape if zeros.size > 1 else ())
    scaled = scales.reshape(shape if scales.size > 1 else ())
    values: npt.NDArray[np.generic] = (integers.astype(np.int64) - offset).astype(
        scaled.dtype
    ) * scaled
    return values
