"""Models on a target: latency and memory in turn, agreement of outputs, and where nodes run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from edgecompress.errors import EdgeCompressError
from edgecompress.evaluation import Evaluator
from edgecompress.measure import Measurement
from edgecompress.model import Model
from edgecompress.report.data import SkipReport
from edgecompress.report.placement import placement_info
from edgecompress.report.profile_data import ProfileResult
from edgecompress.target_at_hand import Feeds

if TYPE_CHECKING:
    from edgecompress.agreement import Agreement
    from edgecompress.runtimes import Placement

__all__ = ["Shapes", "by_inputs", "profile_in_turn"]

T = TypeVar("T")
Shapes = Mapping[str, tuple[int, ...]]


def by_inputs(models: Mapping[str, Model]) -> list[dict[str, Model]]:
    """Models in groups that take the same inputs and so can take turns."""
    groups: dict[str, dict[str, Model]] = {}
    for name, model in models.items():
        key = "; ".join(map(str, model.signature.inputs))
        groups.setdefault(key, {})[name] = model
    return list(groups.values())


def profile_in_turn(
    models: Mapping[str, Model],
    evaluator: Evaluator,
    *,
    batch: int = 1,
    shapes: Sequence[Shapes] = ({},),
    check: bool = True,
    placement: bool = True,
    strict: bool = False,
) -> list[ProfileResult]:
    """Profile models that take the same inputs on one target; a failure of one stops no other.

    Args:
        models: By the name that people know them by; times of the later ones are compared with
            those of the first, measured in turn.
        evaluator: The target.
        batch: What a symbolic first dimension counts.
        shapes: Shapes of the inputs; each entry is measured.
        check: Hold the outputs against onnxruntime's.
        placement: Ask the runtime where each node runs.
        strict: Let errors pass instead of keeping them in the rows.
    """
    rounds = (_Round(models, evaluator, batch, given, strict) for given in shapes)
    return [row for each in rounds for row in each.rows(check, placement)]


class _Round:
    """All models with one shape of the inputs."""

    def __init__(
        self,
        models: Mapping[str, Model],
        evaluator: Evaluator,
        batch: int,
        shapes: Shapes,
        strict: bool,
    ) -> None:
        self.models, self.evaluator = models, evaluator
        self.batch, self.shapes = batch, shapes
        self.strict = strict
        self.errors: dict[str, EdgeCompressError] = {}
        self.refused: dict[str, list[SkipReport]] = {name: [] for name in models}
        self.feeds: Feeds = {}

    def rows(self, check: bool, placement: bool) -> list[ProfileResult]:
        """A row for each model."""
        for name, model in self.models.items():
            self._attempt(name, partial(self._look, name, model))
        measured = self._measure()
        return [
            self._row(name, model, measured[name], check, placement)
            for name, model in self.models.items()
        ]

    def _attempt(self, name: str, work: Callable[[], T]) -> T | None:
        """What ``work`` returns; None where it fails, and then the first error is kept."""
        try:
            return work()
        except EdgeCompressError as error:
            if self.strict:
                raise
            self.errors.setdefault(name, error)
            return None

    def _look(self, name: str, model: Model) -> None:
        self.feeds = self.evaluator.feeds(model, self.batch, self.shapes)
        if self.evaluator.present[0]:
            refused = self.evaluator.unsupported(model, self.feeds)
            self.refused[name] = [
                SkipReport(node=u.node, op=u.op, reason=u.reason) for u in refused
            ]

    def _runs(self, name: str) -> bool:
        return name not in self.errors and not self.refused[name]

    def _measure(self) -> dict[str, Measurement]:
        found = {
            name: self.evaluator.not_run(model, self._why(name))
            for name, model in self.models.items()
            if not self._runs(name)
        }
        left = {name: model for name, model in self.models.items() if self._runs(name)}
        if len(left) > 1 and not self.strict:
            try:
                return found | self._together(left)
            except EdgeCompressError:
                pass  # one of them fails: each alone then, to find out which
        elif left:
            together = self._attempt(next(iter(left)), partial(self._together, left))
            if together is not None:
                return found | together
        for name, model in left.items():
            alone = None
            if self._runs(name):
                alone = self._attempt(name, partial(self._together, {name: model}))
            found[name] = (alone or {}).get(name) or self.evaluator.not_run(model, self._why(name))
        return found

    def _together(self, models: Mapping[str, Model]) -> dict[str, Measurement]:
        reference = next(iter(models)) if len(models) > 1 else None
        return self.evaluator.measure(models, reference=reference, feeds=self.feeds)

    def _why(self, name: str) -> str:
        if name in self.errors:
            return str(self.errors[name]).splitlines()[0]
        return "the runtime does not support all operators"

    def _row(
        self, name: str, model: Model, measurement: Measurement, check: bool, placement: bool
    ) -> ProfileResult:
        evaluator = self.evaluator
        agreement: Agreement | None = None
        placed: Placement | None = None
        notes: tuple[str, ...] = ()
        if self._runs(name) and evaluator.present[0]:
            artifact = self._attempt(name, partial(evaluator.artifact, model, self.feeds))
            notes = () if artifact is None else artifact.notes
            if check and artifact is not None:
                agreement = self._attempt(name, partial(evaluator.agreement, model, self.feeds))
            if placement:
                placed = self._attempt(name, partial(evaluator.placement, model, self.feeds))
        error = self.errors.get(name)
        return ProfileResult(
            model=name,
            target=evaluator.profile.name,
            device=evaluator.address,
            shapes={key: list(array.shape) for key, array in self.feeds.items()},
            measurement=measurement,
            agreement=agreement,
            placement=None if placed is None else placement_info(placed),
            unsupported=self.refused[name],
            notes=list(notes),
            error=None if error is None else error.as_json(),
        )
