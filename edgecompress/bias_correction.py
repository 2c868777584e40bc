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

import torch
from torch import Tensor

from edgecompress.calibration import CalibrationSet
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.torchgraph import as_tensors, to_torch

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
        progress: Told the rows done.

    Returns:
        Name of the layer's output in the float graph -> float64 [channels].
    """
    reference, tested = to_torch(original, device=device), to_torch(quantized, device=device)
    dims = {layer.output: layer.channel_dim for layer in layers}
    names = {layer.quantized_output: layer.output for layer in layers}
    shifts: dict[str, Tensor] = {}
    done = 0
    with torch.inference_mode():
        for number, batch in enumerate(data.batches("calibration")):
            if done >= rows:
                break
            feeds = as_tensors(batch.inputs)
            means: dict[str, Tensor] = {}

            def keep_mean(name: str, values: Tensor, means: dict[str, Tensor] = means) -> None:
                means[name] = _channel_mean(values, dims[name])

            def correct(
                name: str, values: Tensor, means: dict[str, Tensor] = means, number: int = number
            ) -> None:
                layer = names[name]
                shift = shifts.get(layer)
                if shift is not None:
                    _add(values, shift, dims[layer])
                left = means[layer] - _channel_mean(values, dims[layer])
                # The mean over all batches so far: each later batch moves it by its share.
                step = left / (number + 1)
                _add(values, step, dims[layer])
                shifts[layer] = step if shift is None else shift + step

            reference(feeds, observe=keep_mean, watch=set(dims), outputs=())
            tested(feeds, observe=correct, watch=set(names), outputs=())
            done += batch.rows
            progress("correct biases", min(done, rows), min(rows, data.calibration_rows))
    return shifts


def _channel_mean(values: Tensor, dim: int) -> Tensor:
    others = [d for d in range(values.dim()) if d != dim % values.dim()]
    return values.double().mean(others)


def _add(values: Tensor, shift: Tensor, dim: int) -> None:
    shape = [1] * values.dim()
    shape[dim] = -1
    values.add_(shift.to(values.dtype).reshape(shape))
