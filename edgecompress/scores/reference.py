"""Scores against the float model's outputs; padded positions count in none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.token_mask import position_mask
from edgecompress.errors import DataError
from edgecompress.scores.base import Arrays, Batch, Score, squeezed

__all__ = ["Agreement", "Cosine", "MeanSquaredError", "Sqnr", "cosines", "sqnr_db"]

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


def sqnr_db(reference: Array, test: Array) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum(ref^2) / sum((ref - test)^2)).

    Infinite for equal arrays, minus infinite where the reference is zero and the test is not, or
    where ``test`` holds NaN or infinite values.
    """
    return _decibel(*_energies(reference, test))


def _energies(reference: Array, test: Array) -> tuple[float, float]:
    signal = np.asarray(reference, np.float64).ravel()
    with np.errstate(invalid="ignore"):  # infinite - infinite
        noise = signal - np.asarray(test, np.float64).ravel()
    return float(signal @ signal), float(noise @ noise)


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    if signal == 0 or not np.isfinite(noise):
        return float("-inf")
    return float(10 * np.log10(signal / noise))


def _same_shape(name: str, outputs: Arrays, reference: Arrays) -> None:
    expected, got = reference[name].shape, outputs[name].shape
    if expected != got:
        raise DataError(
            f"the output {name!r} has shape {list(got)}, the float model's {list(expected)}",
            where="metric",
            cure="name an output of fixed shape in metric.output, or use a function of your own",
        )


def _real(output: Array, batch: Batch) -> Array:
    """The output with zeros at padded positions."""
    real = None if batch.mask is None else position_mask(output.shape, batch.mask)
    return output if real is None else np.where(real, output, np.zeros((), output.dtype))


def _real_count(output: Array, batch: Batch) -> int:
    real = None if batch.mask is None else position_mask(output.shape, batch.mask)
    return output.size if real is None else int(np.broadcast_to(real, output.shape).sum())


class Agreement(Score):
    """Share of rows, or of real positions, with the same highest logit as the float model."""

    def __init__(self) -> None:
        self.hits, self.total = 0, 0

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        name = next(iter(outputs))
        _same_shape(name, outputs, reference)
        logits, expected = squeezed(outputs[name]), squeezed(reference[name])
        same = (logits.argmax(-1) == expected.argmax(-1)) & ~np.isnan(logits).any(-1)
        self.hits += int(_real(same, batch).sum())
        self.total += _real_count(same, batch)

    def value(self) -> float:
        """The metric over all batches."""
        return self.hits / self.total


class Cosine(Score):
    """Mean over rows, then over outputs; a row that is not finite counts 0."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.rows = 0

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        rows = batch.rows
        self.rows += rows
        for name in outputs:
            _same_shape(name, outputs, reference)
            a, b = (_by_row(_real(side[name], batch), rows) for side in (outputs, reference))
            similar = float(cosines(a, b).mean()) * rows
            self.sums[name] = self.sums.get(name, 0.0) + similar

    def value(self) -> float:
        """The metric over all batches."""
        return sum(self.sums.values()) / (len(self.sums) * self.rows)


def _by_row(output: Array, rows: int) -> Doubles:
    """Flattened per row; as one row where the first axis does not count rows."""
    values = np.asarray(output, np.float64)
    return values.reshape(rows if values.ndim and len(values) == rows else 1, -1)


def cosines(a: Doubles, b: Doubles) -> Doubles:
    """Cosine of rows ``[rows, size]``: 1 where both are zero, 0 where one is not finite."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found = (a * b).sum(axis=1) / norms
    found = np.where(np.isfinite(found), found, 0.0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, np.clip(found, -1.0, 1.0))


class Sqnr(Score):
    """Over all rows at once, for each output; the lowest of them."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        for name in outputs:
            _same_shape(name, outputs, reference)
            signal, noise = _energies(*(_real(side[name], batch) for side in (reference, outputs)))
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = before[0] + signal, before[1] + noise

    def value(self) -> float:
        """The metric over all batches."""
        return min(_decibel(*sums) for sums in self.sums.values())


class MeanSquaredError(Score):
    """Mean of squared differences over all values, for each output; the highest of them."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        for name in outputs:
            _same_shape(name, outputs, reference)
            _, noise = _energies(*(_real(side[name], batch) for side in (reference, outputs)))
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + noise, count + _real_count(outputs[name], batch)

    def value(self) -> float:
        """The metric over all batches."""
        found = [total / count if count else 0.0 for total, count in self.sums.values()]
        return float("inf") if np.isnan(found).any() else max(found)
