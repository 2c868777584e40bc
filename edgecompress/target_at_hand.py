"""A target with its runtime and device: prepared files, measurement, agreement, placement."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from edgecompress.agreement import Agreement
from edgecompress.constraints import Constraints
from edgecompress.data.calibration import CalibrationSet
from edgecompress.devices import connect
from edgecompress.errors import DataError, MeasurementError, TargetError
from edgecompress.feeding import inputs_for
from edgecompress.files import ScratchFolder
from edgecompress.fixed_shapes import fixed_shapes, is_fixed
from edgecompress.graph_pass import Timer
from edgecompress.machine.host import host
from edgecompress.measure import Measurement, measure, reachable
from edgecompress.model import Model
from edgecompress.output_check import agree
from edgecompress.progress import Progress, silent
from edgecompress.report.data import Coverage
from edgecompress.runtimes import Artifact, Placement, Runtime, Session, Unsupported, runtime_class
from edgecompress.runtimes._times import run_times
from edgecompress.target import TargetProfile
from edgecompress.unreached import estimated

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Feeds = Mapping[str, "npt.NDArray[np.generic]"]

__all__ = ["Feeds", "TargetAtHand", "named"]


@contextmanager
def named(models: Iterable[Model], artifacts: Iterable[Path]) -> Iterator[None]:
    """Name the model in the runtime's errors, not the temporary file that it was given."""
    try:
        yield
    except MeasurementError as error:
        for model, file in zip(models, artifacts, strict=True):
            if error.where == str(file):
                after = f" after {', '.join(model.steps)}" if model.steps else ""
                error.where = f"{model.path or 'the model'}{after}"
        raise


@dataclass
class TargetAtHand:
    """What can be done with models on one target; a ``with`` block removes temporary files.

    Attributes:
        profile: The target.
        data: Rows to feed models with, or None for random numbers.
        progress: Told how far the work is.
        device: Address of the device to measure on; None for the target's own.
    """

    profile: TargetProfile
    data: CalibrationSet | None = None
    progress: Progress = field(default=silent, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    _artifacts: dict[str, Artifact] = field(default_factory=dict, init=False)
    _open: list[dict[Path, Session]] = field(default_factory=list, init=False)
    _folder: ScratchFolder = field(default_factory=ScratchFolder, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for session in (each for sessions in self._open for each in sessions.values()):
            session.close()
        self._folder.__exit__(kind, error, trace)

    @cached_property
    def runtime(self) -> Runtime:
        """The target's runtime."""
        return runtime_class(self.profile.runtime)()

    @cached_property
    def constraints(self) -> Constraints:
        """What the target demands of a graph."""
        return self.profile.constraints(host())

    @property
    def address(self) -> str:
        """Address of the device that models run on."""
        return self.device or self.profile.device.address or "local"

    @cached_property
    def present(self) -> tuple[bool, str]:
        """Whether models can be run on the target from here, timed or not; if not, why."""
        if not connect(self.address).here:
            return True, self.address
        return self.runtime.present(self.profile)

    @cached_property
    def reachable(self) -> tuple[bool, str]:
        """Whether the target can be measured from here, and if not, why."""
        return reachable(self.profile, self.device)

    @property
    def timer(self) -> Timer | None:
        """How long small models take on the target; None where it cannot be measured from here."""
        if self.profile.runtime != "onnxruntime" or not self.reachable[0]:
            return None
        return partial(run_times, profile=self.profile)

    def check(self, model: Model) -> None:
        """Refuse a model that the target's runtime cannot run, or that nothing can be fed to.

        Raises:
            TargetError: Names every operator that is not supported, or the runtime that is missing.
            DataError: There are no rows, and none can be made up.
        """
        here, why = self.present
        if not here and self.runtime.packages:
            raise TargetError(
                why,
                where=f"target {self.profile.name!r}",
                cure=f"install it, or choose another target: {self.runtime.install}",
            )
        refused = self.unsupported(model)
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

    def artifact(self, model: Model, feeds: Feeds | None = None) -> Artifact:
        """The model as the files that the runtime loads, in a temporary folder.

        Args:
            model: The model.
            feeds: Inputs of the shapes that it is made for, where the runtime wants fixed ones and
                the model leaves them free; default: those of :meth:`feeds`.
        """
        key = model.digest[:32]
        if self.runtime.fixed_shapes and not is_fixed(model):
            given = self.feeds(model) if feeds is None else feeds
            key += "".join(f"-{'x'.join(map(str, array.shape))}" for array in given.values())
            model = self._as_loaded(model, given)
        if key not in self._artifacts:
            folder = self._folder.path / key
            folder.mkdir(exist_ok=True)  # there already where a first attempt failed
            self._artifacts[key] = self.runtime.prepare(model, folder, self.profile)
        return self._artifacts[key]

    def forget(self, model: Model) -> None:
        """Remove the model's temporary files; they are made again where they are needed again."""
        for key in [key for key in self._artifacts if key.startswith(model.digest[:32])]:
            del self._artifacts[key]
            shutil.rmtree(self._folder.path / key, ignore_errors=True)

    def agreement(self, model: Model, feeds: Feeds | None = None) -> Agreement | None:
        """Whether the target computes what the file says.

        None where it is the reference itself, or cannot be run on this system.

        Raises:
            MeasurementError: The target cannot run the model.
        """
        plain = (self.profile.runtime, self.profile.provider) == (
            "onnxruntime",
            "CPUExecutionProvider",
        )
        if self.address == "local" and (plain or not self.runtime.runs_here()):
            return None
        given = self.feeds(model) if feeds is None else feeds
        with connect(self.address) as place:

            def outputs(each: Model) -> Feeds:
                taken = {spec.name: given[spec.name] for spec in each.signature.inputs}
                artifact = self.artifact(each, taken)
                where = str(model.path or "the model")
                with place.start(artifact, self.profile, taken, where=where) as peer:
                    return peer.outputs()

            return agree(model, outputs, given, self.profile, half=self.runtime.half)

    def feeds(
        self,
        model: Model,
        batch: int = 1,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Feeds:
        """Inputs to time the model with: real rows where there are any, else random numbers.

        Args:
            model: The model to feed.
            batch: What a symbolic first dimension counts.
            shapes: Whole shapes of single inputs, by name.

        Raises:
            DataError: A shape does not fit, its input does not exist, or a dimension is left open.
        """
        return inputs_for(model, self.data, batch, shapes or {})

    def not_run(self, model: Model, reason: str) -> Measurement:
        """What is known of a model that was not run: its size, and why."""
        return Measurement(basis="unknown", reason=reason, size_bytes=model.size_bytes)

    def measure(
        self,
        models: Mapping[str, Model],
        *,
        reference: str | None = None,
        feeds: Feeds | None = None,
    ) -> dict[str, Measurement]:
        """Latency and memory of models, in turn, on the same inputs.

        Raises:
            MeasurementError: A model could not be run.
        """
        if not self.reachable[0]:
            return self._estimates(models, reference, feeds)
        if feeds is None:
            feeds = self.feeds(next(iter(models.values())))
        artifacts = {label: self.artifact(model, feeds) for label, model in models.items()}
        with named(models.values(), (each.path for each in artifacts.values())):
            return measure(
                artifacts,
                self.profile,
                feeds,
                device=self.device,
                reference=reference,
                progress=self.progress,
            )

    def _estimates(
        self, models: Mapping[str, Model], reference: str | None, feeds: Feeds | None
    ) -> dict[str, Measurement]:
        """What is known of models on a target that is out of reach."""
        found = {}
        for label, model in models.items():
            why, size = self.reachable[1], model.size_bytes
            try:
                given = self.feeds(model) if feeds is None else feeds
                if self.present[0]:
                    size = self.artifact(model, given).size_bytes
                fixed = self._as_loaded(model, given)
                found[label] = estimated(
                    fixed, self.runtime, self.profile, given, size_bytes=size, why=why
                )
            except DataError:  # nothing to feed it with
                found[label] = Measurement(basis="unknown", reason=why, size_bytes=size)
        base = found[reference].latency_ms if reference is not None else None
        for label, each in found.items():
            if base is not None and each.latency_ms is not None and label != reference:
                ratio = each.latency_ms.p50 / base.p50
                found[label] = each.model_copy(update={"latency_ratio": ratio})
        return found

    def _as_loaded(self, model: Model, feeds: Feeds) -> Model:
        """The model as the runtime is given it: with fixed shapes where it wants them."""
        if not self.runtime.fixed_shapes or is_fixed(model):
            return model
        return fixed_shapes(model, {name: array.shape for name, array in feeds.items()})

    def unsupported(self, model: Model, feeds: Feeds | None = None) -> list[Unsupported]:
        """Nodes that the target's runtime does not take."""
        if not self.runtime.fixed_shapes:
            return self.runtime.unsupported(model, self.profile)
        try:
            given = self.feeds(model) if feeds is None else feeds
        except DataError:  # its shapes stay open; others complain of that
            return self.runtime.unsupported(model, self.profile)
        return self.runtime.unsupported(self._as_loaded(model, given), self.profile)

    def placement(self, model: Model, feeds: Feeds | None = None) -> Placement | None:
        """Where each node runs, as far as the runtime tells.

        Raises:
            MeasurementError: The runtime cannot load the model.
        """
        given = self.feeds(model) if feeds is None else feeds
        return self.runtime.placement(self._as_loaded(model, given), self.profile)

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
