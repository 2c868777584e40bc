"""Bias correction: give each layer of a quantized graph the mean output of the float graph.

Rounding of weights and clipping of activations shift the mean of a layer's output, channel by
channel (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, arXiv 1906.04721, section 4.2). Here the shift is measured: both graphs run on the same
rows, and each layer of the quantized graph is corrected before its output is passed on, so later
layers see corrected inputs and one run over the rows corrects the whole graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.data.token_mask import position_mask
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.walk.walker import Walk, Watch

__all__ = ["CorrectedLayer", "output_shifts"]


_BATCH_ROWS = 8
_DOUBT = 0.01


@dataclass(frozen=True)
class CorrectedLayer:
    """A layer whose output mean is corrected.

    Attributes:
        output: Name of its output in the float graph.
        quantized_output: Name of its output in the quantized graph.
        channel_dim: Dimension of the output that counts channels.
        low: Smallest value that the activation behind the layer lets through.
        high: Largest one.
    """

    output: str
    quantized_output: str
    channel_dim: int
    low: float = -math.inf
    high: float = math.inf

    def passing(self, values: Tensor, mask: npt.NDArray[np.bool_] | None) -> Tensor | None:
        """bool, broadcasting against ``values``: positions that count; None where all do."""
        real = None if mask is None else position_mask(tuple(values.shape), torch.from_numpy(mask))
        if real is not None:
            real = real.to(values.device)
        if math.isinf(self.low) and math.isinf(self.high):
            return real
        inside = (values > self.low) & (values < self.high)
        return inside if real is None else inside & real


def output_shifts(
    original: Model,
    quantized: Model,
    layers: list[CorrectedLayer],
    data: CalibrationSet,
    *,
    rows: int,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Mapping[str, Tensor]:
    """What to add to each layer's bias, in the units of its output.

    Args:
        original: The float model.
        quantized: The same model with Q/DQ pairs.
        layers: Layers to correct.
        data: Where calibration rows come from.
        rows: How many of them, about.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.

    Returns:
        Name of the layer's output in the float graph -> float64 [channels].
    """
    floats = {layer.output: layer for layer in layers}
    integers = {layer.quantized_output: layer for layer in layers}
    shifts: dict[str, Tensor] = {}
    kept: dict[str, tuple[Tensor | None, Tensor]] = {}
    batches: dict[str, int] = dict.fromkeys(floats, 0)

    def keep(batch: Batch, name: str, values: Tensor) -> None:
        positions = floats[name].passing(values, batch.mask)
        kept[name] = positions, _sums(values, positions, floats[name].channel_dim)

    def correct(batch: Batch, name: str, values: Tensor) -> None:
        layer = integers[name]
        dim, shift = layer.channel_dim, shifts.get(layer.output)
        if shift is not None:
            _add(values, shift, dim)
        positions, wanted = kept.pop(layer.output)
        left = (wanted - _sums(values, positions, dim)) / _counts(values, positions, dim)
        # The mean over all batches so far: each later batch moves it by its share.
        batches[layer.output] += 1
        step = left / batches[layer.output]
        _add(values, step, dim)
        shifts[layer.output] = step if shift is None else shift + step

    walk = Walk(
        original,
        data,
        current=quantized,
        rows=rows,
        batch_size=_BATCH_ROWS,
        device=device,
        memory=memory,
        scratch=scratch,
        progress=progress,
        label="correct biases",
    )
    for step in walk:
        step.advance(Watch(floats, keep), Watch(integers, correct))
    return shifts


def _sums(values: Tensor, positions: Tensor | None, dim: int) -> Tensor:
    """Sum of each channel over the positions that count: float64 [channels].

    torch sums float32 in a cascade: exact enough, and without a wider copy.
    """
    chosen = values if positions is None else values * positions
    return chosen.sum(_others(values, dim)).double()


def _counts(values: Tensor, positions: Tensor | None, dim: int) -> Tensor:
    """Positions of each channel, and some more where few count: float64 [channels].

    Few positions tell little; with some more, of no error, their mean is drawn towards zero.
    """
    everywhere = values.numel() // max(values.shape[dim], 1)
    if positions is None:
        return torch.tensor(float(max(everywhere, 1)), dtype=torch.float64, device=values.device)
    found = positions.expand(values.shape).sum(_others(values, dim)).double()
    return found + _DOUBT * max(everywhere, 1)


def _others(values: Tensor, dim: int) -> list[int]:
    return [d for d in range(values.dim()) if d != dim % values.dim()]


def _add(values: Tensor, shift: Tensor, dim: int) -> None:
    shape = [1] * values.dim()
    shape[dim] = -1
    values.add_(shift.to(values.dtype).reshape(shape))
