"""The report and the manifest of a build, from its state."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgecompress.agreement import Agreement
from edgecompress.build_state import BuildState, Step
from edgecompress.delivery import MANIFEST_SCHEMA
from edgecompress.errors import BuildError
from edgecompress.inspection import inspect_model
from edgecompress.layer_table import layer_table
from edgecompress.measure import Measurement
from edgecompress.report.agreement import departure_lines
from edgecompress.report.data import (
    BudgetVerdict,
    ChangeReport,
    Coverage,
    DataRecord,
    LayerReport,
    MetricRecord,
    Report,
    SensitivityReport,
    SkipReport,
    SourceRecord,
    StepReport,
)
from edgecompress.report.placement import placement_info
from edgecompress.runtimes import Placement
from edgecompress.step_cache import versions

__all__ = ["OnTarget", "build_report", "error_report", "manifest"]


@dataclass(frozen=True)
class OnTarget:
    """What the target's runtime makes of the last kept model.

    Attributes:
        coverage: How many of the claimed nodes run on integers.
        agreement: Whether it computes what the file says.
        placement: Where each node runs.
    """

    coverage: Coverage | None = None
    agreement: Agreement | None = None
    placement: Placement | None = None


def build_report(
    state: BuildState,
    measured: Mapping[int, Measurement],
    on_target: OnTarget,
    verdicts: Sequence[BudgetVerdict],
) -> Report:
    """The report of a build that took all its steps.

    It passed if all budgets did, and if the target computes what the file says.

    Args:
        state: The build.
        measured: By the ``id`` of its step.
        on_target: What became of the last kept model there.
        verdicts: Verdicts on it.
    """
    agreement = on_target.agreement
    good = all(v.passed for v in verdicts) and (agreement is None or agreement.passed)
    if agreement is not None:
        state.notes.extend(departure_lines(agreement))
    layers = _layers(state, measured)
    return _report(
        state,
        "passed" if good else "failed",
        measured,
        on_target=on_target,
        budgets=[*verdicts],
        layers=layers,
    )


def error_report(state: BuildState, error: BuildError) -> Report:
    """The report of a build that broke off, with the steps taken so far."""
    return _report(state, "error", {}, error=error.as_json())


def _report(
    state: BuildState,
    status: Literal["passed", "failed", "error"],
    measured: Mapping[int, Measurement],
    *,
    error: dict[str, Any] | None = None,
    on_target: OnTarget = OnTarget(),
    budgets: Sequence[BudgetVerdict] = (),
    layers: Sequence[LayerReport] = (),
) -> Report:
    data = state.evaluator.data
    return Report(
        tool=f"edgecompress {versions()['edgecompress']}",
        versions=versions(),
        status=status,
        error=error,
        source=_source_record(state),
        target=state.evaluator.profile.name,
        data=None if data is None else DataRecord(**data.describe()),
        metric=_metric_record(state),
        steps=[_step_report(step, measured.get(id(step))) for step in state.steps],
        search=None if state.search is None else state.search.report(),
        layers=[*layers],
        coverage=on_target.coverage,
        agreement=on_target.agreement,
        placement=None if on_target.placement is None else placement_info(on_target.placement),
        budgets=[*budgets],
        files=[],
        notes=state.notes,
        output=str(state.output),
        seconds=time.monotonic() - state.started,
    )


def _source_record(state: BuildState) -> SourceRecord:
    seen = inspect_model(state.source)
    return SourceRecord(
        path=state.recipe.source.model,
        digest=seen.digest,
        opset=seen.opset,
        size_bytes=seen.size_bytes,
        parameters=seen.parameters,
        macs=seen.macs,
        signature=seen.signature,
    )


def _metric_record(state: BuildState) -> MetricRecord | None:
    metric = state.evaluator.metric
    if metric is None:
        return None
    rows = next((s.figure.rows for s in state.steps if s.figure is not None), 0)
    return MetricRecord(name=metric.name, higher_is_better=metric.higher_is_better, rows=rows)


def _step_report(step: Step, measurement: Measurement | None) -> StepReport:
    applied = step.applied
    notes = dict(applied.notes) if applied else {}
    sensitivity = notes.pop("sensitivity", None)
    return StepReport(
        name=step.name,
        options=dict(step.options),
        status=step.status,
        reason=step.reason,
        cached=step.cached,
        seconds=step.seconds,
        size_bytes=step.model.size_bytes,
        metric=None if step.figure is None else step.figure.value,
        measurement=measurement,
        changed=[ChangeReport(**asdict(c)) for c in applied.changed] if applied else [],
        skipped=[SkipReport(**asdict(s)) for s in applied.skipped] if applied else [],
        notes=notes,
        sensitivity=None if sensitivity is None else SensitivityReport(**sensitivity),
    )


def _layers(state: BuildState, measured: Mapping[int, Measurement]) -> list[LayerReport]:
    """The table from the graph that the first data-driven step started from, to the result."""
    by_name = {step.name: step for step in state.recipe.passes}
    start = state.steps[0]
    for step in state.kept[1:]:
        if step.candidate or by_name[step.name].needs == "data":
            break
        start = step
    final = state.current
    return layer_table(
        start.model,
        final.model,
        [change for s in state.kept if s.applied is not None for change in s.applied.changed],
        before=measured.get(id(start)),
        after=measured.get(id(final)),
        data=state.evaluator.data,
        progress=state.progress,
    )


def manifest(state: BuildState, report: Report) -> dict[str, Any]:
    """What the delivered file is: the same for the same input, recipe, versions and seed."""
    recipe = state.recipe.as_dict()
    recipe["build"] = {"seed": state.recipe.build.seed}
    final = state.current
    metric = None
    if report.metric is not None:
        value = None if final.figure is None else final.figure.value
        metric = {"name": report.metric.name, "value": value}
    return {
        "schema": MANIFEST_SCHEMA,
        "tool": report.tool,
        "model": {
            "digest": final.model.digest,
            "opset": final.model.opset,
            **final.model.signature.as_json(),
            "steps": list(final.model.steps),
        },
        "source": {"path": state.recipe.source.model, "digest": state.source.digest},
        "target": report.target,
        "metric": metric,
        **_choice(state),
        "versions": report.versions,
        "recipe": recipe,
    }


def _choice(state: BuildState) -> dict[str, Any]:
    """What a search chose, with the passes that make the same file without a search."""
    if state.search is None:
        return {}
    chosen = next(trial for trial in state.search.trials if trial.status == "chosen")
    passes = [{"name": step.name, **step.options()} for step in chosen.candidate.passes]
    return {"search": {"chosen": chosen.name, "pass": passes}}
