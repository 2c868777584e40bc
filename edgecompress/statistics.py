"""What data-driven passes ask for, gathered in one sweep over the calibration rows.

Memory does not grow with the number of rows: each watched tensor keeps its extremes and one
histogram of fixed size. Statistics of disjoint rows merge exactly, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgecompress.calibration import CalibrationSet
from edgecompress.errors import DataError
from edgecompress.model import Model
from edgecompress.numerics.histogram import Histogram
from edgecompress.progress import Progress, silent
from edgecompress.torchgraph import as_tensors, to_torch

__all__ = ["TensorStatistics", "Statistics", "collect"]

SAMPLE_PER_ROW = 8192
"""Values of one row that go into a histogram; the extremes are taken over all of them."""


@dataclass
class TensorStatistics:
    """Extremes and distribution of one tensor over all rows seen.

    Attributes:
        low: Exact smallest value, inf before the first row.
        high: Exact largest value, -inf before the first row.
        count: Number of values seen.
        histogram: Of an evenly spaced sample of each row.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, values: Tensor) -> None:
        """Take in a batch, rows along the first dimension."""
        self._add(values, *_extremes(values))

    def _add(self, values: Tensor, smallest: float, largest: float) -> None:
        self.low, self.high = min(self.low, smallest), max(self.high, largest)
        self.count += values.numel()
        rows = values.reshape(values.shape[0], -1) if values.dim() > 1 else values.reshape(1, -1)
        sample = rows[:, :: _stride(rows.shape[1])]
        self.histogram.add(sample, max(abs(smallest), abs(largest)))

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Statistics of both sets of rows."""
        return TensorStatistics(
            min(self.low, other.low),
            max(self.high, other.high),
            self.count + other.count,
            self.histogram.merge(other.histogram),
        )


@dataclass
class Statistics:
    """Statistics of several tensors over the same rows."""

    tensors: dict[str, TensorStatistics] = field(default_factory=dict)
    rows: int = 0

    def __getitem__(self, name: str) -> TensorStatistics:
        return self.tensors[name]

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sets of rows; exact, commutative and associative."""
        names = self.tensors.keys() | other.tensors.keys()
        empty = TensorStatistics()
        return Statistics(
            {
                n: self.tensors.get(n, empty).merge(other.tensors.get(n, empty))
                for n in sorted(names)
            },
            self.rows + other.rows,
        )


def _stride(elements: int) -> int:
    """An odd step that leaves at most ``SAMPLE_PER_ROW`` elements.

    Odd, so that it does not run down the columns of the usual even-sized feature maps.
    """
    step = math.ceil(elements / SAMPLE_PER_ROW)
    return step if step == 1 else step | 1


def collect(
    model: Model,
    calibration: CalibrationSet,
    names: Collection[str],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Statistics:
    """Run the calibration rows through the model and keep statistics of the named values.

    Raises:
        DataError: A watched tensor holds NaN or infinite values.
        UnsupportedOperatorError: The graph has operators that torch cannot run.
    """
    graph = to_torch(model, device=device)
    statistics = Statistics({name: TensorStatistics() for name in names})
    total = calibration.calibration_rows

    def observe(name: str, values: Tensor) -> None:
        if values.numel():
            smallest, largest = _extremes(values)
            if not math.isfinite(smallest) or not math.isfinite(largest):
                raise _not_finite(name, values)
            statistics.tensors[name]._add(values, smallest, largest)

    with torch.inference_mode():
        for batch in calibration.batches("calibration"):
            feeds = as_tensors(batch.inputs)
            graph(feeds, observe=observe, watch=names, outputs=())
            statistics.rows += len(next(iter(batch.inputs.values())))
            progress("calibrate", min(statistics.rows, total), total)
    return statistics


def _extremes(values: Tensor) -> tuple[float, float]:
    """Smallest and largest value; both NaN where any value is."""
    smallest, largest = torch.aminmax(values)
    return float(smallest), float(largest)


def _not_finite(name: str, values: Tensor) -> DataError:
    bad = int((~torch.isfinite(values)).sum())
    return DataError(
        f"{bad:,} of {values.numel():,} values are NaN or infinite",
        where=f"tensor {name!r} during calibration",
        cure="the float model overflows on these rows; check the preprocessing and the weights",
    )
