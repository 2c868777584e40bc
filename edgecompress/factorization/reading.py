"""Weights as matrices, and the errors of what cannot be worked with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgecompress.errors import PassError
from edgecompress.factorization.layers import bias_place
from edgecompress.factorization.parts import Layer
from edgecompress.model import Model

__all__ = ["not_finite", "only_padding", "own_bias", "read_weight"]


def read_weight(model: Model, layer: Layer, device: str = "cpu") -> Tensor:
    """The weight of a layer, float64 [groups, rows, columns].

    Raises:
        PassError: It holds NaN or infinities.
    """
    array = torch.from_numpy(np.array(model.initializer(layer.weight)))
    if not bool(torch.isfinite(array).all()):
        raise PassError(
            f"expected finite numbers in the weight {layer.weight!r}, got NaN or infinity",
            where=_where(layer),
            cure="export the model again from sound weights",
        )
    return layer.form.weight(array.to(device).double())


def own_bias(model: Model, layer: Layer) -> Tensor:
    """What the layer's node itself adds to its product: float64 [groups, rows], 0 without bias."""
    channels = layer.groups * layer.rows
    node = next(node for node in model.ir.graph if node.outputs[0].name == layer.output)
    place = bias_place(node, channels)
    value = node.inputs[place[1]] if place is not None and place[0] is node else None
    if value is None or value.const_value is None:
        return torch.zeros(layer.groups, layer.rows, dtype=torch.float64)
    bias = torch.from_numpy(np.array(value.const_value.numpy())).double()
    return layer.form.per_row(bias * node.attributes.get_float("beta", 1.0))


def not_finite(layer: Layer) -> PassError:
    """What a layer reads, or is to put out, holds NaN or infinities."""
    return PassError(
        "expected finite activations on the calibration rows, got NaN or infinity",
        where=_where(layer),
        cure="look for the node that makes them with `edgecompress statistics`",
    )


def only_padding(layer: Layer) -> PassError:
    """No position that a layer reads is real."""
    return PassError(
        "expected real positions on the calibration rows, got nothing but padding",
        where=_where(layer),
        cure="check the attention mask of the calibration data",
    )


def _where(layer: Layer) -> str:
    return f"the layer {layer.node!r}, pass 'factorize'"
