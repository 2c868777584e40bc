"""Bias correction: give each layer of a quantized graph the mean output of the float graph.

Rounding of weights and clipping of activations shift the mean of a layer's output, channel by
channel (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction",
ICCV 2019, arXiv 1906.04721, section 4.2). Here the shift is measured: both graphs run on the same
rows, and each layer of the quantized graph is corrected before its output is passed on, so later
layers see corrected inputs and one run over the rows corrects the whole graph.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class CorrectedLayer:
    """A layer whose output mean is corrected.

    Attributes:
        output: Name of its output in the float graph.
        quantized_output: Name of its output in the quantized graph.
        channel_dim: Dimension of the output that counts channels.
    """

    output: str
    quantized_output: str
    channel_dim: int


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
    dims = {layer.output: layer.channel_dim for layer in layers}
    names = {layer.quantized_output: layer.output for layer in layers}
    shifts: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    batches: dict[str, int] = dict.fromkeys(dims, 0)

    def keep_mean(batch: Batch, name: str, values: Tensor) -> None:
        means[name] = channel_mean(values, dims[name], batch.mask)

    def correct(batch: Batch, name: str, values: Tensor) -> None:
        layer = names[name]
        shift = shifts.get(layer)
        if shift is not None:
            _add(values, shift, dims[layer])
        left = means.pop(layer) - channel_mean(values, dims[layer], batch.mask)
        # The mean over all batches so far: each later batch moves it by its share.
        batches[layer] += 1
        step = left / batches[layer]
        _add(values, step, dims[layer])
        shifts[layer] = step if shift is None else shift + step

    walk = Walk(
        original,
        data,
        current=quantized,
        rows=rows,
        device=device,
        memory=memory,
        scratch=scratch,
        progress=progress,
        label="correct biases",
    )
    for step in walk:
        step.advance(Watch(dims, keep_mean), Watch(names, correct))
    return shifts


def channel_mean(values: Tensor, dim: int, mask: npt.NDArray[np.bool_] | None) -> Tensor:
    """Mean of each channel over all rows and positions but padded ones.

    Args:
        values: Any tensor of the graph.
        dim: Dimension of the channels.
        mask: bool [rows, length]: which positions are no padding; None where all are.

    Returns:
        float64 [channels].
    """
    others = [d for d in range(values.dim()) if d != dim % values.dim()]
    real = None if mask is None else position_mask(tuple(values.shape), torch.from_numpy(mask))
    if real is None:
        return values.double().mean(others)
    weights = real.to(values.device).expand(values.shape).double()
    return (values.double() * weights).sum(others) / weights.sum(others)


def _add(values: Tensor, shift: Tensor, dim: int) -> None:
    shape = [1] * values.dim()
    shape[dim] = -1
    values.add_(shift.to(values.dtype).reshape(shape))
