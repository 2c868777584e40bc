"""Keep layers float that are meant to be float, though quantized values surround them.

onnxruntime (WeightBiasQuantization, since 1.21) takes a Conv, ConvTranspose or Gemm with a float
weight behind a DequantizeLinear for one that somebody forgot, and rounds its weight to int8 with
one scale for the whole tensor. For a depthwise convolution, whose channels differ most, that is the
end of the model. It leaves alone layers whose bias is no initializer; a bias behind a
DequantizeLinear is none, and 31 bits of it are more than float32 has.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.qdq import QdqWriter
from edgecompress.qdq_rules import channel_axis, groups_along

__all__ = ["guard_float_layers"]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_STEPS = 2**30


def guard_float_layers(model: Model) -> list[str]:
    """Store the biases of float layers behind quantized values as int32, in place.

    ::

        DQ -> Conv(W, b) -> y      becomes      DQ -> Conv(W, DQ(b)) -> y

    Layers without a bias get one of zeros. A second call does nothing.

    Args:
        model: A graph with Q/DQ pairs.

    Returns:
        Outputs of the layers that were guarded.
    """
    graph = model.ir.graph
    writer = QdqWriter(graph)
    found = []
    for node in [n for n in graph if _would_be_quantized(n)]:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            zeros = np.zeros(_channels(node), np.float32)
            bias = writer.initializer(f"{node.outputs[0].name}_bias", zeros)
            node.resize_inputs(3)
            node.replace_input_with(2, bias)
        assert bias.const_value is not None  # _would_be_quantized has seen to it
        numbers = bias.const_value.numpy().astype(np.float64)
        largest = float(np.abs(numbers).max(initial=0.0))
        step = np.float32(largest / _STEPS if largest > np.finfo(np.float32).tiny * _STEPS else 1.0)
        whole = np.round(numbers / float(step)).astype(np.int32)
        writer.weight(bias, [(node, 2)], whole, np.array(step), None)
        found.append(node.outputs[0].name or "")
    return found


def _would_be_quantized(node: ir.Node) -> bool:
    """A layer with float weight and bias that reads a dequantized value."""
    if node.op_type not in _LAYERS or node.domain not in DEFAULT_DOMAINS:
        return False
    x, weight, bias = (*node.inputs, None, None)[:3]
    source = None if x is None else x.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return False
    if not _is_float_constant(weight):
        return False
    return bias is None or _is_float_constant(bias, dims=1)


def _is_float_constant(value: ir.Value | None, dims: int | None = None) -> bool:
    tensor = None if value is None else value.const_value
    if value is None or tensor is None or value.producer() is not None:
        return False
    return tensor.dtype == ir.DataType.FLOAT and dims in (None, len(tensor.shape))


def _channels(node: ir.Node) -> int:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    return int(weight.const_value.shape.numpy()[channel_axis(node)]) * groups_along(node)
