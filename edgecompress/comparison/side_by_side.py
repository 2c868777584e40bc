"""Both graphs over the same rows, in one walk, with the values of the two beside each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.data.token_mask import real_values
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.walk.walker import Walk, Watch

__all__ = [
    "MAX_ROWS",
    "Setting",
    "Watcher",
    "comparable",
    "difference",
    "power",
    "run_both",
    "signal_power",
]

MAX_ROWS = 64
# All watched activations of a batch are held at once, so batches are small.
_BATCH_ROWS = 4


@dataclass(frozen=True)
class Setting:
    """How a comparison runs.

    Attributes:
        rows: At most so many.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.
    """

    rows: int = MAX_ROWS
    device: str = "cpu"
    memory: int | None = None
    scratch: Path | None = None
    progress: Progress = field(default=silent)


class Watcher(Protocol):
    """Somebody who looks at values while both graphs run over the same rows."""

    @property
    def ours(self) -> Collection[str]:
        """Values of the original graph that are to be held."""

    @property
    def theirs(self) -> Collection[str]:
        """Values of the compressed graph that :meth:`see` is called with, in graph order."""

    def see(self, batch: Batch, name: str, values: Tensor, originals: Mapping[str, Tensor]) -> None:
        """Look at a value of the compressed graph.

        Args:
            batch: The rows.
            name: In the compressed graph.
            values: The value.
            originals: What the original graph computed from the same rows, by name.
        """

    def leave(self) -> None:
        """A block is done; what was held for it alone can go."""


def run_both(
    original: Model,
    compressed: Model,
    data: CalibrationSet,
    watchers: Sequence[Watcher],
    setting: Setting,
) -> None:
    """Run both graphs, each on its own activations, and show their values.

    Args:
        original: The reference.
        compressed: The other model, with the same inputs.
        data: Rows; validation rows, or calibration rows where there are none.
        watchers: Shown the values.
        setting: How it runs.
    """
    held = _Held()
    waiting: dict[str, list[Watcher]] = {}
    for watcher in watchers:
        for name in watcher.theirs:
            waiting.setdefault(name, []).append(watcher)

    def see(batch: Batch, name: str, values: Tensor) -> None:
        if isinstance(values, Tensor):  # a sequence has no noise
            for watcher in waiting[name]:
                watcher.see(batch, name, values, held.values)

    walk = Walk(
        original,
        data,
        current=compressed,
        split="validation" if data.validation_rows else "calibration",
        rows=setting.rows,
        batch_size=_BATCH_ROWS,
        device=setting.device,
        memory=setting.memory,
        scratch=setting.scratch,
        progress=setting.progress,
        label="compare",
    )
    ours = {name for watcher in watchers for name in watcher.ours}
    for step in walk:
        # A cut may lie between a value and the Q/DQ pair that is compared with it.
        step.advance(Watch(ours, held.hold, again=True), Watch(waiting, see))
        held.values.clear()
        for watcher in watchers:
            watcher.leave()


@dataclass
class _Held:
    """What the original graph computed from the batch at hand."""

    values: dict[str, Tensor] = field(default_factory=dict)
    batch: Batch | None = None

    def hold(self, batch: Batch, name: str, values: Tensor) -> None:
        if batch is not self.batch:
            self.values.clear()
            self.batch = batch
        self.values[name] = values


def comparable(reference: Tensor, values: Tensor) -> bool:
    """Whether two values are floats of one shape."""
    floats = reference.is_floating_point() and values.is_floating_point()
    return floats and reference.shape == values.shape


def difference(reference: Tensor, values: Tensor) -> Tensor:
    """What was lost; nothing where both are the same infinity, as in masks."""
    lost = values.to(reference.dtype) - reference
    if not torch.isfinite(lost.sum()):
        lost = lost.masked_fill(values.to(reference.dtype) == reference, 0)
        lost = lost.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    return lost


def signal_power(reference: Tensor, batch: Batch) -> float:
    """Sum of squares of what is finite, without padding."""
    found = power(reference, batch)
    if math.isfinite(found):
        return found
    return power(reference.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), batch)


def power(values: Tensor, batch: Batch) -> float:
    """Sum of squares in float64, without padding."""
    if batch.mask is not None:
        values = real_values(values, torch.from_numpy(batch.mask))
    flat = values.double().flatten()
    return float(torch.dot(flat, flat))
