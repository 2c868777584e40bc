"""A weight that is to be rounded, as a matrix, with the layers that use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.errors import PassError
from edgecompress.layer_matrix import LayerMatrix, layer_matrix
from edgecompress.model import Model
from edgecompress.numerics.affine import IntegerRange
from edgecompress.quantization.rounded_layer import RoundedLayer

__all__ = ["Candidate", "User", "candidate", "finite"]


@dataclass(frozen=True)
class User:
    """A layer that uses a weight, and what stands around it.

    Attributes:
        layer: The layer.
        input: What it reads in the quantized graph.
        target: What it computes in the float graph, past a Relu or Clip right behind it.
        bounds: Of that Relu or Clip.
        bias: float32 [channels], or None.
        stored_bias: Of the quantized graph: the bias as float, its integers and their scales; None
            where it is not to be changed.
    """

    layer: RoundedLayer
    input: str
    target: str
    bounds: tuple[float | None, float | None]
    bias: Tensor | None
    stored_bias: tuple[str, str, str] | None


@dataclass(frozen=True)
class Candidate:
    """One weight that is to be rounded.

    Attributes:
        dequantized: Name of the float weight in the quantized graph.
        users: The layers that use it.
        form: As a matrix.
        weight: float32 [groups, rows, columns], as it was.
        scale: float32 [groups, rows].
        integers: What the integers may be.
        nearest: float32 [groups, rows, columns], the integers that are there.
    """

    dequantized: str
    users: tuple[User, ...]
    form: LayerMatrix
    weight: Tensor
    scale: Tensor
    integers: IntegerRange
    nearest: Tensor

    @property
    def name(self) -> str:
        """The initializer that holds the integers."""
        return self.users[0].layer.weight

    def store(self, model: Model, integers: Tensor, means: Sequence[Tensor]) -> None:
        """Write other integers into the quantized graph, and biases that keep the mean.

        Args:
            model: The quantized graph.
            integers: [groups, rows, columns].
            means: Of the columns that each user sees: [groups, columns].
        """
        old = model.initializer(self.name)
        array = self.form.as_stored(integers).cpu().numpy().astype(old.dtype)
        model.set_initializer(self.name, array)
        for user, mean in zip(self.users, means, strict=True):
            if user.stored_bias is not None:
                _, name, scale = user.stored_bias
                biases = torch.from_numpy(np.array(model.initializer(name)))
                steps = torch.from_numpy(np.array(model.initializer(scale))).double()
                shift = self.shift(integers * self.scale[..., None], mean).double().cpu()
                moved = torch.round(biases - shift / steps).clamp(-(2**31), 2**31 - 1)
                model.set_initializer(name, moved.to(biases.dtype).numpy())

    def shift(self, weight: Tensor, mean: Tensor) -> Tensor:
        """What another weight [groups, rows, columns] adds to the mean output: [channels]."""
        return ((weight - self.weight) @ mean[..., None]).flatten()

    def moved(self, integers: Tensor) -> float:
        """Share of the integers that are not the nearest ones."""
        return float((integers != self.nearest).double().mean())


def candidate(
    layers: Sequence[RoundedLayer],
    original: Mapping[str, ir.Node],
    quantized: Mapping[str, ir.Node],
    model: Model,
    float_model: Model,
    device: str,
) -> Candidate | str:
    """The weight that some layers share; a reason where it cannot be rounded as one matrix.

    Args:
        layers: All of the layers that use it.
        original: Nodes of the float graph, by the name of their outputs.
        quantized: Nodes of the quantized graph, likewise.
        model: The quantized graph.
        float_model: The float graph.
        device: torch device.
    """
    first = layers[0]
    weight = torch.from_numpy(np.array(float_model.initializer(first.float_weight)))
    forms = {layer_matrix(original[layer.output], weight.shape) for layer in layers}
    form = forms.pop()
    if forms or form is None:
        return "its weight is no matrix of one form"
    nodes = [quantized[layer.quantized_output] for layer in layers]
    dequantized = {node.inputs[1] for node in nodes}
    if {_integers(value) for value in dequantized} != {first.weight} or len(dequantized) > 1:
        return "its weight is not read through one DequantizeLinear"
    if {use.node for value in dequantized if value for use in value.uses()} != set(nodes):
        return "its weight is used by a layer that is not to be rounded"
    nearest = torch.from_numpy(np.array(model.initializer(first.weight))).float()
    scale = torch.from_numpy(np.array(model.initializer(first.scale))).float()
    return Candidate(
        dequantized=_name(nodes[0].inputs[1]),
        users=tuple(
            _user(layer, original[layer.output], node)
            for layer, node in zip(layers, nodes, strict=True)
        ),
        form=form,
        weight=form.weight(weight.float()).contiguous().to(device),
        scale=form.per_row(scale).to(device),
        integers=first.integers,
        nearest=form.weight(nearest).contiguous().to(device),
    )


def finite(values: Tensor, layer: str) -> Tensor:
    """The values as they are.

    Raises:
        PassError: They hold NaN or infinities.
    """
    if bool(torch.isfinite(values).all()):
        return values
    raise PassError(
        "expected finite activations on the calibration rows, got NaN or infinity",
        where=f"the layer of {layer!r}",
        cure="look for the node that makes them with `edgecompress statistics`, or round its "
        "weights to the nearest",
    )


def _user(layer: RoundedLayer, node: ir.Node, quantized: ir.Node) -> User:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if bias is None else bias.const_value
    follower = _follower(node.outputs[0])
    return User(
        layer=layer,
        input=_name(quantized.inputs[0]),
        target=layer.output if follower is None else _name(follower.outputs[0]),
        bounds=(None, None) if follower is None else _bounds(follower),
        bias=None if constant is None else torch.from_numpy(np.array(constant.numpy())).float(),
        stored_bias=_stored_bias(quantized) if layer.keep_mean else None,
    )


def _integers(value: ir.Value | None) -> str:
    """The initializer behind the DequantizeLinear that makes a value."""
    producer = None if value is None else value.producer()
    dequantizes = producer is not None and producer.op_type == "DequantizeLinear"
    return _name(producer.inputs[0]) if producer is not None and dequantizes else ""


def _stored_bias(node: ir.Node) -> tuple[str, str, str] | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return _name(value), _name(producer.inputs[0]), _name(producer.inputs[1])


def _follower(value: ir.Value) -> ir.Node | None:
    """A Relu, or a Clip between constants, that alone reads a value."""
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].node.graph is not _graph(value):
        return None
    node = uses[0].node
    constant = all(v is None or v.const_value is not None for v in node.inputs[1:])
    return node if node.op_type == "Relu" or (node.op_type == "Clip" and constant) else None


def _bounds(node: ir.Node) -> tuple[float | None, float | None]:
    if node.op_type == "Relu":
        return 0.0, None
    low, high = (_number(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2))
    return low, high


def _number(value: ir.Value | None) -> float | None:
    tensor = None if value is None else value.const_value
    return None if tensor is None else float(tensor.numpy().item())


def _graph(value: ir.Value) -> object:
    producer = value.producer()
    return None if producer is None else producer.graph


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name
