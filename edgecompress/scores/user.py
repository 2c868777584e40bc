"""A function of the user's as a score."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import RecipeError
from edgecompress.references import user_line
from edgecompress.scores.base import Arrays, Batch, Score

__all__ = ["UserFunction"]

Array = npt.NDArray[Any]


class _Gathered:
    """One output of all batches, put back into the order of the rows."""

    def __init__(self) -> None:
        self.parts: list[tuple[Array, Batch]] = []

    def joined(self) -> Array | list[Array]:
        """An array; a list of one array per row where their shapes differ."""
        arrays = [array for array, _ in self.parts]
        if not all(array.ndim and len(array) == batch.rows for array, batch in self.parts):
            return np.concatenate([np.atleast_1d(array) for array in arrays])
        order = np.argsort(np.concatenate([batch.index for _, batch in self.parts]))
        if len({array.shape[1:] for array in arrays}) == 1:
            return np.asarray(np.concatenate(arrays)[order])
        rows = [row for array in arrays for row in array]
        return [rows[place] for place in order]


class UserFunction(Score):
    """Gathers all outputs and calls the user's function once.

    A function of three arguments without defaults gets the model's inputs as well.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        self.outputs: dict[str, _Gathered] = {}
        self.inputs: dict[str, _Gathered] = {}
        self.labels = _Gathered()
        self.wants_inputs = _required(function) == 3

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        for name, output in outputs.items():
            self.outputs.setdefault(name, _Gathered()).parts.append((output, batch))
        if batch.labels is not None:
            self.labels.parts.append((batch.labels, batch))
        for name, array in batch.inputs.items() if self.wants_inputs else ():
            self.inputs.setdefault(name, _Gathered()).parts.append((array, batch))

    def value(self) -> float:
        """The metric over all batches."""
        try:
            outputs = {name: gathered.joined() for name, gathered in self.outputs.items()}
            labels = self.labels.joined() if self.labels.parts else None
            inputs = {name: gathered.joined() for name, gathered in self.inputs.items()}
            value = float(self.function(outputs, labels, *([inputs] if self.wants_inputs else [])))
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


def _required(function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built-in functions may have no signature
        return 2
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)
