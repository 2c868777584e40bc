"""Metrics: what "still good" means, on the validation rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict

from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import DataError, RecipeError, nearest
from edgecompress.references import is_reference, load_callable
from edgecompress.scores.base import Arrays, Predict, Score
from edgecompress.scores.classes import Average, Confusion, TopK
from edgecompress.scores.correlation import Correlation
from edgecompress.scores.language import Perplexity
from edgecompress.scores.reference import (
    Agreement,
    Cosine,
    MeanSquaredError,
    Sqnr,
    sqnr_db,
)
from edgecompress.scores.user import UserFunction

__all__ = [
    "Metric",
    "MetricResult",
    "MetricSpec",
    "Predict",
    "make_metric",
    "metric_names",
    "sqnr_db",
]


class MetricSpec(BaseModel):
    """The ``[metric]`` table of a recipe.

    ``metric_drop`` is the absolute change of the figure in its own unit, perplexity's too.

    Attributes:
        name: A built-in metric, or ``file.py:function`` / ``package.module:function``. Of class
            numbers: ``top1`` (also ``accuracy``), ``top5`` and any other ``topK``; ``f1``,
            ``precision``, ``recall``; the label -100 counts for nothing. Of numbers: ``spearman``
            and ``pearson``, of an output of one number per row, or of the cosine of two embeddings
            where ``data.texts`` names two columns. Of token ids: ``perplexity``. Against the float
            model: ``cosine``, ``sqnr`` (dB), ``agreement``, ``mse``. A function is called once as
            ``function(outputs: dict[str, ndarray], labels: ndarray | None) -> float`` with the
            outputs of all validation rows in their order, held in memory; with three arguments, it
            gets the model's inputs too. Rows of many shapes come as lists of arrays.
        output: The model output to judge. Default: the first that fits; all for cosine (their
            mean), sqnr (the lowest), mse (the highest) and functions.
        average: Of f1, precision and recall: ``binary`` (of class 1), ``macro`` (mean over
            classes) or ``micro`` (all decisions together). Default: binary for two classes, else
            macro.
        higher_is_better: For functions only; default true.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    output: str | None = None
    average: Average | None = None
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
        label_kinds: Their numpy kinds: integers, or numbers of any kind.
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
    label_kinds: str = "iu"

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
        if labels.dtype.kind not in self.label_kinds:
            kind, integers = "class numbers", "integers from 0"
            if "f" in self.label_kinds:
                kind, integers = "numbers", "numbers"
            raise DataError(
                f"the metric {self.name!r} needs labels that are {kind}, got {labels.dtype}",
                where="data",
                cure=f"save the labels as {integers}, or use the metric 'cosine'",
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
        for number, batch in enumerate(data.batches("validation")):
            if number == 0:
                score.prepare(lambda feed: dict(self._chosen(predict(feed))), batch)
            expected: Arrays = {}
            if self.needs_reference and reference is not None:
                expected = self._chosen(reference(batch.inputs))
            outputs = self._chosen(predict(batch.inputs))
            score.add(outputs, expected, batch)
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


class _BuiltIn(NamedTuple):
    """What a metric compares with, which way is good, and its sums."""

    score: Callable[[], Score]
    labels: str | None = None
    reference: bool = False
    higher: bool = True


_CLASSES, _NUMBERS = "iu", "iuf"

_BUILT_IN = {
    "top1": _BuiltIn(partial(TopK, 1), _CLASSES),
    "top5": _BuiltIn(partial(TopK, 5), _CLASSES),
    "accuracy": _BuiltIn(partial(TopK, 1), _CLASSES),
    "spearman": _BuiltIn(partial(Correlation, "spearman"), _NUMBERS),
    "pearson": _BuiltIn(partial(Correlation, "pearson"), _NUMBERS),
    "perplexity": _BuiltIn(Perplexity, higher=False),
    "cosine": _BuiltIn(Cosine, reference=True),
    "sqnr": _BuiltIn(Sqnr, reference=True),
    "agreement": _BuiltIn(Agreement, reference=True),
    "mse": _BuiltIn(MeanSquaredError, reference=True, higher=False),
}


def metric_names() -> list[str]:
    """Names of the built-in metrics; ``topK`` works for any K."""
    return [*_BUILT_IN, *get_args(_Averaged)]


_Averaged = Literal["f1", "precision", "recall"]


def _built_in(spec: MetricSpec) -> _BuiltIn | None:
    averaged = {name: partial(Confusion, name, spec.average) for name in get_args(_Averaged)}
    if spec.name in averaged:
        return _BuiltIn(averaged[spec.name], _CLASSES)
    if spec.average is not None:
        listed = ", ".join(averaged)
        raise RecipeError(f"is for {listed}, not for {spec.name!r}", where="metric.average")
    top = re.fullmatch(r"top([1-9][0-9]{0,5})", spec.name)
    if top is not None:
        return _BuiltIn(partial(TopK, int(top[1])), _CLASSES)
    return _BUILT_IN.get(spec.name)


def make_metric(
    spec: MetricSpec | str | None, *, base: Path = Path("."), data: CalibrationSet | None = None
) -> Metric:
    """The metric that a recipe names.

    Args:
        spec: Name or table; None chooses ``spearman`` where the validation rows are pairs of texts
            with labels, ``top1`` where they have class numbers as labels, else ``cosine``.
        base: Folder that relative paths start from: the recipe's.
        data: Consulted where ``spec`` is None.

    Raises:
        RecipeError: Unknown name, or the user's function cannot be loaded.
    """
    if spec is None:
        spec = _default(data)
    if isinstance(spec, str):
        spec = MetricSpec(name=spec)
    found = _built_in(spec)
    if found is not None:
        if spec.higher_is_better is not None:
            raise RecipeError(
                f"{spec.name!r} knows which way is good", where="metric.higher_is_better"
            )
        return Metric(
            spec.name,
            found.higher,
            needs_labels=found.labels is not None,
            needs_reference=found.reference,
            output=spec.output,
            score=found.score,
            label_kinds=found.labels or "",
        )
    if not is_reference(spec.name):
        raise RecipeError(
            f"unknown metric {spec.name!r}; {nearest(spec.name, metric_names())}",
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


def _default(data: CalibrationSet | None) -> str:
    labels = None if data is None else data.labels("validation")
    if data is None or labels is None:
        return "cosine"
    if data.group("validation") == 2:
        return "spearman"
    return "top1" if labels.dtype.kind in "iu" else "cosine"
