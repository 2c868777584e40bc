"""Small graphs with Q/DQ pairs, made without any pass, and their layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from edgecompress.model import Model
from edgecompress.numerics.affine import Affine, IntegerRange, quantize, weight_scales
from edgecompress.qdq import QdqWriter
from edgecompress.quantization.rounding import RoundedLayer
from edgecompress.torchgraph import to_torch

_LAYERS = ("Conv", "Gemm", "MatMul")


def with_pairs(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    bits: int = 4,
    *,
    per_channel: bool = True,
    activations: bool = True,
    keep_mean: bool = False,
) -> tuple[Model, list[RoundedLayer]]:
    """Weights of few bits and 8-bit inputs of all layers, ranges from the rows fed.

    Where the mean is to be kept, biases are integers, too.
    """
    integers = IntegerRange.of("int8", bits, symmetric=True)
    quantized = model.clone()
    graph = quantized.ir.graph
    writer = QdqWriter(graph)
    nodes = [node for node in graph if node.op_type in _LAYERS]
    names = list(dict.fromkeys(_name(node.inputs[0]) for node in nodes))
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        to_torch(model)(tensors, observe=seen.__setitem__, watch=names)
    layers = []
    by_weight: dict[str, list[ir.Node]] = {}
    for node in nodes:
        by_weight.setdefault(_name(node.inputs[1]), []).append(node)
    for name, users in by_weight.items():
        weight = users[0].inputs[1]
        assert weight is not None
        axis = _channel_axis(users[0])
        array = torch.from_numpy(np.array(model.initializer(name)))
        rows = array.movedim(axis, 0).flatten(1)
        scales = weight_scales(rows if per_channel else rows.reshape(1, -1), integers)
        shape = [-1 if i == axis else 1 for i in range(array.dim())]
        whole = quantize(array, scales.reshape(shape if per_channel else []), 0, integers)
        stored = scales.numpy() if per_channel else scales.numpy().reshape(())
        targets = [(node, 1) for node in users]
        floats = {node: _name(node.inputs[0]) for node in users}
        held = writer.weight(
            weight, targets, whole.to(torch.int8).numpy(), stored, axis if per_channel else None
        )
        dequantize = users[0].inputs[1]
        assert dequantize is not None
        producer = dequantize.producer()
        assert producer is not None
        for node in users:
            output = _name(node.outputs[0])
            layers.append(
                RoundedLayer(
                    output=output,
                    quantized_output=output,
                    input=floats[node],
                    weight=held,
                    float_weight=name,
                    scale=_name(producer.inputs[1]),
                    channel_axis=axis,
                    op=node.op_type,
                    integers=integers,
                    keep_mean=keep_mean,
                )
            )
            if keep_mean:
                _quantize_bias(writer, node)
    values = {_name(v): v for v in (*graph.inputs, *(v for n in graph for v in n.outputs))}
    for name in names if activations else ():
        low, high = float(seen[name].min()), float(seen[name].max())
        affine = Affine.from_range(low, high, IntegerRange.of("uint8"))
        writer.activation(values[name], affine, "uint8")
    return quantized, layers


def _quantize_bias(writer: QdqWriter, node: ir.Node) -> None:
    bias = node.inputs[2]
    assert bias is not None
    assert bias.const_value is not None
    steps = np.full(bias.const_value.shape[0], 1e-4, np.float32)
    whole = np.round(bias.const_value.numpy() / steps).astype(np.int32)
    writer.weight(bias, [(node, 2)], whole, steps, 0)


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = node.attributes.get("transB")
    return 0 if transposed is not None and transposed.as_int() else 1


def _name(value: ir.Value | None) -> str:
    assert value is not None
    return value.name or ""
