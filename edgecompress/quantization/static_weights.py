"""Weights and biases of layers as integers, for static int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgecompress.constraints import Int8Format
from edgecompress.graph_pass import Change
from edgecompress.numerics.affine import (
    Affine,
    IntegerRange,
    quantize,
    suit_biases,
    weight_scales,
)
from edgecompress.qdq import QdqWriter
from edgecompress.qdq_plan import Layer
from edgecompress.qdq_rules import groups_along
from edgecompress.quantization.rounded_layer import RoundedLayer

__all__ = ["QuantizedLayer", "WeightOptions", "by_weight", "store_weights"]


class WeightOptions(Protocol):
    """How the weights of one layer become integers."""

    @property
    def weight_method(self) -> str:
        """How scales are chosen: ``mse`` or ``minmax``."""

    @property
    def per_channel(self) -> bool | None:
        """A scale for each output channel; None for what the target takes."""

    @property
    def bias_correction(self) -> bool:
        """Whether the mean of the output is put right."""


@dataclass
class QuantizedLayer:
    """A layer of the quantized graph, and where its integers lie.

    Attributes:
        source: Name of its output in the float graph.
        input: Name of the activation that it reads in the float graph.
        op: Operator.
        channel_dim: Dimension of the output that counts channels.
        correct: Whether its bias is to be corrected.
        float_weight: Name of its weight in the float graph.
        weight: Name of the initializer with the integers of its weight.
        scale: Name of the initializer with their scales.
        channel_axis: Axis of the weight that counts output channels.
        integers: What the weights may be.
        output: Name of its output in the quantized graph.
        bias: Name of the initializer with the integers of its bias; empty where it has none.
        bias_steps: float32, a step of the bias in units of the output, per channel or for all.
    """

    source: str
    input: str
    op: str
    channel_dim: int
    correct: bool
    float_weight: str
    weight: str
    scale: str
    channel_axis: int
    integers: IntegerRange
    output: str = ""
    bias: str = ""
    bias_steps: torch.Tensor = field(default_factory=lambda: torch.ones(()))

    def to_round(self) -> RoundedLayer:
        """The layer in the words of those who round."""
        return RoundedLayer(
            output=self.source,
            quantized_output=self.output,
            input=self.input,
            weight=self.weight,
            float_weight=self.float_weight,
            scale=self.scale,
            channel_axis=self.channel_axis,
            op=self.op,
            integers=self.integers,
            keep_mean=self.correct,
        )


def by_weight(layers: list[Layer]) -> list[list[Layer]]:
    """Layers grouped by the weight, and the reading of it, that they share."""
    groups: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.weight, layer.channel_axis), []).append(layer)
    return list(groups.values())


def store_weights(
    writer: QdqWriter,
    users: list[tuple[ir.Node, Layer]],
    affines: Mapping[str, Affine],
    int8: Int8Format,
    options_for: Callable[[ir.Node], WeightOptions | None],
) -> list[tuple[QuantizedLayer, Change]]:
    """Store one weight, and the biases of all layers that use it, as integers.

    Args:
        writer: Of the graph that is edited.
        users: All layers that read the weight in the same way.
        affines: Scale and zero point of each activation, by name.
        int8: Formats of the target.
        options_for: Options of a node; None for one that the placement would not hold.
    """
    node, layer = users[0]
    options = options_for(node)
    weight = node.inputs[1]
    assert options is not None  # the placement holds no others
    assert weight is not None
    assert weight.const_value is not None
    array = torch.from_numpy(np.array(weight.const_value.numpy()))
    per_channel = int8.per_channel if options.per_channel is None else options.per_channel
    per_channel = per_channel and layer.per_channel
    axis = layer.channel_axis
    rows = _channels_first(array, layer)
    integers = IntegerRange.of("int8", int8.weight_bits, symmetric=True)
    scales = weight_scales(
        rows if per_channel else rows.reshape(1, -1), integers, method=options.weight_method
    )
    biases = [(_bias(user), affines[of.input].scale) for user, of in users]
    largest = rows.abs().amax(1).repeat(groups_along(node))
    scales = suit_biases(scales, largest, biases)
    shape = [1] * array.dim()
    shape[axis] = -1 if per_channel else 1
    whole = quantize(array, scales.reshape(shape), 0, integers).to(torch.int8).numpy()
    stored_axis = axis if per_channel else None
    left, name = weight.const_value.nbytes, weight.name or ""
    place = writer.weight(
        weight, [(n, 1) for n, _ in users], whole, _stored(scales, stored_axis), stored_axis
    )
    found = []
    for user, of in users:
        wishes = options_for(user)
        correct = wishes is not None and wishes.bias_correction and of.op != "MatMul"
        if correct:
            _ensure_bias(writer, user, len(largest))
        stored = QuantizedLayer(
            source=of.output,
            input=of.input,
            op=of.op,
            channel_dim=1 if of.op in ("Conv", "ConvTranspose") else -1,
            correct=correct,
            float_weight=name,
            weight=place,
            scale=_scale_of(node),
            channel_axis=axis,
            integers=integers,
        )
        before, after = _quantize_bias(writer, user, scales, affines[of.input], per_channel, stored)
        what = f"{int8.activation} x int8"
        after += whole.nbytes + scales.numel() * 4
        found.append((stored, Change(of.node, of.op, what, left + before, after)))
        left = 0  # a shared weight is counted once
    return found


def _scale_of(node: ir.Node) -> str:
    """Name of the scale behind a layer's weight."""
    weight = node.inputs[1]
    dequantize = None if weight is None else weight.producer()
    assert dequantize is not None  # it was written just now
    scale = dequantize.inputs[1]
    return "" if scale is None or scale.name is None else scale.name


def _channels_first(array: torch.Tensor, layer: Layer) -> torch.Tensor:
    return array.movedim(layer.channel_axis, 0).flatten(1)


def _bias(node: ir.Node) -> torch.Tensor | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return None
    return torch.from_numpy(np.array(bias.const_value.numpy()))


def _stored(scales: torch.Tensor, axis: int | None) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = scales.numpy()
    return array if axis is not None else array.reshape(())


def _ensure_bias(writer: QdqWriter, node: ir.Node, channels: int) -> None:
    """Give a layer without bias one of zeros, so that there is something to correct."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    zeros = writer.initializer(f"{node.outputs[0].name}_bias", np.zeros(channels, np.float32))
    node.resize_inputs(3)
    node.replace_input_with(2, zeros)


def _quantize_bias(
    writer: QdqWriter,
    node: ir.Node,
    scales: torch.Tensor,
    activation: Affine,
    per_channel: bool,
    layer: QuantizedLayer,
) -> tuple[int, int]:
    """Store the bias in steps of input scale x weight scale; returns bytes before and after."""
    bias, value = _bias(node), node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or value is None:
        return 0, 0
    steps = (scales.double() * activation.scale).float()
    whole = torch.round(bias.double() / steps.double()).to(torch.int32).numpy()
    axis = 0 if per_channel else None
    layer.bias = writer.weight(value, [(node, 2)], whole, _stored(steps, axis), axis)
    layer.bias_steps = steps
    return bias.numel() * 4, whole.nbytes + steps.numel() * 4
