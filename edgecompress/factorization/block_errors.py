"""How far the outputs of a block are from those of the original one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgecompress.data.token_mask import real_values
from edgecompress.factorization.parts import held_out
from edgecompress.factorization.stages import Values
from edgecompress.walk.streams import WalkBatch

__all__ = ["Errors", "squares"]


class Errors:
    """Sums of squares of an output's errors, and of the output."""

    def __init__(self) -> None:
        self._sums = {True: [0.0, 0.0], False: [0.0, 0.0]}

    def add(self, batch: WalkBatch, found: tuple[float, float]) -> None:
        """Take in the :func:`squares` of a batch."""
        sums = self._sums[held_out(batch.place)]
        sums[0] += found[0]
        sums[1] += found[1]

    def relative(self) -> float:
        """On rows held out, or on all where there are none."""
        error, power = self._sums[True] if self._sums[True][1] else self._sums[False]
        return error / power if power else 0.0


def squares(
    names: Sequence[str], batch: WalkBatch, original: Values, current: Values
) -> tuple[float, float]:
    """Squares of the errors of some values, and of the values, without padding."""
    error = power = 0.0
    for name in names:
        y, z = original[name], current[name]
        if y.is_floating_point() and y.shape == z.shape:
            error += _energy((y - z).double(), batch)
            power += _energy(y.double(), batch)
    return error, power


def _energy(values: Tensor, batch: WalkBatch) -> float:
    mask = batch.source.mask
    real = values if mask is None else real_values(values, torch.from_numpy(mask))
    return float(real.square().sum())
