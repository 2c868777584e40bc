"""A target with everything at hand to judge a model on it: runtime, data, metric, measurement."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgecompress.constraints import Constraints
from edgecompress.data.calibration import CalibrationSet
from edgecompress.machine.host import host
from edgecompress.errors import DataError, MeasurementError, ModelError, TargetError, nearest
from edgecompress.files import ScratchFolder
from edgecompress.graph_pass import Timer
from edgecompress.measure import Measurement, measure, random_feeds, reachable
from edgecompress.metrics import Metric, Predict
from edgecompress.model import Model, Signature, TensorSpec
from edgecompress.progress import Progress, silent
from edgecompress.report.data import Coverage
from edgecompress.runtimes import Artifact, Runtime, runtime_class
from edgecompress.runtimes._times import run_times
from edgecompress.target import TargetProfile, host_target, load

if TYPE_CHECKING:
    import numpy as np
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


def with_shapes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    """The signature with numbers for the dimensions of some inputs.

    Raises:
        DataError: There is no such input, or its rank or a fixed dimension differs.
    """
    known = {spec.name: spec for spec in signature.inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise DataError(f"the model has no input {name!r}; {nearest(name, known)}")
        spec = known[name]
        fits = spec.shape is None or (
            len(spec.shape) == len(shape)
            and all(
                not isinstance(d, int) or d == n for d, n in zip(spec.shape, shape, strict=True)
            )
        )
        if not fits:
            raise DataError(
                f"expected {spec}, got the shape {list(shape)}", where=f"input {name!r}"
            )
        known[name] = replace(spec, shape=shape)
    return Signature(tuple(known.values()), signature.outputs)


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


@contextmanager
def _named(models: Iterable[Model], artifacts: Iterable[Path]) -> Iterator[None]:
    """Name the model in the runtime's errors, not the temporary file that it was given."""
    try:
        yield
    except MeasurementError as error:
        for model, file in zip(models, artifacts, strict=True):
            if error.where == str(file):
                after = f" after {', '.join(model.steps)}" if model.steps else ""
                error.where = f"{model.path or 'the model'}{after}"
        raise


@dataclass(frozen=True)
class MetricFigure:
    """A metric's value, and over how many validation rows."""

    value: float
    rows: int


@dataclass
class Evaluator:
    """Judges models on one target.

    Attributes:
        profile: The target.
        data: Rows, or None.
        metric: Needs ``data``; None where nothing is to be judged by it.
        progress: Told how far the work is.
        device: Address of the device to measure on; None for the target's own.
    """

    profile: TargetProfile
    data: CalibrationSet | None = None
    metric: Metric | None = None
    progress: Progress = silent
    device: str | None = None
    _artifacts: dict[str, Artifact] = field(default_factory=dict)
    _folder: ScratchFolder = field(default_factory=ScratchFolder)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.__exit__(kind, error, trace)

    @property
    def metric_name(self) -> str:
        """What people call the metric."""
        return "metric" if self.metric is None else self.metric.name

    @cached_property
    def runtime(self) -> Runtime:
        """The target's runtime."""
        return runtime_class(self.profile.runtime)()

    @cached_property
    def constraints(self) -> Constraints:
        """What the target demands of a graph."""
        return self.profile.constraints(host())

    @cached_property
    def reachable(self) -> tuple[bool, str]:
        """Whether the target can be measured from here, and if not, why."""
        return reachable(self.profile, self.device)

    @property
    def timer(self) -> Timer | None:
        """How long small models take on the target; None where it cannot be measured from here."""
        return partial(run_times, profile=self.profile) if self.reachable[0] else None

    def check(self, model: Model) -> None:
        """Refuse a model that the target's runtime cannot run, or that nothing can be fed to.

        Raises:
            TargetError: Names every operator that is not supported.
            DataError: There are no rows, and none can be made up.
        """
        refused = self.runtime.unsupported(model, self.profile)
        if refused:
            first = "; ".join(f"{f'{u.op} {u.node}'.strip()}: {u.reason}" for u in refused[:5])
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise TargetError(
                f"{self.profile.runtime} cannot run {len(refused)} of its nodes: {first}{more}",
                where=f"target {self.profile.name!r}",
                cure="choose another target, or export the model without these operators",
            )
        if self.reachable[0]:
            try:
                self.feeds(model)
            except DataError as error:
                cure = "name rows to run it on: a [data] table in the recipe, or --data"
                raise DataError(error.what, where=error.where, cure=cure) from error

    def artifact(self, model: Model) -> Artifact:
        """The model as the files that the runtime loads, in a temporary folder."""
        key = model.digest[:32]
        if key not in self._artifacts:
            self._artifacts[key] = self.runtime.prepare(
                model, self._folder.path / key, self.profile
            )
        return self._artifacts[key]

    def forget(self, model: Model) -> None:
        """Remove the model's temporary files; they are made again where they are needed again."""
        key = model.digest[:32]
        self._artifacts.pop(key, None)
        shutil.rmtree(self._folder.path / key, ignore_errors=True)

    def predict(self, model: Model) -> Predict:
        """A function from feeds to outputs that runs the model on the target's runtime.

        It uses all cores: only what it computes counts here, not how fast.
        """
        cores = {"threads": host().physical_cores or host().logical_cores}
        settings = self.profile.measurement.model_copy(update=cores)
        profile = self.profile.model_copy(update={"measurement": settings})
        artifact = self.artifact(model)
        with _named([model], [artifact.path]):
            run = self.runtime.session(artifact, profile).run

        def outputs(feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
            with _named([model], [artifact.path]):
                return run(feeds)

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

    def feeds(
        self,
        model: Model,
        batch: int = 1,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Mapping[str, npt.NDArray[np.generic]]:
        """Inputs to time the model with: real rows where there are any, else random numbers.

        Args:
            model: The model to feed.
            batch: What a symbolic first dimension counts.
            shapes: Whole shapes of single inputs, by name.

        Raises:
            DataError: A shape does not fit, its input does not exist, or a dimension is left open.
        """
        if self.data is not None and not shapes:
            return self.data.sample(batch)
        signature = with_shapes(model.signature, shapes or {})
        dims = {
            dim: batch
            for spec in signature.inputs
            for dim in (spec.shape or ())[:1]
            if isinstance(dim, str)
        }
        try:
            return random_feeds(signature, dims)
        except DataError as error:
            cure = "give its whole shape, such as --shape x=1x3x224x224"
            raise DataError(error.what, where=error.where, cure=cure) from error

    def not_run(self, model: Model, reason: str) -> Measurement:
        """What is known of a model that was not run: its size, and why."""
        return Measurement(basis="unknown", reason=reason, size_bytes=model.size_bytes)

    def measure(
        self,
        models: Mapping[str, Model],
        *,
        reference: str | None = None,
        feeds: Mapping[str, npt.NDArray[np.generic]] | None = None,
    ) -> dict[str, Measurement]:
        """Latency and memory of models, in turn, on the same inputs.

        Raises:
            MeasurementError: A model could not be run.
        """
        artifacts = {label: self.artifact(model) for label, model in models.items()}
        if feeds is None:
            feeds = self.feeds(next(iter(models.values()))) if self.reachable[0] else {}
        with _named(models.values(), (each.path for each in artifacts.values())):
            return measure(
                artifacts,
                self.profile,
                feeds,
                device=self.device,
                reference=reference,
                progress=self.progress,
            )

    def coverage(self, model: Model, claimed: Sequence[str]) -> Coverage | None:
        """How many of the claimed nodes the runtime runs on integers; None where none are."""
        if not claimed:
            return None
        found = self.runtime.coverage(model, claimed, self.profile)
        if found is None:
            return None
        return Coverage(
            claimed=found.claimed,
            fused=found.fused,
            unfused=dict(found.unfused),
            note=found.note,
        )
