"""Verbs that run a model on a target, and hold it against budgets or another model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgecompress.errors import DataError, RecipeError
from edgecompress.progress import Progress, silent

if TYPE_CHECKING:
    from edgecompress.results import Comparison, ValidationResult

__all__ = ["validate", "compare"]

StrPath = str | os.PathLike[str]

_AGAINST_REFERENCE = ("latency_ratio", "size_ratio", "metric_drop")


def validate(
    model: StrPath,
    *,
    budgets: Mapping[str, float],
    target: str = "host",
    reference: StrPath | None = None,
    data: StrPath | None = None,
    labels: str | None = None,
    metric: str | None = None,
    text: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> ValidationResult:
    """Judge a model against budgets.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.
        budgets: Limits by name.
        target: Name of the target.
        reference: The float model, for ratios and drops.
        data: Rows to validate on, or a recipe whose ``[data]`` table is taken.
        labels: Name or number of the labels.
        metric: Name of the metric; default: the recipe's, else what suits the labels.
        text: Keys of ``[data]`` for text; as for :func:`compress`.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used, or is missing for one of the budgets.
        MeasurementError: The runtime cannot run the model.
    """
    from edgecompress.data_options import validation_rows
    from edgecompress.evaluation import Evaluator, check_alike, load_target
    from edgecompress.qdq import quantized_layers
    from edgecompress.recipe import make_budget
    from edgecompress.results import ValidationResult
    from edgecompress.sources import load
    from edgecompress.verdicts import Found, judge_budgets

    limits = make_budget(budgets).limits()
    _check_comparable(limits, reference, data)
    source = load(model)
    judged = source.model
    origin = source if reference is None else load(reference)
    against = None if reference is None else origin.model
    if against is not None:
        check_alike(against, judged)
    rows, judge = validation_rows(
        data,
        metric,
        judged,
        labels=labels,
        text=text,
        folder=source.folder or origin.folder,
        preprocess=source.preprocess or origin.preprocess,
    )
    with Evaluator(load_target(target), rows, judge, progress=progress) as evaluator:
        evaluator.check(judged)
        models = {"model": judged} if against is None else {"reference": against, "model": judged}
        measured = evaluator.measure(models, reference=None if against is None else "reference")
        base = judged if against is None else against
        figure = None
        if judge is not None and not (judge.needs_reference and against is None):
            figure = evaluator.judge(judged, base)
        before = None
        if figure is not None and against is not None:
            before = evaluator.judge(against, against)
        verdicts = judge_budgets(
            limits,
            Found(
                measurement=measured["model"],
                size_bytes=measured["model"].size_bytes,
                reference_bytes=None if against is None else measured["reference"].size_bytes,
                metric_drop=evaluator.drop(before, figure),
            ),
        )
        agreement = evaluator.agreement(judged) if evaluator.present[0] else None
        return ValidationResult(
            model=os.fspath(model),
            reference=None if reference is None else os.fspath(reference),
            target=evaluator.profile.name,
            passed=all(v.passed for v in verdicts) and (agreement is None or agreement.passed),
            metric=None if judge is None else judge.name,
            metric_value=None if figure is None else figure.value,
            reference_metric=None if before is None else before.value,
            measurement=measured["model"],
            coverage=evaluator.coverage(judged, quantized_layers(judged)),
            agreement=agreement,
            budgets=verdicts,
        )


def _check_comparable(
    limits: Mapping[str, float], reference: StrPath | None, data: StrPath | None
) -> None:
    """Refuse budgets that say how far to depart from the float model, where it is not named."""
    for name in _AGAINST_REFERENCE:
        lacking = ["--reference FLOAT.onnx"] if reference is None else []
        lacking += ["--data"] if name == "metric_drop" and data is None else []
        if name in limits and lacking:
            raise RecipeError(
                "compares with the float model, which is not named"
                if reference is None
                else "compares with the float model, and no rows are named to do it on",
                where=f"budget {name!r}",
                cure=f"add {' and '.join(lacking)}, or leave the budget out",
            )


def compare(
    a: StrPath,
    b: StrPath,
    *,
    data: StrPath,
    labels: str | None = None,
    metric: str | None = None,
    text: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Comparison:
    """Where a compressed model departs from its original, and why.

    The metric of both; each node's SQNR, as the error arrives and as far as it is made there;
    ranges that do not fit, dead channels, and the nodes most worth keeping in float.

    Args:
        a: The original.
        b: The compressed model.
        data: Rows to compare on, or a recipe whose ``[data]`` table is taken.
        labels: Name or number of the labels.
        metric: Name of the metric; default: the recipe's, else what suits the labels.
        text: Keys of ``[data]`` for text; as for :func:`compress`.
        batch_size: Rows per batch of the metric.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used, or the models' inputs or outputs differ.
        MeasurementError: The runtime cannot run one of the models.
    """
    from edgecompress.comparison import diagnose
    from edgecompress.comparison.side_by_side import Setting
    from edgecompress.data_options import validation_rows
    from edgecompress.diagnosis import dead_channels, node_sqnr, range_fits, worth_keeping
    from edgecompress.evaluation import Evaluator, check_alike, load_target
    from edgecompress.results import Comparison
    from edgecompress.sources import load

    source = load(a)
    first, second = source.model, load(b).model
    check_alike(first, second)
    rows, judge = validation_rows(
        data,
        metric,
        first,
        batch_size,
        labels=labels,
        text=text,
        folder=source.folder,
        preprocess=source.preprocess,
    )
    if rows is None or judge is None:
        raise DataError("names no rows to compare on", where=os.fspath(data))
    with Evaluator(load_target("host"), rows, judge, progress=progress) as evaluator:
        figures = [evaluator.judge(model, first) for model in (first, second)]
    found = diagnose(first, second, rows, Setting(progress=progress))
    ends = {spec.name for spec in first.signature.outputs}
    return Comparison(
        a=os.fspath(a),
        b=os.fspath(b),
        rows=rows.validation_rows,
        metric=judge.name,
        metric_a=figures[0].value,
        metric_b=figures[1].value,
        size_bytes_a=first.size_bytes,
        size_bytes_b=second.size_bytes,
        outputs=[node_sqnr(error) for error in found.nodes if error.value in ends],
        nodes=[node_sqnr(error) for error in found.nodes],
        ranges=range_fits(found),
        dead_channels=dead_channels(found),
        keep_float=worth_keeping(first, second, found),
        unmatched=found.unmatched,
    )
