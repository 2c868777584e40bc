"""Which places of a layer are looked at, where there are more than its moments need."""

from __future__ import annotations

import numpy as np
import torch

from edgecompress.factorization.parts import Layer

__all__ = ["draw"]

# For each column of a weight, and of each row at least. Neighbours in an image tell nearly the
# same, but factors are fitted to more numbers than integers are.
_PER_COLUMN = 64
_LEAST_PER_ROW = 64


def draw(
    layer: Layer, rows: int, *, of_rows: int, seed: int, number: int
) -> tuple[int, torch.Generator]:
    """How many places of a batch are looked at, at most, and what draws them.

    Args:
        layer: The layer.
        rows: Of the batch.
        of_rows: Of all batches together, about; at least 1.
        seed: Of all draws.
        number: Of the batch.
    """
    most = max(_LEAST_PER_ROW, _PER_COLUMN * layer.columns // of_rows) * rows
    seeds = np.random.SeedSequence([seed, number])
    return most, torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
