"""Metrics: what "still good" means, on the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from edgecompress.calibration import CalibrationSet
from edgecompress.errors import DataError, RecipeError, nearest
from edgecompress.references import is_reference, load_callable
from edgecompress.scores import BUILT_IN, Arrays, Score, UserFunction, sqnr_db

__all__ = ["Metric", "MetricResult", "MetricSpec", "Predict", "make_metric", "sqnr_db"]

Predict = Callable[[dict[str, npt.NDArray[Any]]], dict[str, npt.NDArray[Any]]]


class MetricSpec(BaseModel):
    """The ``[metric]`` table of a recipe.

    Attributes:
        name: A built-in metric (``top1``, ``top5``, ``cosine``, ``sqnr``, ``agreement``), or
            ``file.py:function`` / ``package.module:function``, called once as
            ``function(outputs: dict[str, ndarray], labels: ndarray | None) -> float`` with the
            outputs of all validation rows joined along the first axis; they are held in memory.
        output: The model output to judge. Default: the first for top1, top5 and agreement; all for
            cosine (their mean), for sqnr (the lowest) and for functions.
        higher_is_better: For functions only; default true.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    output: str | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class MetricResult:
    """A figure, and the number of validation rows it was taken on."""

    value: float
    rows: int


@dataclass(frozen=True)
class Metric:
    """A way to judge a model.

    Attributes:
        name: As in the recipe.
        higher_is_better: Which way is good.
        needs_labels: It compares with labels.
        needs_reference: It compares with the float model's outputs.
        output: The model output to judge, None for the metric's default.
        score: Makes empty sums.
    """

    name: str
    higher_is_better: bool
    needs_labels: bool
    needs_reference: bool
    output: str | None
    score: Callable[[], Score]

    def check(self, data: CalibrationSet) -> None:
        """Refuse data that this metric cannot work on.

        Raises:
            DataError: There are no validation rows, or no labels where the metric needs integers.
        """
        if data.validation_rows == 0:
            raise DataError(
                f"the metric {self.name!r} needs validation rows, and there are none",
                where="data",
                cure="add a [data.validation] table, or one path with a validation_share above 0",
            )
        if not self.needs_labels:
            return
        labels = data.labels("validation")
        if labels is None:
            raise DataError(
                f"the metric {self.name!r} needs labels, and the validation rows have none",
                where="data",
                cure="name the array in labels = ..., or use the metric 'cosine'",
            )
        if labels.dtype.kind not in "iu":
            raise DataError(
                f"the metric {self.name!r} needs labels that are class numbers, got {labels.dtype}",
                where="data",
                cure="save the labels as integers from 0, or use the metric 'cosine'",
            )

    def evaluate(
        self,
        predict: Predict,
        data: CalibrationSet,
        *,
        reference: Predict | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> MetricResult:
        """Run ``predict`` over the validation rows and judge its outputs.

        Args:
            predict: The model: feeds in, outputs by name out.
            data: Where the rows come from.
            reference: The float model; needed where ``needs_reference`` says so.
            progress: Told the number of rows done.

        Raises:
            DataError: See :meth:`check`; or labels and outputs do not fit.
            RecipeError: The model has no such output, or the user's function fails.
        """
        self.check(data)
        if self.needs_reference and reference is None:
            raise ValueError(f"the metric {self.name!r} needs a reference")
        score, done = self.score(), 0
        for batch in data.batches("validation"):
            expected: Arrays = {}
            if self.needs_reference and reference is not None:
                expected = self._chosen(reference(batch.inputs))
            outputs = self._chosen(predict(batch.inputs))
            score.add(outputs, expected, batch.labels, batch.rows)
            done += batch.rows
            if progress is not None:
                progress(self.name, done, data.validation_rows)
        return MetricResult(score.value(), done)

    def _chosen(self, outputs: Arrays) -> Arrays:
        if self.output is None:
            return outputs
        if self.output not in outputs:
            raise RecipeError(
                f"the model has no output {self.output!r}; {nearest(self.output, outputs)}",
                where="metric.output",
            )
        return {self.output: outputs[self.output]}


def make_metric(
    spec: MetricSpec | str | None, *, base: Path = Path("."), data: CalibrationSet | None = None
) -> Metric:
    """The metric that a recipe names.

    Args:
        spec: Name or table; None chooses ``top1`` where the validation rows have class numbers as
            labels, else ``cosine``.
        base: Folder that relative paths start from: the recipe's.
        data: Consulted where ``spec`` is None.

    Raises:
        RecipeError: Unknown name, or the user's function cannot be loaded.
    """
    if spec is None:
        labels = None if data is None else data.labels("validation")
        spec = "cosine" if labels is None or labels.dtype.kind not in "iu" else "top1"
    if isinstance(spec, str):
        spec = MetricSpec(name=spec)
    if spec.name in BUILT_IN:
        if spec.higher_is_better is not None:
            raise RecipeError(
                f"{spec.name!r} knows which way is good", where="metric.higher_is_better"
            )
        labels_needed, reference_needed, score = BUILT_IN[spec.name]
        return Metric(spec.name, True, labels_needed, reference_needed, spec.output, score)
    if not is_reference(spec.name):
        raise RecipeError(
            f"unknown metric {spec.name!r}; {nearest(spec.name, BUILT_IN)}",
            where="metric.name",
            cure="or name a function of your own: file.py:function",
        )
    function = load_callable(spec.name, base=base, refuse=RecipeError)
    return Metric(
        spec.name,
        spec.higher_is_better is not False,
        needs_labels=False,
        needs_reference=False,
        output=spec.output,
        score=partial(UserFunction, function, spec.name),
    )
