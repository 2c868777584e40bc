"""Which layers are rounded, with which settings, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from edgecompress.model import Model
from edgecompress.numerics.affine import IntegerRange

__all__ = ["LayerRounding", "RoundedLayer", "RoundingNotes", "RoundingRun"]


@dataclass(frozen=True)
class RoundedLayer:
    """A layer whose weight lies behind a DequantizeLinear, with zero points of zero.

    Attributes:
        output: Name of its output in the float graph.
        quantized_output: Name of the same node's output in the quantized graph.
        input: Name of the activation that it reads, in the float graph.
        weight: Initializer of the quantized graph that holds the integers.
        float_weight: Initializer of the float graph.
        scale: Initializer of the quantized graph: one scale for each output channel, or one.
        channel_axis: Axis of the weight that counts output channels.
        op: Operator.
        integers: What the integers may be.
        keep_mean: Whether its bias in the quantized graph (integers behind a DequantizeLinear)
            takes up what rounding does to the mean output: the integers then need not care.
    """

    output: str
    quantized_output: str
    input: str
    weight: str
    float_weight: str
    scale: str
    channel_axis: int
    op: str
    integers: IntegerRange
    keep_mean: bool = False


@dataclass(frozen=True)
class LayerRounding:
    """What became of one layer.

    Attributes:
        layer: Its output in the float graph.
        op: Operator.
        method: The method that its integers come from.
        nearest: Squared error of the output, by the power of the output, with the nearest
            integers; None where it was not measured. ``learned`` measures the block's outputs.
        error: The same with the integers that were chosen.
        moved: Share of the integers that are not the nearest ones.
        reason: Why they are all the nearest ones, where the method was not used.
    """

    layer: str
    op: str
    method: Literal["nearest", "gptq", "adaround", "learned"]
    nearest: float | None = None
    error: float | None = None
    moved: float = 0.0
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary, without what is not known."""
        return {name: value for name, value in vars(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class RoundingNotes:
    """What became of all layers, in the order in which they were rounded."""

    method: str
    layers: tuple[LayerRounding, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary, for reports."""
        return {"method": self.method, "layers": [layer.as_json() for layer in self.layers]}


@dataclass(frozen=True)
class RoundingRun:
    """What all methods share.

    Attributes:
        model: The quantized graph, whose integers are replaced.
        rows: How many rows there are, about.
        iterations: Of methods that iterate; None for their default.
        seed: Of what is drawn.
        device: torch device.
        threads: How many calls may run at once, each on one thread.
        keep: Whether a block's rows may be kept in memory, as many as there are.
    """

    model: Model
    rows: int
    iterations: int | None
    seed: int
    device: str
    threads: int
    keep: bool

    def generator(self, number: int) -> torch.Generator:
        """Of the CPU, for the batch or the layer of that number."""
        seeds = np.random.SeedSequence([self.seed, number])
        return torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
