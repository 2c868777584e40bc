"""Scores of class numbers: hits among the highest logits; precision, recall and F1."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompress.data.callables import IGNORED_LABEL
from edgecompress.errors import DataError
from edgecompress.scores.base import Arrays, Batch, Score, class_logits

__all__ = ["Average", "Confusion", "TopK"]

Average = Literal["macro", "micro", "binary"]


def _aligned(outputs: Arrays, batch: Batch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    name, output = next(iter(outputs.items()))
    assert batch.labels is not None
    labels = batch.labels
    if labels.ndim > 1 and output.ndim > 2 and labels.shape[1] > output.shape[1]:
        labels = _cut(labels, output.shape[1])
    return class_logits(output, labels, name, IGNORED_LABEL)


def _cut(labels: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Labels of a short batch, which an array fills up to the longest row's length."""
    return labels[:, :length] if (labels[:, length:] == IGNORED_LABEL).all() else labels


def _none_counted() -> DataError:
    return DataError(
        f"there is no label to compare with: all are {IGNORED_LABEL}, which counts for nothing",
        where="data",
    )


class TopK(Score):
    """Share of labels among the k highest logits; of equal logits the lower class ranks higher."""

    def __init__(self, k: int) -> None:
        self.k, self.hits, self.total = k, 0, 0

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        logits, labels = _aligned(outputs, batch)
        target = np.take_along_axis(logits, labels[:, None], axis=1)
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > target) | ((logits == target) & earlier)).sum(axis=1)
        self.hits += int(((rank < self.k) & ~np.isnan(logits).any(axis=1)).sum())
        self.total += len(labels)

    def value(self) -> float:
        """The metric over all batches."""
        if not self.total:
            raise _none_counted()
        return self.hits / self.total


class Confusion(Score):
    """Precision, recall or F1, from counts of hits, predictions and labels per class.

    Args:
        figure: Which of them.
        average: ``binary``: of class 1. ``macro``: mean over the classes that occur in labels or
            predictions. ``micro``: of all decisions together. None: binary for two classes, else
            macro. A figure without any case counts 0.
    """

    def __init__(
        self, figure: Literal["precision", "recall", "f1"], average: Average | None
    ) -> None:
        self.figure, self.average = figure, average
        self.counts = np.zeros((3, 0), np.int64)  # hits, predictions, labels

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        logits, labels = _aligned(outputs, batch)
        classes = logits.shape[1]
        if not self.counts.size:
            self.counts = np.zeros((3, classes), np.int64)
        numbers = ~np.isnan(logits).any(axis=1)  # a NaN predicts nothing
        predicted = logits[numbers].argmax(axis=1)
        hits = predicted[predicted == labels[numbers]]
        for row, found in enumerate((hits, predicted, labels)):
            self.counts[row] += np.bincount(found, minlength=classes)

    def value(self) -> float:
        """The metric over all batches."""
        if not self.counts[2].sum():
            raise _none_counted()
        hits, predicted, labels = self.counts.astype(np.float64)
        average = self.average or ("binary" if len(hits) == 2 else "macro")
        if average == "binary":
            if len(hits) != 2:
                raise DataError(
                    f"average 'binary' is for two classes, the model has {len(hits)}",
                    where="metric.average",
                    cure="use 'macro' or 'micro'",
                )
            hits, predicted, labels = hits[1:], predicted[1:], labels[1:]
        elif average == "micro":
            hits, predicted, labels = (x.sum(keepdims=True) for x in (hits, predicted, labels))
        else:
            occur = (predicted + labels) > 0
            hits, predicted, labels = hits[occur], predicted[occur], labels[occur]
        over = {"precision": predicted, "recall": labels, "f1": (predicted + labels) / 2}
        cases = over[self.figure]
        return float(np.mean(np.divide(hits, cases, out=np.zeros_like(hits), where=cases > 0)))
