"""A streaming histogram that merges exactly, whatever the order of batches or shards.

Bins have a width of 2^e on a grid anchored at zero. When a larger value arrives, e grows and
neighbouring bins are added up in pairs, which loses no count; so the final bins depend only on the
values, not on their order, and two histograms of different width merge by coarsening the finer one.
The memory is constant: 2 x ``HALF`` counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Histogram"]

HALF = 2048
_FINEST = -149  # exponent of the smallest float32
_SMALLEST_NORMAL = -126  # exponent of the smallest normal float32


@dataclass
class Histogram:
    """Counts of values in 2 x 2048 bins of width ``2**exponent`` around zero.

    Attributes:
        counts: int64 [4096]; bin i holds values in ``[(i - 2048) w, (i - 2047) w)``.
        exponent: log2 of the bin width w.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(2 * HALF, dtype=torch.int64))
    exponent: int = _FINEST

    @property
    def width(self) -> float:
        """Bin width."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> Tensor:
        """Middle of each bin, float64 [4096]."""
        return (torch.arange(2 * HALF, dtype=torch.float64) - HALF + 0.5) * self.width

    def add(self, values: Tensor, largest: float) -> None:
        """Count finite values.

        Args:
            values: Any shape.
            largest: Upper bound of their absolute values; every call may pass its own.
        """
        self._coarsen(_exponent_for(largest))
        # Scaling by a power of two is exact, so the bin does not depend on the path to this width.
        scale = math.ldexp(1.0, -self.exponent)
        scaled = self._wide_enough(values.detach()) * scale
        index = scaled.floor_().to(torch.int32).add_(HALF).clamp_(0, 2 * HALF - 1)
        self.counts += torch.bincount(index.reshape(-1), minlength=2 * HALF).cpu()

    def _wide_enough(self, values: Tensor) -> Tensor:
        """In float32 where nothing can overflow or underflow when scaled: it is twice as fast."""
        exact = values.dtype == torch.float32 and _SMALLEST_NORMAL <= self.exponent <= 0
        return values if exact else values.double()

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both sets of values; exact, commutative and associative."""
        exponent = max(self.exponent, other.exponent)
        mine, theirs = (Histogram(h.counts.clone(), h.exponent) for h in (self, other))
        mine._coarsen(exponent)
        theirs._coarsen(exponent)
        return Histogram(mine.counts + theirs.counts, exponent)

    def _coarsen(self, exponent: int) -> None:
        steps = exponent - self.exponent
        if steps <= 0:
            return
        self.exponent = exponent
        if not self.counts.any():
            return
        for _ in range(min(steps, HALF.bit_length() + 1)):
            pairs = self.counts.reshape(-1, 2).sum(1)  # [HALF]: the middle half of the new bins
            self.counts = torch.zeros_like(self.counts)
            self.counts[HALF // 2 : HALF // 2 + HALF] = pairs


def _exponent_for(largest: float) -> int:
    """Smallest e with ``largest < HALF * 2**e``."""
    if largest == 0:
        return _FINEST
    return max(_FINEST, math.frexp(largest)[1] - HALF.bit_length() + 1)
