"""What the faces of a report have in common: which step is before, which is after, and why not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePath

from edgecompress.measure import Measurement
from edgecompress.report import format as fmt
from edgecompress.report.data import BudgetVerdict, LayerReport, Report, StepReport

__all__ = [
    "Figure",
    "Pair",
    "model_name",
    "verdict",
    "before",
    "after",
    "size_pair",
    "metric_pair",
    "latency_pair",
    "memory_pair",
    "size_figure",
    "metric_figure",
    "latency_figure",
    "ratio_figure",
    "memory_figure",
    "budget_word",
    "coverage_line",
    "error_text",
    "operator_times",
    "worst_sqnr_first",
]


@dataclass(frozen=True)
class Figure:
    """A figure as it is shown.

    Attributes:
        text: The figure with its unit, or ``unknown``.
        value: The number behind it, to sort and to draw by.
        basis: Where it comes from.
        why: Why it is unknown or estimated.
    """

    text: str
    value: float | None = None
    basis: str = "measured"
    why: str = ""


@dataclass(frozen=True)
class Pair:
    """A figure before and after the build, and after over before where both are known."""

    before: Figure
    after: Figure
    ratio: float | None


def model_name(report: Report) -> str:
    """File name of the model, or what is known of it."""
    if report.source is None:
        return "model not loaded"
    return PurePath(report.source.path).name or report.source.path


def verdict(report: Report) -> str:
    """The verdict as one word: PASSED, FAILED (a budget) or ERROR (the build broke off)."""
    return report.status.upper()


def before(report: Report) -> StepReport | None:
    """The float model."""
    return next((s for s in report.steps if s.status == "source"), None)


def after(report: Report) -> StepReport | None:
    """The last step whose model went on; steps that were rolled back did not."""
    return next((s for s in reversed(report.steps) if s.status != "rolled back"), None)


def _result(report: Report) -> StepReport | None:
    """The step behind the "after" figures: a build that broke off at once has none."""
    last = after(report)
    broke_off = report.status == "error" and last is not None and last.status == "source"
    return None if broke_off else last


def _unknown(why: str) -> Figure:
    return Figure(fmt.UNKNOWN, None, "unknown", why)


def _not_measured(step: StepReport | None) -> str:
    if step is None:
        return "the build broke off before there was a result"
    if step.measurement is None:
        return "the model was not measured after this step"
    return step.measurement.reason or "the measurement does not hold this figure"


def _of(measurement: Measurement, value: float, text: str) -> Figure:
    return Figure(text, value, measurement.basis, measurement.reason or "")


def size_figure(step: StepReport | None) -> Figure:
    """Size of the model file after a step."""
    if step is None:
        return _unknown(_not_measured(step))
    return Figure(fmt.size(step.size_bytes), float(step.size_bytes))


def metric_figure(report: Report, step: StepReport | None) -> Figure:
    """The metric on the validation rows after a step."""
    if report.metric is None:
        return _unknown("the recipe names no metric")
    if step is None:
        return _unknown(_not_measured(step))
    if step.metric is None:
        return _unknown("the metric was not taken after this step")
    return Figure(fmt.number(step.metric), step.metric)


def latency_figure(step: StepReport | None, quantile: str = "p50") -> Figure:
    """A quantile (``p50``, ``p90``, ``p99``) of the latency of one inference after a step."""
    measured = step.measurement if step else None
    if measured is None or measured.latency_ms is None:
        return _unknown(_not_measured(step))
    value = float(getattr(measured.latency_ms, quantile))
    return _of(measured, value, fmt.ms(value))


def ratio_figure(step: StepReport) -> Figure:
    """Latency over that of the float model, which is run in turn with it."""
    measured = step.measurement
    if measured is None or measured.latency_ms is None:
        return _unknown(_not_measured(step))
    value = 1.0 if step.status == "source" else measured.latency_ratio
    if value is None:
        return _unknown(measured.reason or "the float model was not run beside this one")
    return _of(measured, value, fmt.ratio(value))


def memory_figure(step: StepReport | None) -> Figure:
    """Peak memory of the process that ran the model after a step."""
    measured = step.measurement if step else None
    if measured is None or measured.peak_memory_mb is None:
        return _unknown(_not_measured(step))
    value = measured.peak_memory_mb
    return _of(measured, value, fmt.megabytes(value))


def _pair(first: Figure, last: Figure, ratio: float | None = None) -> Pair:
    if ratio is None and first.value and last.value is not None:
        ratio = last.value / first.value
    return Pair(first, last, ratio)


def size_pair(report: Report) -> Pair:
    """File size of the float model and of the result."""
    return _pair(size_figure(before(report)), size_figure(_result(report)))


def metric_pair(report: Report) -> Pair:
    """The metric of the float model and of the result."""
    return _pair(metric_figure(report, before(report)), metric_figure(report, _result(report)))


def latency_pair(report: Report) -> Pair:
    """Median latency of the float model and of the result.

    The ratio is the measured one where the two files were run in turn: it holds on a busy host,
    where the quotient of two medians taken apart does not.
    """
    last = _result(report)
    measured = last.measurement if last else None
    return _pair(
        latency_figure(before(report)),
        latency_figure(last),
        measured.latency_ratio if measured else None,
    )


def memory_pair(report: Report) -> Pair:
    """Peak memory of the float model and of the result."""
    return _pair(memory_figure(before(report)), memory_figure(_result(report)))


def budget_word(budget: BudgetVerdict) -> str:
    """``passed``, ``failed``, or ``unknown`` where no measurement was there to judge by."""
    if budget.passed:
        return "passed"
    return "failed" if budget.basis == "measured" and budget.value is not None else fmt.UNKNOWN


def coverage_line(report: Report) -> str:
    """Fusion coverage as one sentence."""
    coverage = report.coverage
    if coverage is None:
        return "fusion coverage unknown: the runtime's optimized graph was not read"
    if coverage.claimed == 0:
        return "fusion coverage: the passes claimed no nodes"
    return f"fusion coverage: {coverage.fused} of {coverage.claimed} claimed nodes run fused"


def error_text(report: Report) -> str:
    """The error of a broken build in the words of :class:`EdgeCompressError`, or empty."""
    if report.error is None:
        return ""
    what, where, cure = (report.error.get(key) for key in ("what", "where", "cure"))
    text = f"{where}: {what}" if where else str(what or report.error.get("error", "error"))
    return f"{text}\n  -> {cure}" if cure else text


def operator_times(step: StepReport | None) -> dict[str, float]:
    """Microseconds per inference by operator type, the largest first; empty where unknown."""
    times: dict[str, float] = defaultdict(float)
    if step is not None and step.measurement is not None:
        for operator in step.measurement.operators:
            times[operator.op] += operator.mean_us
    return dict(sorted(times.items(), key=lambda item: (-item[1], item[0])))


def worst_sqnr_first(layers: list[LayerReport]) -> list[tuple[int, LayerReport]]:
    """Layers with their place in the graph (from 1), noisiest first, unknown last."""
    placed = list(enumerate(layers, start=1))
    return sorted(
        placed,
        key=lambda item: (item[1].sqnr_db is None, item[1].sqnr_db or 0.0, item[0]),
    )
