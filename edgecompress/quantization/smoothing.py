"""SmoothQuant with the strength searched: how much of each group's outliers goes into its weights.

For every group the layers that read its channels are computed on integers with the factors of each
strength alpha, and without, on a sample of the calibration rows. The one with the least output
error is taken, if it also is better than none on rows that it was not chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from edgecompress.constraints import Int8Format
from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.model import Model
from edgecompress.numerics.equalize import powers_of_two, smoothing_scales
from edgecompress.numerics.one_thread import one_thread
from edgecompress.parallel.threads import in_order
from edgecompress.progress import Progress, silent
from edgecompress.quantization.equalization import Group
from edgecompress.quantization.layer_error import InputSample, LayerError, input_sample
from edgecompress.quantization.linear_channels import Arrival
from edgecompress.walk.walker import Walk, Watch

__all__ = ["ALPHAS", "Choice", "search_alphas"]

ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, eq=False)
class Choice:
    """What was found best for a group.

    Attributes:
        group: The group.
        alpha: Strength; None where nothing is better than leaving it alone.
        scales: float64 [channels].
        before: Squared error over squared output of its layers without factors, added up.
        after: The same with them.
    """

    group: Group
    alpha: float | None
    scales: Tensor
    before: float
    after: float


def search_alphas(
    model: Model,
    groups: Sequence[Group],
    data: CalibrationSet,
    int8: Int8Format,
    *,
    alphas: Sequence[float] = ALPHAS,
    rows: int,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> list[Choice]:
    """Choose the strength for each group, in one walk over the rows.

    Args:
        model: The float model that the groups are of.
        groups: Groups.
        data: Where calibration rows come from.
        int8: The target's formats.
        alphas: Strengths to try.
        rows: How many calibration rows, about.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.

    Raises:
        DataError: An activation is NaN or infinite.
    """
    if not groups:
        return []
    batches = -(-min(rows, data.calibration_rows) // data.batch_size)
    samples = {
        _input(layer): input_sample(layer.node, batches)
        for group in groups
        for layer in group.layers
    }

    lock = Lock()

    def see(batch: Batch, name: str, values: Tensor) -> None:
        with lock:
            samples[name].add(batch, values)

    waiting, choices = list(groups), list[Choice]()
    with one_thread() as threads:
        walk = Walk(
            model,
            data,
            rows=rows,
            threads=threads,
            device=device,
            memory=memory,
            scratch=scratch,
            progress=progress,
            label="equalize",
        )
        choose = partial(_choose, model, samples, int8, alphas)
        for step in walk:
            step.advance(Watch(tuple(samples), see))
            ready = [g for g in waiting if all(samples[_input(a)].is_filled for a in g.layers)]
            choices += [
                choice
                for _, choice in in_order(choose, ready, threads, partial(torch.set_num_threads, 1))
            ]
            waiting = [group for group in waiting if group not in ready]
            needed = {_input(layer) for group in waiting for layer in group.layers}
            for name in samples.keys() - needed:
                if samples[name].is_filled:
                    del samples[name]
    return choices


def _choose(
    model: Model,
    samples: dict[str, InputSample],
    int8: Int8Format,
    alphas: Sequence[float],
    group: Group,
) -> Choice:
    trial = _Trial(model, group, samples, int8)
    none = torch.ones(group.source.channels, dtype=torch.float64)
    tried: dict[float | None, Tensor] = {None: none}
    for alpha in alphas:
        tried[alpha] = powers_of_two(smoothing_scales(trial.activations, trial.weights, alpha))
    errors = {alpha: trial.error(scales, 0) for alpha, scales in tried.items()}
    best = min(errors, key=errors.__getitem__)  # of equals the first: none
    before, after = trial.error(none, 1), trial.error(tried[best], 1)
    if best is None or after >= before:
        return Choice(group, None, none, before, before)
    return Choice(group, best, tried[best], before, after)


class _Trial:
    """The layers of a group with the sample of what they read.

    Attributes:
        activations: float64 [channels], largest absolute value of each.
        weights: float64 [channels], largest absolute weight that reads it.
    """

    def __init__(
        self, model: Model, group: Group, samples: dict[str, InputSample], int8: Int8Format
    ) -> None:
        self._int8 = int8
        self._layers = [
            (layer, LayerError(model, layer.node, int8), samples[_input(layer)])
            for layer in group.layers
        ]
        largest = partial(torch.zeros, group.source.channels, dtype=torch.float64)
        self.activations, self.weights = largest(), largest()
        for layer, alone, sample in self._layers:
            _raise_to(self.activations, torch.from_numpy(layer.labels), sample.largest)
            labels = torch.from_numpy(layer.weight.labels).expand(alone.weight.shape)
            _raise_to(self.weights, labels, alone.weight.abs())
        self._references = [
            tuple(alone.output(half) for half in sample.halves) for _, alone, sample in self._layers
        ]

    def error(self, scales: Tensor, half: int) -> float:
        """Error of all layers together with the group's channels divided by ``scales``."""
        grids: dict[tuple[str, bytes], Tensor] = {}
        total = 0.0
        for (layer, alone, sample), reference in zip(self._layers, self._references, strict=True):
            key = sample.name, layer.labels.tobytes()
            if key not in grids:
                grids[key] = sample.on_grid(
                    scales[torch.from_numpy(layer.labels)], half, self._int8
                )
            factors = scales[torch.from_numpy(layer.weight.labels)]
            total += alone.error(reference[half], grids[key], factors)
        return total


def _raise_to(largest: Tensor, labels: Tensor, values: Tensor) -> None:
    largest.scatter_reduce_(0, labels.reshape(-1), values.double().reshape(-1), "amax")


def _input(layer: Arrival) -> str:
    value = layer.node.inputs[0]
    return "" if value is None or value.name is None else value.name
