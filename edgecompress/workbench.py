"""What a build and a search have in common: run a pass, judge and measure a model, once each.

Everything goes through the cache, so that work which was interrupted is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgecompress.evaluation import Evaluator, MetricFigure
from edgecompress.graph_pass import Applied, Context, Pass, run_pass
from edgecompress.machine.host import host
from edgecompress.measure import Measurement
from edgecompress.metrics import MetricSpec
from edgecompress.model import Model
from edgecompress.progress import Progress
from edgecompress.resources import Resources
from edgecompress.step_cache import StepCache, code_of, digest_of

__all__ = ["Workbench", "TimeOverError"]


class TimeOverError(Exception):
    """Work took longer than :meth:`Workbench.until` allowed; never leaves the search."""


@dataclass(frozen=True)
class _Stored:
    """A record of more than one level, as the cache keeps it."""

    json: str


@dataclass
class Workbench:
    """Runs passes on models and judges the results, through the cache.

    Attributes:
        source: The float model; reference of the metric and of time.
        evaluator: The target, the rows and the metric.
        cache: Finished steps and figures.
        metric: The metric as the recipe names it.
        seed: Seed of everything random.
        resources: What work on data may use.
        progress: Told how far the work is.
        folder: Of the cache; None where nothing is kept.
    """

    source: Model
    evaluator: Evaluator
    cache: StepCache
    metric: MetricSpec | None
    seed: int
    resources: Resources
    progress: Progress
    folder: Path | None = None

    @contextmanager
    def until(self, deadline: float | None) -> Iterator[None]:
        """Break off work in the block that still goes on at ``deadline``, on the monotonic clock.

        Raises:
            TimeOverError: The time is over. Work that tells of no progress is not broken off.
        """
        inner = self.progress

        def checked(label: str, done: int, total: int) -> None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeOverError
            inner(label, done, total)

        self.progress = self.evaluator.progress = checked
        try:
            yield
        finally:
            self.progress = self.evaluator.progress = inner

    def key(self, step: Pass, model: Model) -> str:
        """Key of a pass's result on a model in the cache."""
        data = self.evaluator.data
        return digest_of(
            step=step.name,
            code=code_of(type(step)),
            options=step.options(),
            model=model.digest,
            data=data.digest if data is not None and step.needs != "nothing" else None,
            constraints=_in_order(asdict(self.evaluator.constraints)),
            seed=self.seed,
        )

    def run(self, step: Pass, model: Model) -> tuple[Applied, bool]:
        """The result of a pass, and whether it was in the cache.

        Raises:
            EdgeCompressError: As :func:`run_pass`.
        """
        key = self.key(step, model)
        kept = self.cache.step(key, model)
        if kept is not None:
            return kept, True
        context = Context(
            calibration=self.evaluator.data,
            constraints=self.evaluator.constraints,
            seed=self.seed,
            resources=self.resources,
            progress=self.progress,
            timer=self.evaluator.timer,
        )
        applied = run_pass(step, model, context)
        self.cache.keep_step(key, step.name, model, applied)
        return applied, False

    def judge(self, model: Model) -> MetricFigure | None:
        """The metric of a model, or None where there is no metric or no rows.

        Raises:
            DataError: The data do not suit the metric.
            MeasurementError: The runtime cannot run the model.
        """
        evaluator = self.evaluator
        if evaluator.metric is None or evaluator.data is None:
            return None
        if ":" in evaluator.metric.name:  # the user's own function may have changed without a trace
            return evaluator.judge(model, self.source)
        key = digest_of(
            metric=None if self.metric is None else self.metric.model_dump(),
            model=model.digest,
            reference=self.source.digest,
            data=evaluator.data.digest,
            target=evaluator.profile.model_dump(mode="json"),
        )
        return self.cache.value(key, MetricFigure, lambda: evaluator.judge(model, self.source))

    def measure(self, models: Sequence[Model]) -> list[Measurement]:
        """Measurements of models in turn with the float model, on this machine and under its load.

        Raises:
            MeasurementError: A model could not be run.
        """
        evaluator = self.evaluator

        def taken() -> _Stored:
            labels = {str(number): model for number, model in enumerate([self.source, *models])}
            found = evaluator.measure(labels, reference="0")
            return _Stored("\n".join(each.model_dump_json() for each in found.values()))

        key = digest_of(
            measured=[model.digest for model in models],
            reference=self.source.digest,
            data=None if evaluator.data is None else evaluator.data.digest,
            target=evaluator.profile.model_dump(mode="json"),
            machine=_in_order(asdict(host())),
        )
        text = self.cache.value(key, _Stored, taken).json
        return [Measurement.model_validate_json(line) for line in text.split("\n")]


def _in_order(value: Any) -> Any:
    """Plain data without sets, whose order changes from process to process."""
    if isinstance(value, dict):
        return {key: _in_order(each) for key, each in value.items()}
    return sorted(value) if isinstance(value, set | frozenset) else value
