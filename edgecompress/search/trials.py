"""A trial: one candidate, and all that was found out about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgecompress.evaluation import MetricFigure
from edgecompress.graph_pass import Applied, Pass
from edgecompress.measure import Measurement
from edgecompress.model import Model
from edgecompress.report.data import CandidateReport, CandidateStatus, GiveBackReport
from edgecompress.search.candidates import Candidate

__all__ = ["TakenPass", "Trial", "time_ratio"]


def time_ratio(measured: Measurement) -> float | None:
    """Time per inference over that of the reference; None where it was not measured.

    On a busy machine the processor's time tells more than the clock on the wall, as long as there
    is one thread.
    """
    if measured.basis != "measured":
        return None
    conditions = measured.conditions
    if conditions is not None and not conditions.quiet and conditions.threads == 1:
        return measured.cpu_ratio or measured.latency_ratio
    return measured.latency_ratio


@dataclass(frozen=True)
class TakenPass:
    """A pass of a candidate that changed the graph, and what it did."""

    step: Pass
    applied: Applied
    cached: bool
    seconds: float


@dataclass
class Trial:
    """A candidate on its way through the search.

    Attributes:
        candidate: Its name and passes.
        parent: The trial that it gives nodes back from.
        gave_back: These nodes.
        taken: Its passes that changed something.
        model: The model behind them; None where there is none, or it was let go.
        figure: The metric.
        drop: By how much the metric is worse than that of the float model.
        measurement: Taken in turn with the float model.
        size_bytes: Of its file.
        missed: Names of the budgets that it does not keep.
        status: None while it is good for the choice.
        reason: The status in figures.
        seconds: Time that it took.
    """

    candidate: Candidate
    parent: Trial | None = None
    gave_back: tuple[GiveBackReport, ...] = ()
    taken: list[TakenPass] = field(default_factory=list)
    model: Model | None = None
    figure: MetricFigure | None = None
    drop: float | None = None
    measurement: Measurement | None = None
    size_bytes: int | None = None
    missed: tuple[str, ...] = ()
    status: CandidateStatus | None = None
    reason: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.candidate.name

    @property
    def is_float(self) -> bool:
        """Whether it stands for the model that no candidate has touched."""
        return not self.candidate.passes

    @property
    def speed(self) -> float | None:
        """Time per inference over that of the float model; None where it was not measured."""
        return None if self.measurement is None else time_ratio(self.measurement)

    def end(self, status: CandidateStatus, reason: str) -> None:
        """Take it out of the choice."""
        self.status, self.reason = status, reason

    def report(self) -> CandidateReport:
        """What the report says of it, once it has a status."""
        measured = self.measurement
        latency = None if measured is None else measured.latency_ms
        return CandidateReport(
            name=self.name,
            parent=None if self.parent is None else self.parent.name,
            passes=[{"name": step.name, **step.options()} for step in self.candidate.passes],
            status=self.status or "outdone",
            reason=self.reason,
            size_bytes=self.size_bytes,
            metric=None if self.figure is None else self.figure.value,
            metric_drop=self.drop,
            latency_ratio=None if measured is None else measured.latency_ratio,
            cpu_ratio=None if measured is None else measured.cpu_ratio,
            latency_ms=None if latency is None else latency.p50,
            gave_back=list(self.gave_back),
            seconds=self.seconds,
        )
