"""Scores: sums over batches that become one figure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.parts import Batch
from edgecompress.errors import DataError

__all__ = ["Arrays", "Batch", "Predict", "Score", "class_logits", "squeezed"]

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Predict = Callable[[dict[str, Array]], dict[str, Array]]


class Score(ABC):
    """Sums of one metric over batches, which come in any order of rows."""

    def prepare(self, predict: Predict, batch: Batch) -> None:  # noqa: B027
        """Look at the model before the first batch, and refuse one that cannot be judged so."""

    @abstractmethod
    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch; ``reference`` is empty where the metric needs none."""

    @abstractmethod
    def value(self) -> float:
        """The metric over all batches."""


def squeezed(output: Array) -> Array:
    """Without trailing axes of length one, as [N, classes, 1, 1] has them."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return output


def class_logits(
    output: Array, labels: Array, name: str, ignored: int
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Logits ``[labels, classes]`` and labels ``[labels]``; classes are the last axis or axis 1.

    Args:
        output: Of the model.
        labels: One for each row or position.
        name: Of the output, for messages.
        ignored: Positions with this label are left out.

    Raises:
        DataError: Labels and output do not fit.
    """
    flat_output = squeezed(output)
    for axis in (-1, 1):
        classes_last = np.moveaxis(flat_output, axis, -1) if flat_output.ndim > 1 else flat_output
        if classes_last.shape[:-1] == labels.shape and flat_output.ndim > 1:
            break
    else:
        raise DataError(
            f"labels of shape {list(labels.shape)} do not fit the output {name!r} of shape "
            f"{list(output.shape)}",
            where="data",
            cure="there must be one class number per row or position; name the logits in "
            "metric.output",
        )
    logits = classes_last.reshape(-1, classes_last.shape[-1])
    flat = labels.reshape(-1).astype(np.int64)
    logits, flat = logits[flat != ignored], flat[flat != ignored]
    wrong = flat[(flat < 0) | (flat >= logits.shape[1])]
    if wrong.size:
        raise DataError(
            f"expected labels from 0 to {logits.shape[1] - 1} for the output {name!r}, "
            f"got {wrong[0]}",
            where="data",
            cure="number the classes as the model does",
        )
    return logits, flat
