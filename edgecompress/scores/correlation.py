"""Correlation of what a model says of rows, or of pairs of texts, with numbers given for them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError
from edgecompress.scores.base import Arrays, Batch, Score
from edgecompress.scores.reference import cosines

__all__ = ["Correlation", "pearson", "ranks", "spearman"]

Doubles = npt.NDArray[np.float64]


def ranks(values: npt.ArrayLike) -> Doubles:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, kinds, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Doubles = (last - (counts - 1) / 2)[kinds]
    return found


def pearson(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Pearson's correlation; 0 where one side does not vary."""
    a, b = (np.asarray(x, np.float64) for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / norm, -1, 1)) if norm > 0 else 0.0


def spearman(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Spearman's correlation: Pearson's of the ranks; 0 where one side does not vary."""
    return pearson(ranks(first), ranks(second))


class Correlation(Score):
    """One number per row, or per pair of rows the cosine of their embeddings, against labels.

    An embedding is held until that of its partner came; then only their cosine is.
    """

    def __init__(self, kind: Literal["spearman", "pearson"]) -> None:
        self.kind = kind
        self.found: list[float] = []
        self.labels: list[float] = []
        self.waiting: dict[int, Doubles] = {}

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        assert batch.labels is not None
        if batch.group == 1:
            self.found.extend(_one_number(outputs, batch.rows).tolist())
            self.labels.extend(batch.labels.astype(np.float64).tolist())
            return
        if batch.group != 2 or batch.source is None:
            raise DataError(
                f"pairs are compared, and the records have {batch.group} texts",
                where="data.texts",
                cure="name two columns: texts = [..., ...]",
            )
        embeddings = _embeddings(outputs, batch.rows)
        for row, label, embedding in zip(batch.source, batch.labels, embeddings, strict=True):
            partner = self.waiting.pop(int(row) // 2, None)
            if partner is None:
                self.waiting[int(row) // 2] = embedding.copy()
            else:
                self.found.append(float(cosines(embedding[None], partner[None])[0]))
                self.labels.append(float(label))

    def value(self) -> float:
        """The metric over all batches."""
        if len(self.found) < 2:
            raise DataError(
                f"a correlation needs two numbers at least, got {len(self.found)}", where="data"
            )
        finite = np.nan_to_num(np.array(self.found), nan=0.0)
        return (spearman if self.kind == "spearman" else pearson)(finite, self.labels)


def _one_number(outputs: Arrays, rows: int) -> npt.NDArray[Any]:
    name, output = next(iter(outputs.items()))
    if output.size != rows:
        raise DataError(
            f"expected one number per row, the output {name!r} has shape {list(output.shape)}",
            where="metric.output",
            cure="name an output of one number; for embeddings of pairs, texts = [..., ...] in "
            "[data]",
        )
    return output.reshape(-1).astype(np.float64)


def _embeddings(outputs: Arrays, rows: int) -> Doubles:
    for output in outputs.values():
        if output.ndim == 2 and len(output) == rows:
            return output.astype(np.float64)
    listed = ", ".join(f"{name} {list(output.shape)}" for name, output in outputs.items())
    raise DataError(
        f"expected an embedding [rows, size], the model's outputs are: {listed}",
        where="metric.output",
        cure="export the model with the mean over tokens, as it is used",
    )
