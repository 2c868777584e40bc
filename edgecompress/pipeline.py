"""build: the only place that knows the order of things.

Load the source, open the data, resolve the target, judge the float model there; then for each pass:
look in the cache, run it, judge the result, keep it or roll it back; then search, where the recipe
asks for it; at the end measure all kept models in turn, judge the budgets, and deliver.
"""

from __future__ import annotations

import contextlib
import time
from math import isinf
from pathlib import Path

from edgecompress.build_report import OnTarget, build_report, error_report, manifest
from edgecompress.build_search import never_slower, take_best
from edgecompress.build_state import SOURCE, BuildState, Step
from edgecompress.data.calibration import CalibrationSet
from edgecompress.delivery import check_output, claim_output, deliver, deliver_report
from edgecompress.errors import BuildError, OutputError, PassError, RecipeError
from edgecompress.evaluation import Evaluator, MetricFigure, load_target
from edgecompress.graph_pass import Applied, Pass
from edgecompress.metrics import Metric, make_metric
from edgecompress.model import Model
from edgecompress.parallel.engine import check_engine
from edgecompress.progress import Progress, silent
from edgecompress.recipe import Recipe
from edgecompress.report.data import Report
from edgecompress.results import Plan, PlannedCandidate, PlannedStep
from edgecompress.search.candidates import candidates, refusal
from edgecompress.search.notes import search_notes
from edgecompress.sources import Loaded, load
from edgecompress.step_cache import StepCache
from edgecompress.target import TargetProfile
from edgecompress.verdicts import Found, judge_budgets
from edgecompress.workbench import Workbench

__all__ = ["build", "plan"]


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
        ExportMismatchError: The source does not compute the same as ONNX. Nothing was written.
        BuildError: A step failed; the output folder holds the report, and no model. Or another
            build writes to the folder; nothing was written.
    """
    folder = recipe.output if output is None else output
    with claim_output(folder, recipe.base / recipe.source.model):
        return _build(recipe, folder, use_cache, progress)


def _build(recipe: Recipe, folder: Path, use_cache: bool, progress: Progress) -> Report:
    loaded, data, metric = _open(recipe, progress)
    with Evaluator(_profile(recipe), data, metric, progress=progress) as evaluator:
        evaluator.check(loaded.model)
        bench = _bench(recipe, loaded.model, evaluator, use_cache, progress)
        bench.cache.tidy()
        state = BuildState(recipe, folder, loaded.model, bench, progress)
        if loaded.export_error is not None:
            error = f"{loaded.export_error:.1e}"
            state.notes.append(f"exported; largest relative error against torch: {error}")
        state.notes.extend(loaded.notes)
        try:
            _run_steps(state)
            if recipe.search is not None:
                take_best(state, recipe.search)
            return _finish(state)
        except BuildError as error:
            with contextlib.suppress(OutputError):  # why the build failed says more
                deliver_report(folder, error_report(state, error))
            raise


def plan(recipe: Recipe, *, output: Path | None = None, use_cache: bool = True) -> Plan:
    """Check all that a recipe names and tell what :func:`build` would do.

    Raises:
        InputError: Something that the recipe names cannot be used.
    """
    folder = recipe.output if output is None else output
    check_output(folder, recipe.base / recipe.source.model)
    loaded, data, metric = _open(recipe, silent)
    model = loaded.model
    with Evaluator(_profile(recipe), data, metric) as evaluator:
        evaluator.check(model)
        measurable, reason = evaluator.reachable
        bench = _bench(recipe, model, evaluator, use_cache, silent)
        return Plan(
            source=recipe.source.model,
            target=evaluator.profile.name,
            measurable=measurable,
            measurable_reason=reason,
            calibration_rows=0 if data is None else data.calibration_rows,
            validation_rows=0 if data is None else data.validation_rows,
            metric=None if metric is None else metric.name,
            steps=_planned(recipe, model, bench),
            candidates=_planned_candidates(recipe, evaluator),
            budgets=recipe.budget.limits(),
            output=str(folder),
        )


def _bench(
    recipe: Recipe, source: Model, evaluator: Evaluator, use_cache: bool, progress: Progress
) -> Workbench:
    folder = recipe.cache if use_cache else None
    return Workbench(
        source,
        evaluator,
        StepCache(folder),
        recipe.metric,
        recipe.build.seed,
        recipe.resources,
        progress,
        folder,
    )


def _planned(recipe: Recipe, model: Model, bench: Workbench) -> list[PlannedStep]:
    """The steps; behind one that is not in the cache, none can be known to be there."""
    steps = []
    known: Model | None = model
    for step in recipe.passes:
        applied = None
        if known is not None:
            applied = bench.cache.step(bench.key(step, known), known)
        known = applied.model if applied is not None else None
        steps.append(PlannedStep(name=step.name, options=step.options(), cached=known is not None))
    return steps


def _planned_candidates(recipe: Recipe, evaluator: Evaluator) -> list[PlannedCandidate]:
    if recipe.search is None:
        return []
    rows = 0 if evaluator.data is None else evaluator.data.calibration_rows
    return [
        PlannedCandidate(
            name=each.name,
            passes=[{"name": step.name, **step.options()} for step in each.passes],
            refused=refusal(each, evaluator.constraints, rows),
        )
        for each in candidates(recipe.search)
    ]


def _open(
    recipe: Recipe, progress: Progress
) -> tuple[Loaded, CalibrationSet | None, Metric | None]:
    check_engine(recipe.build.engine)
    loaded = load(
        recipe.source.model,
        base=recipe.base,
        opset=recipe.source.opset,
        dynamic_batch=recipe.source.dynamic_batch,
        progress=progress,
    )
    data = None
    if recipe.data is not None:
        data = CalibrationSet.open(
            recipe.data,
            loaded.model.signature,
            base=recipe.base,
            seed=recipe.build.seed,
            folder=loaded.folder,
            preprocess=loaded.preprocess,
        )
    _check_rows(recipe, data)
    metric = None
    if data is not None and data.validation_rows:
        metric = make_metric(recipe.metric, base=recipe.base, data=data)
        metric.check(data)
    return loaded, data, metric


def _check_rows(recipe: Recipe, data: CalibrationSet | None) -> None:
    """Refuse a recipe without the rows that its passes, metric and budgets need.

    Raises:
        RecipeError: Names what needs them.
    """
    rows = {
        "calibration": 0 if data is None else data.calibration_rows,
        "validation": 0 if data is None else data.validation_rows,
    }
    needs = [(f"pass {p.name!r}", "calibration") for p in recipe.passes if p.needs == "data"]
    if recipe.metric is not None:
        needs.append(("metric", "validation"))
    if recipe.budget.metric_drop is not None:
        needs.append(("budget.metric_drop", "validation"))
    if recipe.search is not None:
        needs.append(("search", "validation"))
        needs += [
            (f"search.candidate {each.name!r}", "calibration")
            for each in recipe.search.own
            if any(step.needs == "data" for step in each.passes)
        ]
    for where, split in needs:
        if not rows[split]:
            raise RecipeError(
                f"needs {split} rows, and none are named",
                where=where,
                cure="add a [data] table to the recipe, or --data on the command line"
                if data is None
                else f"add a [data.{split}] table, or one path with a validation_share",
            )


def _profile(recipe: Recipe) -> TargetProfile:
    target = recipe.target
    return load_target(
        target.name,
        base=recipe.base,
        threads=target.threads,
        warmup=target.warmup,
        runs=target.runs,
    )


def _run_steps(state: BuildState) -> None:
    figure = state.bench.judge(state.source)
    if figure is not None and isinf(figure.value) and state.recipe.budget.metric_drop is not None:
        raise RecipeError(
            "the float model's metric is infinite, so that it drops without limit at any change",
            where="budget.metric_drop",
            cure="use another metric, such as 'cosine'",
        )
    state.steps.append(Step(SOURCE, state.source, SOURCE, figure=figure))
    passes = state.recipe.passes
    for number, step in enumerate(passes):
        state.progress(f"step {step.name}", number, len(passes))
        state.steps.append(_take(state, step))
    state.progress("steps", len(passes), len(passes))


def _take(state: BuildState, step: Pass) -> Step:
    """Run one pass, or read its result, and decide whether its model goes on."""
    before, started = state.current, time.monotonic()
    applied, cached = state.bench.run(step, before.model)
    taken = Step(
        step.name, applied.model, "kept", options=step.options(), applied=applied, cached=cached
    )
    if applied.model is before.model or not applied.changed:
        taken.status, taken.figure = "unchanged", before.figure
        taken.reason = _nothing_changed(step, applied)
        state.notes.append(f"{step.name} changed nothing: {taken.reason}")
    else:
        taken.figure = state.bench.judge(applied.model)
        taken.reason = _too_much_lost(state, taken.figure)
        if taken.reason is not None:
            taken.status = "rolled back"
            state.notes.append(f"{step.name} was rolled back: {taken.reason}")
    taken.seconds = time.monotonic() - started
    return taken


def _too_much_lost(state: BuildState, figure: MetricFigure | None) -> str | None:
    """How a step broke the metric budget, or None where it did not."""
    drop = state.evaluator.drop(state.steps[0].figure, figure)
    limit = state.recipe.budget.metric_drop
    if drop is None or limit is None or drop <= limit:
        return None
    return f"the metric dropped by {drop:.4g}, the budget allows {limit:.4g}"


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


def _finish(state: BuildState) -> Report:
    """Measure, judge the budgets, deliver."""
    measurements = state.evaluator.measure(
        {f"{number} {step.name}": step.model for number, step in enumerate(state.kept)},
        reference=f"0 {SOURCE}",
    )
    measured = dict(zip(map(id, state.kept), measurements.values(), strict=True))
    never_slower(state, measured)
    first, final = state.kept[0], state.current
    last = measured[id(final)]
    if final is first and last.latency_ms is not None:
        last = last.model_copy(update={"latency_ratio": 1.0})
    claimed = [name for s in state.kept if s.applied is not None for name in s.applied.claimed]
    verdicts = judge_budgets(
        state.recipe.budget.limits(),
        Found(
            measurement=last,
            size_bytes=last.size_bytes,
            reference_bytes=measured[id(first)].size_bytes,
            metric_drop=state.evaluator.drop(first.figure, final.figure),
        ),
        allow_estimate=state.recipe.target.allow_estimate,
    )
    coverage = state.evaluator.coverage(final.model, claimed)
    agreement = placement = prepared = None
    if state.evaluator.present[0]:
        prepared = state.evaluator.artifact(final.model)
        state.notes.extend(prepared.notes)
        agreement = state.evaluator.agreement(final.model)
        placement = state.evaluator.placement(final.model)
    if state.search is not None:
        state.notes.extend(search_notes(state.search.report(), state.evaluator.metric_name))
    if state.cache.trouble is not None:
        state.notes.append(state.cache.trouble)
    report = build_report(state, measured, OnTarget(coverage, agreement, placement), verdicts)
    return deliver(state.output, final.model, report, manifest(state, report), prepared)
