"""The part of a build that is a search: its limits, the steps that it chose, and its last word."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from edgecompress.build_state import SOURCE, BuildState, Step
from edgecompress.errors import RecipeError
from edgecompress.measure import Measurement
from edgecompress.recipe import SearchSpec
from edgecompress.report import format as fmt
from edgecompress.search.choice import NOISE
from edgecompress.search.loop import Limits, Search
from edgecompress.search.trials import Trial, time_ratio

__all__ = ["never_slower", "take_best"]

_DEFAULT_DROP = 0.01
"""Share of the float model's figure that may be lost where no budget names ``metric_drop``."""


def take_best(state: BuildState, spec: SearchSpec) -> None:
    """Search behind the steps taken so far, and take those of the best candidate.

    Raises:
        RecipeError: Nothing tells how much accuracy may be lost.
        MeasurementError: The float model cannot be measured.
    """
    reference = state.steps[0].figure
    assert reference is not None  # the pipeline refuses a search without validation rows
    base = state.current
    search = Search(state.bench, spec, _limits(state, reference.value), reference)
    chosen = search.run(base.model, base.figure)
    state.search = search
    if chosen.is_float and chosen.model is not base.model:
        _back_to_source(state, "the model got slower by it")
    state.steps.extend(_steps(chosen))


def never_slower(state: BuildState, measured: Mapping[int, Measurement]) -> None:
    """Take back what the measurement at the end, of all kept steps in turn, finds slower.

    Args:
        state: The build, all of whose steps are taken.
        measured: By the ``id`` of its step.
    """
    if state.search is None or state.search.spec.objective != "latency":
        return
    ratio = time_ratio(measured[id(state.current)])
    if ratio is None or ratio <= 1 + NOISE or state.current.name == SOURCE:
        return
    why = f"measured at the end, it takes {fmt.ratio(ratio)} the time"
    if not state.current.candidate:
        _back_to_source(state, why)
        return
    for step in state.kept:
        if step.candidate:
            step.roll_back(why)
    state.search.revoke(why)
    never_slower(state, measured)


def _limits(state: BuildState, value: float) -> Limits:
    budget = state.recipe.budget
    if budget.metric_drop is None and not (isfinite(value) and value):
        raise RecipeError(
            f"the float model's {state.evaluator.metric_name} is {value:g}, which tells nothing of "
            "how much of it may be lost",
            where="search",
            cure="set metric_drop in [budget] or by --metric-drop, or use the metric 'cosine'",
        )
    default = _DEFAULT_DROP * abs(value)
    return Limits(
        drop=default if budget.metric_drop is None else budget.metric_drop,
        is_default=budget.metric_drop is None,
        budgets=budget.limits(),
        allow_estimate=state.recipe.target.allow_estimate,
    )


def _back_to_source(state: BuildState, why: str) -> None:
    for step in state.kept[1:]:
        step.roll_back(why)


def _steps(chosen: Trial) -> list[Step]:
    steps = [
        Step(
            each.step.name,
            each.applied.model,
            "kept",
            options=each.step.options(),
            applied=each.applied,
            cached=each.cached,
            seconds=each.seconds,
            candidate=True,
        )
        for each in chosen.taken
    ]
    if steps:
        steps[-1].figure = chosen.figure
    return steps
