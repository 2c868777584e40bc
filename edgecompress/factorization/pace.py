"""How many rows pass at once."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.calibration import CalibrationSet

__all__ = ["Pace"]

_ROWS, _MOST_ROWS = 8, 64
_POSITIONS, _STEP_POSITIONS = 512, 2048  # of a batch, and of a step of the refinement
_SAMPLE = 32  # rows that tell how long they are
_LEAST_BATCHES = 8  # one of which judges


class Pace:
    """Batches of the walk and steps of the refinement, by how long the rows are."""

    def __init__(self, data: CalibrationSet, rows: int) -> None:
        """Look at some rows.

        Args:
            data: Where they come from.
            rows: How many there will be.
        """
        some = list(islice(data.batches("calibration", 1), _SAMPLE))
        lengths = [max(map(_length, batch.inputs.values()), default=0) for batch in some]
        self._length = sum(lengths) / len(lengths) if min(lengths, default=0) else 0.0
        self._rows = rows

    def batch(self, *, refined: bool) -> int:
        """Rows of a batch: of short texts many at once, of long ones few for a refinement."""
        wanted = _ROWS
        if self._length and refined:
            wanted = min(wanted, int(_STEP_POSITIONS / 2 / self._length))
        elif self._length:
            wanted = max(wanted, min(_MOST_ROWS, int(_POSITIONS / self._length)))
        return max(1, min(wanted, self._rows // _LEAST_BATCHES))

    def step(self, rows: int) -> int:
        """Rows of a step that would take ``rows``, if they are not long."""
        most = int(_STEP_POSITIONS / self._length) if self._length else rows
        return max(1, min(rows, most))


def _length(array: npt.NDArray[Any]) -> int:
    """Of a row of numbers that stand for text; 0 for everything else."""
    return array.shape[1] if array.ndim == 2 and np.issubdtype(array.dtype, np.integer) else 0
