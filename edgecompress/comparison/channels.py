"""Dead channels: outputs of layers that are the same number whatever the model is fed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.comparison.side_by_side import comparable
from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.model import Model
from edgecompress.walk.liveness import analyse

__all__ = ["ChannelUse", "Channels"]

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "FusedConv"})
# Tables that are looked up have no channels that die.
_OTHERS = frozenset(
    {"Gather", "GatherBlockQuantized", "EmbedLayerNormalization", "Einsum"} | {"If", "Loop", "Scan"}
)
# Right behind a layer these decide whether a channel is alive.
_BEHIND = frozenset(
    {"BatchNormalization", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid"}
    | {"HardSwish", "Elu", "Selu", "Gelu", "Tanh", "Softplus"}
)
_RELATIVE = 1e-6


@dataclass(frozen=True)
class ChannelUse:
    """Output channels of a layer, behind the activation that follows it.

    Attributes:
        node: Name of the layer in the original model.
        op: Operator.
        channels: How many it has.
        dead: Those that are constant in the compressed graph and not in the original.
        dead_in_both: Those that are constant in both.
    """

    node: str
    op: str
    channels: int
    dead: tuple[int, ...]
    dead_in_both: tuple[int, ...]


@dataclass
class _Extent:
    """Lowest and highest number of each channel, and how many numbers it had."""

    low: Tensor | None = None
    high: Tensor | None = None
    count: int = 0

    def add(self, values: Tensor, axis: int, mask: Tensor | None) -> None:
        rows = values.double().movedim(axis, 0).flatten(1)
        low, high = rows, rows
        if mask is not None:
            real = mask.to(values.device).expand(values.shape).movedim(axis, 0).flatten(1)
            low, high = rows.masked_fill(~real, math.inf), rows.masked_fill(~real, -math.inf)
        lowest, highest = low.amin(1), high.amax(1)
        self.low = lowest if self.low is None else torch.minimum(self.low, lowest)
        self.high = highest if self.high is None else torch.maximum(self.high, highest)
        self.count += rows.shape[1]

    def constant(self) -> Tensor | None:
        """Which channels are; None where one number each cannot tell."""
        if self.low is None or self.high is None or self.count < 2:
            return None
        return self.high - self.low <= _RELATIVE * torch.maximum(self.high.abs(), self.low.abs())


@dataclass
class _Layer:
    node: ir.Node
    axis: int
    ours: _Extent
    theirs: _Extent


class Channels:
    """Keeps the extent of every channel of every layer in both graphs."""

    def __init__(self, original: Model, pairs: Mapping[str, str]) -> None:
        """Find the layers.

        Args:
            original: The reference; without functions of its own.
            pairs: Its values -> those of the compressed graph that stand for them.
        """
        self._layers: dict[str, tuple[str, _Layer]] = {}
        layers = analyse(original.ir.graph).layers
        for node in original.ir.graph:
            if node not in layers or node.op_type in _OTHERS:
                continue
            name = _end(node.outputs[0], pairs)
            if name is not None:
                axis = 1 if node.op_type in _CONVOLUTIONS else -1
                layer = _Layer(node, axis, _Extent(), _Extent())
                self._layers[pairs[name]] = name, layer

    @property
    def ours(self) -> Collection[str]:
        """Outputs of the layers."""
        return [name for name, _ in self._layers.values()]

    @property
    def theirs(self) -> Collection[str]:
        """What stands for them."""
        return self._layers

    def see(self, batch: Batch, name: str, values: Tensor, originals: Mapping[str, Tensor]) -> None:
        """Widen the extents by one batch."""
        ours, layer = self._layers[name]
        reference = originals.get(ours)
        if reference is None or not comparable(reference, values) or values.ndim < 2:
            return
        mask = None
        if batch.mask is not None:
            mask = position_mask(tuple(values.shape), torch.from_numpy(batch.mask))
        layer.ours.add(reference, layer.axis, mask)
        layer.theirs.add(values, layer.axis, mask)

    def leave(self) -> None:
        """Nothing is held."""

    @property
    def found(self) -> list[ChannelUse]:
        """Layers with dead channels, in graph order."""
        uses = (_use(layer) for _, layer in self._layers.values())
        return [use for use in uses if use is not None and (use.dead or use.dead_in_both)]


def _end(value: ir.Value, pairs: Mapping[str, str]) -> str | None:
    """The layer's output behind its activations, as far as both graphs have it."""
    found = value.name if value.name in pairs else None
    while len(uses := list(value.uses())) == 1 and uses[0].node.op_type in _BEHIND:
        value = uses[0].node.outputs[0]
        found = value.name if value.name in pairs else found
    return found


def _use(layer: _Layer) -> ChannelUse | None:
    ours, theirs = layer.ours.constant(), layer.theirs.constant()
    if ours is None or theirs is None:
        return None
    return ChannelUse(
        node=layer.node.name or layer.node.outputs[0].name or "",
        op=layer.node.op_type,
        channels=len(ours),
        dead=tuple((theirs & ~ours).nonzero().flatten().tolist()),
        dead_in_both=tuple((theirs & ours).nonzero().flatten().tolist()),
    )
