"""What data-driven passes ask for, gathered in one sweep over the calibration rows.

Memory does not grow with the number of rows: each watched tensor keeps its extremes and one
histogram of fixed size. Statistics of disjoint batches merge exactly, in any order: the counts are
integers, and sums are taken in a tree over the numbers of the batches, so that shards of the rows
give the same bits as one sweep over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.data.token_mask import real_values
from edgecompress.errors import DataError, ModelError, nearest
from edgecompress.model import Model
from edgecompress.numerics.histogram import Histogram
from edgecompress.numerics.tree_sum import TreeSum
from edgecompress.progress import Progress, silent
from edgecompress.walk.walker import Walk, Watch

__all__ = ["TensorStatistics", "Statistics", "collect"]

SAMPLE_PER_ROW = 8192
"""Values of one row that go into a histogram; the extremes are taken over all of them."""

_SUMS = 6


@dataclass
class TensorStatistics:
    """Extremes and distribution of one tensor over all batches seen.

    Attributes:
        low: Exact smallest value, inf before the first row.
        high: Exact largest value, -inf before the first row.
        count: Number of values seen.
        histogram: Of an evenly spaced sample of each row.
        sums: float64 [6] by batch: number, sum and sum of squares of the sample; then 1 and the
            extremes of the batch, or three zeros where it has no values.
    """

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    histogram: Histogram = field(default_factory=Histogram)
    sums: TreeSum = field(default_factory=TreeSum)

    @property
    def mean(self) -> float:
        """Mean of the sample; NaN before the first row."""
        number, total, *_ = self._totals()
        return total / number if number else math.nan

    @property
    def rms(self) -> float:
        """Root mean square of the sample; NaN before the first row."""
        number, _, squares, *_ = self._totals()
        return math.sqrt(squares / number) if number else math.nan

    @property
    def averaged(self) -> tuple[float, float]:
        """Extremes of a batch, on average over the batches; NaN before the first row."""
        *_, batches, low, high = self._totals()
        return (low / batches, high / batches) if batches else (math.nan, math.nan)

    def _totals(self) -> list[float]:
        found: list[float] = self.sums.total().tolist() if self.sums.nodes else [0.0] * _SUMS
        return found

    def add(self, batch: int, values: Tensor, mask: Tensor | None = None) -> None:
        """Take in a batch, rows along the first dimension.

        Args:
            batch: Its number; each only once.
            values: Numbers, all finite.
            mask: bool [rows, length]: which positions are no padding; None where all are.

        Raises:
            ValueError: Some values are NaN or infinite, or the batch was taken in before.
        """
        sampled = torch.zeros(_SUMS, dtype=torch.float64)
        low, high = math.inf, -math.inf
        for rows in _real(values, mask):
            if rows.numel() == 0:
                continue
            smallest, largest = _extremes(rows)
            if not math.isfinite(smallest) or not math.isfinite(largest):
                raise ValueError("values are NaN or infinite")
            low, high = min(low, smallest), max(high, largest)
            self.count += rows.numel()
            sample = rows[:, :: _stride(rows.shape[1])]
            self.histogram.add(sample, max(abs(smallest), abs(largest)))
            exact = sample.double()
            sampled[0] += exact.numel()
            sampled[1] += exact.sum()
            sampled[2] += exact.square().sum()
        if low <= high:
            self.low, self.high = min(self.low, low), max(self.high, high)
            sampled[3:] = torch.tensor([1.0, low, high], dtype=torch.float64)
        self.sums.add(batch, sampled)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Statistics of both sets of batches; exact, commutative and associative."""
        return TensorStatistics(
            min(self.low, other.low),
            max(self.high, other.high),
            self.count + other.count,
            self.histogram.merge(other.histogram),
            self.sums.merge(other.sums),
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


def collect(
    model: Model,
    calibration: CalibrationSet,
    names: Collection[str],
    *,
    shard: tuple[int, int] = (0, 1),
    threads: int = 1,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Run the calibration rows through the model and keep statistics of the named values.

    Args:
        model: The graph.
        calibration: Rows; padded positions count in no statistic.
        names: Values of the main graph.
        shard: Number of this shard, and of how many; the batches are shared out.
        threads: Batches on their way at once.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit. With a limit
            the rows go through the model block by block.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.

    Raises:
        DataError: A watched tensor holds NaN or infinite values.
        ModelError: The graph has no such value.
        OutputError: The scratch folder cannot be written.
    """
    _check_known(model, names)
    statistics = Statistics({name: TensorStatistics() for name in names})
    locks = {name: Lock() for name in names}
    rows: dict[int, int] = {}

    def see(batch: Batch, name: str, values: Tensor) -> None:
        rows[batch.number] = batch.rows
        mask = None if batch.mask is None else torch.from_numpy(batch.mask)
        try:
            with locks[name]:
                statistics.tensors[name].add(batch.number, values, mask)
        except ValueError as error:
            raise _not_finite(name, values) from error

    walk = Walk(
        model,
        calibration,
        shard=shard,
        threads=threads,
        device=device,
        memory=memory,
        scratch=scratch,
        progress=progress,
        label="calibrate",
    )
    for step in walk:
        step.advance(Watch(names, see))
    statistics.rows = sum(rows.values())
    return statistics


def _check_known(model: Model, names: Collection[str]) -> None:
    graph = model.ir.graph
    known = {v.name or "" for v in graph.inputs} | {v.name or "" for n in graph for v in n.outputs}
    for name in sorted(set(names) - known):
        raise ModelError(f"has no value {name!r}", cure=nearest(name, sorted(known)[:200]))


def _real(values: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
    """The values without padding, as [rows, values per row]."""
    if mask is None:
        yield values.reshape(values.shape[0] if values.dim() > 1 else 1, -1)
        return
    if values.dim() == 0 or values.shape[0] != len(mask):
        yield real_values(values, mask).reshape(1, -1)
        return
    # One by one, so that each row is sampled as it would be without its padding.
    for row in range(len(mask)):
        yield real_values(values[row : row + 1], mask[row : row + 1]).reshape(1, -1)


def _stride(elements: int) -> int:
    """An odd step that leaves at most ``SAMPLE_PER_ROW`` elements.

    Odd, so that it does not run down the columns of the usual even-sized feature maps.
    """
    step = math.ceil(elements / SAMPLE_PER_ROW)
    return step if step == 1 else step | 1


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
