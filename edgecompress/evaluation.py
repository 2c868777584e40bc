"""A target with everything at hand to judge a model on it: runtime, data, metric, measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import ModelError
from edgecompress.machine.host import host
from edgecompress.metrics import Metric, Predict
from edgecompress.model import Model, TensorSpec
from edgecompress.runtimes import Session
from edgecompress.target import TargetProfile, host_target, load
from edgecompress.target_at_hand import TargetAtHand, named

if TYPE_CHECKING:
    import numpy.typing as npt


__all__ = ["Evaluator", "MetricFigure", "check_alike", "load_target"]


def load_target(name: str, *, base: Path = Path(), **settings: int | None) -> TargetProfile:
    """A target profile, with measurement settings overridden where they are not None.

    Args:
        name: ``host`` for this machine's CPU, a profile's name, or a ``.toml`` file.
        base: Folder that a relative path starts from.
        settings: ``threads``, ``warmup``, ``runs``.

    Raises:
        TargetError: There is no such target.
    """
    if name == "host":
        profile = load(host_target())
    elif name.endswith(".toml"):
        profile = load(base / name)
    else:
        profile = load(name)
    given = {key: value for key, value in settings.items() if value is not None}
    if not given:
        return profile
    return profile.model_copy(update={"measurement": profile.measurement.model_copy(update=given)})


def check_alike(reference: Model, model: Model) -> None:
    """Refuse two models that cannot be judged against one another on the same rows.

    Raises:
        ModelError: Their inputs differ, apart from names of free dimensions, or their outputs'
            names do.
    """
    for side in ("inputs", "outputs"):
        first, second = (getattr(m.signature, side) for m in (reference, model))
        if side == "inputs":
            alike = [_fixed(s) for s in first] == [_fixed(s) for s in second]
        else:
            alike = {s.name for s in first} == {s.name for s in second}
        if not alike:
            raise ModelError(
                f"the {side} differ: {', '.join(map(str, second))} against "
                f"{', '.join(map(str, first))}",
                where=f"{model.path or 'the model'} and {reference.path or 'its reference'}",
                cure="name a model and the one that it was made of",
            )


def _fixed(spec: TensorSpec) -> tuple[str, str, list[int | None] | None]:
    dims = None if spec.shape is None else [d if isinstance(d, int) else None for d in spec.shape]
    return spec.name, spec.dtype, dims


@dataclass(frozen=True)
class MetricFigure:
    """A metric's value, and over how many validation rows."""

    value: float
    rows: int


@dataclass
class Evaluator(TargetAtHand):
    """Judges models on one target by a metric.

    Attributes:
        metric: Needs ``data``; None where nothing is to be judged by it.
    """

    metric: Metric | None = None

    @property
    def metric_name(self) -> str:
        """What people call the metric."""
        return "metric" if self.metric is None else self.metric.name

    def predict(self, model: Model) -> Predict:
        """A function from feeds to outputs that runs the model on the target's runtime.

        It uses all cores: only what it computes counts here, not how fast.
        """
        cores = {"threads": host().physical_cores or host().logical_cores}
        settings = self.profile.measurement.model_copy(update=cores)
        profile = self.profile.model_copy(update={"measurement": settings})
        sessions: dict[Path, Session] = {}
        self._open.append(sessions)

        def outputs(feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            artifact = self.artifact(model, feeds)
            with named([model], [artifact.path]):
                if artifact.path not in sessions:
                    sessions[artifact.path] = self.runtime.session(artifact, profile)
                return sessions[artifact.path].run(feeds)

        return outputs

    def judge(self, model: Model, reference: Model) -> MetricFigure:
        """The metric on the validation rows.

        Raises:
            DataError: The data do not suit the metric.
            MeasurementError: The runtime cannot run the model.
        """
        if self.metric is None or self.data is None:
            raise ValueError("there is no metric, or there are no rows to judge on")
        against = self.predict(reference) if self.metric.needs_reference else None
        result = self.metric.evaluate(
            self.predict(model), self.data, reference=against, progress=self.progress
        )
        return MetricFigure(result.value, result.rows)

    def drop(self, before: MetricFigure | None, after: MetricFigure | None) -> float | None:
        """By how much the metric got worse; negative where it got better."""
        if before is None or after is None or self.metric is None:
            return None
        if math.isinf(before.value) and math.isinf(after.value):
            return 0.0
        # 0.8725 - 0.8675 is a little more than 0.005, and a budget of 0.005 allows it.
        loss = float(f"{before.value - after.value:.12g}")
        return loss if self.metric.higher_is_better else -loss
