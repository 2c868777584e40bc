"""build: the only place that knows the order of things.

Load the source, open the data, resolve the target, judge the float model there; then for each pass:
look in the cache, run it, judge the result, keep it or roll it back; at the end measure all kept
models in turn, judge the budgets, and deliver.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.calibration import CalibrationSet
from edgecompress.delivery import MANIFEST_SCHEMA, check_writable, deliver, deliver_report
from edgecompress.errors import BuildError, PassError
from edgecompress.evaluation import Evaluator, MetricFigure, load_target
from edgecompress.graph_pass import Applied, Change, Context, Pass, run_pass
from edgecompress.inspection import inspect_model
from edgecompress.layer_table import layer_table
from edgecompress.measure import Measurement
from edgecompress.metrics import Metric, make_metric
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.recipe import Recipe
from edgecompress.report.data import (
    ChangeReport,
    Coverage,
    DataRecord,
    MetricRecord,
    Report,
    SkipReport,
    SourceRecord,
    StepReport,
)
from edgecompress.results import Plan, PlannedStep
from edgecompress.sources import load
from edgecompress.step_cache import StepCache, digest_of, versions
from edgecompress.verdicts import Found, judge_budgets

__all__ = ["build", "plan"]

SOURCE = "source"


@dataclass
class _Step:
    """A step that was taken, and the model after it."""

    name: str
    model: Model
    status: str
    options: Mapping[str, Any] = field(default_factory=dict)
    applied: Applied | None = None
    figure: MetricFigure | None = None
    reason: str | None = None
    cached: bool = False
    seconds: float = 0.0


@dataclass
class _Build:
    """All that the steps of one build share."""

    recipe: Recipe
    output: Path
    evaluator: Evaluator
    cache: StepCache
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    source: Model | None = None
    steps: list[_Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> list[_Step]:
        """Steps whose model went on."""
        return [s for s in self.steps if s.status in (SOURCE, "kept")]

    @property
    def current(self) -> _Step:
        """The step whose model is the best so far."""
        return self.kept[-1]


def build(
    recipe: Recipe,
    *,
    output: Path | None = None,
    use_cache: bool = True,
    progress: Progress = silent,
) -> Report:
    """Run a recipe and deliver the result.

    Args:
        recipe: What to do.
        output: Folder of the results; default: the recipe's.
        use_cache: Whether to take steps from the cache and to keep them there.
        progress: Told how far the work is.

    Returns:
        The report, ``status`` "passed" or "failed" by the budgets.

    Raises:
        InputError: Something that the recipe names cannot be used. Nothing was written.
        BuildError: A step failed; the output folder holds the report, and no model.
    """
    folder = recipe.output if output is None else output
    check_writable(folder)
    model, data, metric = _open(recipe, progress)
    profile = _profile(recipe)
    with Evaluator(profile, data, metric, progress) as evaluator:
        evaluator.check(model)
        work = _Build(
            recipe, folder, evaluator, StepCache(recipe.cache if use_cache else None), progress
        )
        work.source = model
        try:
            _run_steps(work, model)
            return _finish(work)
        except BuildError as error:
            report = _report(work, "error", {}, None, [], error)
            deliver_report(folder, report)
            raise


def plan(recipe: Recipe, *, output: Path | None = None, use_cache: bool = True) -> Plan:
    """Check all that a recipe names and tell what :func:`build` would do.

    Raises:
        InputError: Something that the recipe names cannot be used.
    """
    folder = recipe.output if output is None else output
    check_writable(folder)
    model, data, metric = _open(recipe, silent)
    cache = StepCache(recipe.cache if use_cache else None)
    with Evaluator(_profile(recipe), data, metric) as evaluator:
        evaluator.check(model)
        measurable, reason = evaluator.reachable
        steps = []
        known: Model | None = model
        for step in recipe.passes:
            applied = None
            if known is not None:
                applied = cache.step(_key(step, known, evaluator, recipe), known)
            steps.append(
                PlannedStep(name=step.name, options=step.options(), cached=applied is not None)
            )
            known = applied.model if applied is not None else None
        return Plan(
            source=recipe.source.model,
            target=evaluator.profile.name,
            measurable=measurable,
            measurable_reason=reason,
            calibration_rows=0 if data is None else data.calibration_rows,
            validation_rows=0 if data is None else data.validation_rows,
            metric=None if metric is None else metric.name,
            steps=steps,
            budgets=recipe.budget.limits(),
            output=str(folder),
        )


def _open(recipe: Recipe, progress: Progress) -> tuple[Model, CalibrationSet | None, Metric | None]:
    loaded = load(
        recipe.source.model, base=recipe.base, opset=recipe.source.opset, progress=progress
    )
    data = None
    if recipe.data is not None:
        data = CalibrationSet.open(
            recipe.data, loaded.model.signature, base=recipe.base, seed=recipe.build.seed
        )
    metric = None
    if recipe.metric is not None or (data is not None and data.validation_rows):
        metric = make_metric(recipe.metric, base=recipe.base, data=data)
        if data is not None:
            metric.check(data)
    return loaded.model, data, metric


def _profile(recipe: Recipe) -> Any:
    target = recipe.target
    return load_target(
        target.name,
        base=recipe.base,
        threads=target.threads,
        warmup=target.warmup,
        runs=target.runs,
    )


def _run_steps(work: _Build, model: Model) -> None:
    figure = _judge(work, model)
    work.steps.append(_Step(SOURCE, model, SOURCE, figure=figure))
    for number, step in enumerate(work.recipe.passes, start=1):
        work.progress(f"step {step.name}", number - 1, len(work.recipe.passes))
        work.steps.append(_take(work, step))
    work.progress("steps", len(work.recipe.passes), len(work.recipe.passes))


def _take(work: _Build, step: Pass) -> _Step:
    """Run one pass, or read its result, and decide whether its model goes on."""
    before, started = work.current, time.monotonic()
    key = _key(step, before.model, work.evaluator, work.recipe)
    applied = work.cache.step(key, before.model)
    cached = applied is not None
    if applied is None:
        context = Context(
            calibration=work.evaluator.data,
            constraints=work.evaluator.constraints,
            seed=work.recipe.build.seed,
            progress=work.progress,
        )
        applied = run_pass(step, before.model, context)
        work.cache.keep_step(key, step.name, before.model, applied)
    taken = _Step(
        step.name,
        applied.model,
        "kept",
        options=step.options(),
        applied=applied,
        cached=cached,
    )
    if applied.model is before.model or not applied.changed:
        taken.status, taken.figure = "unchanged", before.figure
        taken.reason = _nothing_changed(step, applied)
        work.notes.append(f"{step.name} changed nothing: {taken.reason}")
    else:
        taken.figure = _judge(work, applied.model)
        drop = work.evaluator.drop(work.steps[0].figure, taken.figure)
        limit = work.recipe.budget.metric_drop
        if drop is not None and limit is not None and drop > limit:
            taken.status = "rolled back"
            taken.reason = f"the metric dropped by {drop:.4g}, the budget allows {limit:.4g}"
            work.notes.append(f"{step.name} was rolled back: {taken.reason}")
    taken.seconds = time.monotonic() - started
    return taken


def _nothing_changed(step: Pass, applied: Applied) -> str:
    """Why a pass changed nothing.

    Raises:
        PassError: The recipe asked for the pass by name, and it is one that must find work.
    """
    reasons = [f"{s.op} {s.node}: {s.reason}" for s in applied.skipped[:3]]
    more = f" and {len(applied.skipped) - 3} more" if len(applied.skipped) > 3 else ""
    why = ("; ".join(reasons) + more) if reasons else "the graph has nothing for it"
    if step.must_change:
        raise PassError(
            f"changed nothing: {why}",
            where=f"pass {step.name!r}",
            cure="leave the pass out of the recipe, or change its options",
        )
    return why


def _key(step: Pass, model: Model, evaluator: Evaluator, recipe: Recipe) -> str:
    data = evaluator.data
    constraints = asdict(evaluator.constraints)
    constraints["int8_ops"] = sorted(evaluator.constraints.int8_ops)
    return digest_of(
        step=step.name,
        options=step.options(),
        model=model.digest,
        data=data.digest if data is not None and step.needs == "data" else None,
        constraints=constraints,
        seed=recipe.build.seed,
    )


def _judge(work: _Build, model: Model) -> MetricFigure | None:
    evaluator = work.evaluator
    if evaluator.metric is None or evaluator.data is None or work.source is None:
        return None
    key = digest_of(
        metric=None if work.recipe.metric is None else work.recipe.metric.model_dump(),
        model=model.digest,
        reference=work.source.digest,
        data=evaluator.data.digest,
        target=evaluator.profile.model_dump(mode="json"),
    )
    reference = work.source

    def compute() -> dict[str, Any]:
        figure = evaluator.judge(model, reference)
        return {"value": figure.value, "rows": figure.rows} if figure is not None else {}

    # A user's own function may have changed without the recipe saying so.
    builtin = ":" not in evaluator.metric.name
    found = work.cache.value(key, compute) if builtin else compute()
    return MetricFigure(**found)


def _finish(work: _Build) -> Report:
    """Measure, judge the budgets, deliver."""
    models = {step.name: step.model for step in _named(work.kept)}
    measurements = work.evaluator.measure(models, reference=SOURCE)
    final, first = work.current, work.steps[0]
    claimed = [name for s in work.kept if s.applied is not None for name in s.applied.claimed]
    coverage = work.evaluator.coverage(final.model, claimed)
    measured = dict(zip(map(id, work.kept), measurements.values(), strict=True))
    last = measured[id(final)]
    verdicts = judge_budgets(
        work.recipe.budget.limits(),
        Found(
            measurement=last.model_copy(update={"latency_ratio": 1.0})
            if final is first and last.latency_ms is not None
            else last,
            size_bytes=last.size_bytes,
            reference_bytes=measured[id(first)].size_bytes,
            metric_drop=work.evaluator.drop(first.figure, final.figure),
        ),
        allow_estimate=work.recipe.target.allow_estimate,
    )
    status = "passed" if all(v.passed for v in verdicts) else "failed"
    report = _report(work, status, measured, coverage, verdicts, None)
    return deliver(work.output, final.model, report, _manifest(work, report))


def _named(steps: list[_Step]) -> list[_Step]:
    """Steps with names that tell them apart where a pass ran twice."""
    seen: dict[str, int] = {}
    named = []
    for step in steps:
        seen[step.name] = seen.get(step.name, 0) + 1
        suffix = f" #{seen[step.name]}" if seen[step.name] > 1 else ""
        named.append(_Step(step.name + suffix, step.model, step.status))
    return named


def _report(
    work: _Build,
    status: Any,
    measured: Mapping[int, Measurement],
    coverage: Coverage | None,
    verdicts: list[Any],
    error: BuildError | None,
) -> Report:
    metric, data = work.evaluator.metric, work.evaluator.data
    rows = next((s.figure.rows for s in work.steps if s.figure is not None), 0)
    return Report(
        tool=f"edgecompress {versions()['edgecompress']}",
        versions=versions(),
        status=status,
        error=None if error is None else error.as_json(),
        source=_source_record(work),
        target=work.evaluator.profile.name,
        data=None if data is None else DataRecord(**data.describe()),
        metric=None
        if metric is None
        else MetricRecord(name=metric.name, higher_is_better=metric.higher_is_better, rows=rows),
        steps=[_step_report(step, measured.get(id(step))) for step in work.steps],
        layers=[] if error is not None else _layers(work, measured),
        coverage=coverage,
        budgets=verdicts,
        files=[],
        notes=work.notes,
        output=str(work.output),
        seconds=time.monotonic() - work.started,
    )


def _source_record(work: _Build) -> SourceRecord | None:
    if work.source is None:
        return None
    seen = inspect_model(work.source)
    return SourceRecord(
        path=work.recipe.source.model,
        digest=seen.digest,
        opset=seen.opset,
        size_bytes=seen.size_bytes,
        parameters=seen.parameters,
        macs=seen.macs,
        signature=seen.signature,
    )


def _step_report(step: _Step, measurement: Measurement | None) -> StepReport:
    applied = step.applied
    return StepReport(
        name=step.name,
        options=dict(step.options),
        status=step.status,  # type: ignore[arg-type]  # pydantic checks it
        reason=step.reason,
        cached=step.cached,
        seconds=step.seconds,
        size_bytes=step.model.size_bytes,
        metric=None if step.figure is None else step.figure.value,
        measurement=measurement,
        changed=[ChangeReport(**asdict(c)) for c in applied.changed] if applied else [],
        skipped=[SkipReport(**asdict(s)) for s in applied.skipped] if applied else [],
        notes=dict(applied.notes) if applied else {},
    )


def _layers(work: _Build, measured: Mapping[int, Measurement]) -> list[Any]:
    """The table from the graph that the first data-driven step started from, to the result."""
    by_name = {step.name: step for step in work.recipe.passes}
    start = work.steps[0]
    for step in work.kept[1:]:
        if by_name[step.name].needs == "data":
            break
        start = step
    final = work.current
    changes: list[Change] = [
        c for s in work.kept if s.applied is not None for c in s.applied.changed
    ]
    return layer_table(
        start.model,
        final.model,
        changes,
        before=measured.get(id(start)),
        after=measured.get(id(final)),
        data=work.evaluator.data,
        progress=work.progress,
    )


def _manifest(work: _Build, report: Report) -> dict[str, Any]:
    """What the delivered file is: the same for the same input, recipe, versions and seed."""
    recipe = work.recipe.as_dict()
    recipe["build"] = {"seed": work.recipe.build.seed}
    final = work.current.model
    return {
        "schema": MANIFEST_SCHEMA,
        "tool": report.tool,
        "model": {
            "digest": final.digest,
            "opset": final.opset,
            **final.signature.as_json(),
            "steps": list(final.steps),
        },
        "source": {"path": work.recipe.source.model, "digest": report.source.digest}
        if report.source
        else None,
        "target": report.target,
        "metric": None
        if report.metric is None
        else {
            "name": report.metric.name,
            "value": None if work.current.figure is None else work.current.figure.value,
        },
        "versions": report.versions,
        "recipe": recipe,
    }
