"""Scores: sums over batches that become one figure, and the mathematics of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError, RecipeError
from edgecompress.references import user_line

__all__ = ["BUILT_IN", "Arrays", "Score", "sqnr_db"]

Arrays = Mapping[str, npt.NDArray[Any]]


class Score(ABC):
    """Sums of one metric over batches."""

    @abstractmethod
    def add(
        self, outputs: Arrays, reference: Arrays, labels: npt.NDArray[Any] | None, rows: int
    ) -> None:
        """Take in one batch; ``reference`` is empty where the metric needs none."""

    @abstractmethod
    def value(self) -> float:
        """The metric over all batches."""


def sqnr_db(reference: npt.NDArray[Any], test: npt.NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB: 10 log10(sum(ref^2) / sum((ref - test)^2)).

    Infinite for equal arrays, minus infinite where the reference is zero and the test is not, or
    where ``test`` holds NaN or infinite values.
    """
    return _decibel(*_energies(reference, test))


def _energies(reference: npt.NDArray[Any], test: npt.NDArray[Any]) -> tuple[float, float]:
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


class TopK(Score):
    """Share of labels among the k highest logits; of equal logits the lower class ranks higher."""

    def __init__(self, k: int) -> None:
        self.k, self.hits, self.total = k, 0, 0

    def add(
        self, outputs: Arrays, reference: Arrays, labels: npt.NDArray[Any] | None, rows: int
    ) -> None:
        name, output = next(iter(outputs.items()))
        assert labels is not None
        logits, labels = _aligned(output, labels, name)
        target = np.take_along_axis(logits, labels[:, None], axis=1)
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > target) | ((logits == target) & earlier)).sum(axis=1)
        self.hits += int(((rank < self.k) & ~np.isnan(logits).any(axis=1)).sum())
        self.total += len(labels)

    def value(self) -> float:
        return self.hits / self.total


def _aligned(
    output: npt.NDArray[Any], labels: npt.NDArray[Any], name: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Logits ``[labels, classes]`` and labels ``[labels]``; classes are the last axis or axis 1."""
    squeezed = _squeezed(output)
    for axis in (-1, 1):
        classes_last = np.moveaxis(squeezed, axis, -1) if squeezed.ndim > 1 else squeezed
        if classes_last.shape[:-1] == labels.shape and squeezed.ndim > 1:
            break
    else:
        raise DataError(
            f"labels of shape {list(labels.shape)} do not fit the output {name!r} of shape "
            f"{list(output.shape)}",
            where="data",
            cure="top1 and top5 need one class number per row; name the logits in metric.output",
        )
    logits = classes_last.reshape(-1, classes_last.shape[-1])
    flat = labels.reshape(-1).astype(np.int64)
    wrong = flat[(flat < 0) | (flat >= logits.shape[1])]
    if wrong.size:
        raise DataError(
            f"expected labels from 0 to {logits.shape[1] - 1} for the output {name!r}, "
            f"got {wrong[0]}",
            where="data",
            cure="number the classes as the model does",
        )
    return logits, flat


def _squeezed(output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without trailing axes of length one, as [N, classes, 1, 1] has them."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return output


class Agreement(Score):
    """Share of rows with the same highest logit as the float model."""

    def __init__(self) -> None:
        self.hits, self.total = 0, 0

    def add(
        self, outputs: Arrays, reference: Arrays, labels: npt.NDArray[Any] | None, rows: int
    ) -> None:
        name = next(iter(outputs))
        _same_shape(name, outputs, reference)
        logits, expected = _squeezed(outputs[name]), _squeezed(reference[name])
        same = (logits.argmax(-1) == expected.argmax(-1)) & ~np.isnan(logits).any(-1)
        self.hits += int(same.sum())
        self.total += same.size

    def value(self) -> float:
        return self.hits / self.total


class Cosine(Score):
    """Mean over rows, then over outputs; a row that is not finite counts 0."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.rows = 0

    def add(
        self, outputs: Arrays, reference: Arrays, labels: npt.NDArray[Any] | None, rows: int
    ) -> None:
        self.rows += rows
        for name in outputs:
            _same_shape(name, outputs, reference)
            a, b = _by_row(outputs[name], rows), _by_row(reference[name], rows)
            similar = float(_cosines(a, b).mean()) * rows
            self.sums[name] = self.sums.get(name, 0.0) + similar

    def value(self) -> float:
        return sum(self.sums.values()) / (len(self.sums) * self.rows)


def _by_row(output: npt.NDArray[Any], rows: int) -> npt.NDArray[np.float64]:
    """Flattened per row; as one row where the first axis does not count rows."""
    values = np.asarray(output, np.float64)
    return values.reshape(rows if values.ndim and len(values) == rows else 1, -1)


def _cosines(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / norms
    cosines = np.where(np.isfinite(cosines), cosines, 0.0)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, np.clip(cosines, -1.0, 1.0))


class Sqnr(Score):
    """Over all rows at once, for each output; the lowest of them."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(
        self, outputs: Arrays, reference: Arrays, labels: npt.NDArray[Any] | None, rows: int
    ) -> None:
        for name in outputs:
            _same_shape(name, outputs, reference)
            signal, noise = _energies(reference[name], outputs[name])
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = before[0] + signal, before[1] + noise

    def value(self) -> float:
        return min(_decibel(*sums) for sums in self.sums.values())


def _same_shape(name: str, outputs: Arrays, reference: Arrays) -> None:
    expected, got = reference[name].shape, outputs[name].shape
    if expected != got:
        raise DataError(
            f"the output {name!r} has shape {list(got)}, the float model's {list(expected)}",
            where="metric",
            cure="name an output of fixed shape in metric.output, or use a function of your own",
        )


class UserFunction(Score):
    """Gathers all outputs and calls the user's function once."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        self.outputs: dict[str, list[npt.NDArray[Any]]] = {}
        self.labels: list[npt.NDArray[Any]] = []

    def add(
        self, outputs: Arrays, reference: Arrays, labels: npt.NDArray[Any] | None, rows: int
    ) -> None:
        for name, output in outputs.items():
            self.outputs.setdefault(name, []).append(np.atleast_1d(output))
        if labels is not None:
            self.labels.append(labels)

    def value(self) -> float:
        try:
            outputs = {name: np.concatenate(parts) for name, parts in self.outputs.items()}
            labels = np.concatenate(self.labels) if self.labels else None
            value = float(self.function(outputs, labels))
        except Exception as error:
            file = getattr(getattr(self.function, "__code__", None), "co_filename", None)
            raise RecipeError(
                f"failed: {type(error).__name__}: {error}",
                where=f"metric {self.name} ({user_line(error, file)})",
                cure="it is called as function(outputs, labels) and returns one number",
            ) from error
        if np.isnan(value):
            raise RecipeError("returned NaN, expected a number", where=f"metric {self.name}")
        return value


BUILT_IN: dict[str, tuple[bool, bool, Callable[[], Score]]] = {
    "top1": (True, False, partial(TopK, 1)),
    "top5": (True, False, partial(TopK, 5)),
    "cosine": (False, True, Cosine),
    "sqnr": (False, True, Sqnr),
    "agreement": (False, True, Agreement),
}
"""Name -> whether it needs labels, whether it needs the float model, and the sums."""
