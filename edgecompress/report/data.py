"""Report: one data model behind the JSON file, the HTML page and the JUnit file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgecompress.agreement import Agreement
from edgecompress.measure import Measurement
from edgecompress.report.placement import PlacementInfo

__all__ = [
    "Report",
    "StepReport",
    "LayerReport",
    "ChangeReport",
    "SkipReport",
    "FormatSensitivityReport",
    "NodeSensitivityReport",
    "SensitivityReport",
    "SearchReport",
    "CandidateReport",
    "GiveBackReport",
    "BudgetVerdict",
    "Coverage",
    "FileRecord",
    "MetricRecord",
    "SourceRecord",
    "DataRecord",
]


class _Record(BaseModel):
    # An SQNR is infinite where nothing changed; JSON has no number for that.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class FileRecord(_Record):
    """A delivered file."""

    name: str
    bytes: int
    sha256: str


class SourceRecord(_Record):
    """Where the model came from."""

    path: str
    digest: str
    opset: int
    size_bytes: int
    parameters: int
    macs: int | None
    signature: dict[str, list[dict[str, Any]]]


class DataRecord(_Record):
    """The rows that were used; calibration and validation rows are disjoint."""

    calibration_source: str
    calibration_rows: int
    validation_source: str | None
    validation_rows: int
    digest: str
    left_out_copies: int = 0
    truncated_texts: int = 0


class MetricRecord(_Record):
    """What "still good" means, and on how many validation rows it was taken."""

    name: str
    higher_is_better: bool
    rows: int


class ChangeReport(_Record):
    """One edit of a pass."""

    node: str
    op: str
    what: str
    bytes_before: int
    bytes_after: int


class SkipReport(_Record):
    """A candidate that a pass left alone, and why."""

    node: str
    op: str
    reason: str


class Coverage(_Record):
    """Fusion coverage: of the nodes that passes claimed, how many the runtime runs as claimed.

    ``unfused`` maps the node's name to what the runtime made of it. From the runtime's own
    optimized graph; ``note`` says where another provider stood in for the target's own.
    """

    claimed: int
    fused: int
    unfused: dict[str, str]
    note: str | None = None


class LayerReport(_Record):
    """One node that carries weights."""

    node: str
    op: str
    parameters: int
    macs: int | None
    bytes_before: int
    bytes_after: int
    format: str
    sqnr_db: float | None
    time_before_us: float | None
    time_after_us: float | None


class FormatSensitivityReport(_Record):
    """One node alone in one format.

    Attributes:
        sqnr_db: Signal to noise of its output on the float stream.
        loss: Expected loss at the model's outputs, per row.
    """

    sqnr_db: float
    loss: float


class NodeSensitivityReport(_Record):
    """One node in all formats that it may have, and the one that was chosen, if one was."""

    node: str
    op: str
    formats: dict[str, FormatSensitivityReport]
    chosen: str | None = None


class SensitivityReport(_Record):
    """What each node alone costs in each format, in graph order.

    Attributes:
        unit: What a loss is measured in.
        rows: That it was taken on.
        split: Which rows these are.
        remarks: What the figures leave out.
    """

    unit: str
    rows: int
    split: Literal["validation", "calibration"]
    nodes: list[NodeSensitivityReport]
    remarks: list[str] = []


class StepReport(_Record):
    """One pass of the build, with the figures of the model after it.

    ``status``: ``source`` is the float model before any pass; ``rolled back`` means that the step
    broke the metric budget and the model before it went on.
    """

    name: str
    options: dict[str, Any]
    status: Literal["source", "kept", "unchanged", "rolled back"]
    reason: str | None = None
    cached: bool
    seconds: float
    size_bytes: int
    metric: float | None
    measurement: Measurement | None
    changed: list[ChangeReport]
    skipped: list[SkipReport]
    notes: dict[str, Any]
    sensitivity: SensitivityReport | None = None


class GiveBackReport(_Record):
    """A node that a search returned to float, and why.

    Attributes:
        cause: ``time``: it and the conversions around it took longer than in float. ``accuracy``:
            its own error was among the largest while the metric lost too much.
        detail: The figures behind it.
    """

    node: str
    op: str
    cause: Literal["time", "accuracy"]
    detail: str


CandidateStatus = Literal[
    "chosen",
    "outdone",
    "misses a budget",
    "slower than float",
    "loses too much",
    "unchanged",
    "refused",
    "failed",
    "not tried",
]


class CandidateReport(_Record):
    """One candidate of a search; figures that were not taken are None.

    Attributes:
        name: ``float`` is the model behind the recipe's own passes, or in front of them where they
            made it slower.
        parent: The candidate that it was made of by giving nodes back to float.
        passes: Its passes with their options.
        status: ``outdone``: it keeps everything, and another one is better.
        reason: The status in figures.
        metric_drop: By how much the metric is worse than that of the float model.
        latency_ratio: Time per inference over that of the float model, measured in turn.
        cpu_ratio: The same of processor time.
        latency_ms: Median time per inference.
        gave_back: Nodes returned to float.
        seconds: Time that building, judging and measuring it took.
    """

    name: str
    parent: str | None = None
    passes: list[dict[str, Any]]
    status: CandidateStatus
    reason: str
    size_bytes: int | None = None
    metric: float | None = None
    metric_drop: float | None = None
    latency_ratio: float | None = None
    cpu_ratio: float | None = None
    latency_ms: float | None = None
    gave_back: list[GiveBackReport] = []
    seconds: float = 0.0


class SearchReport(_Record):
    """All candidates of a search, in the order in which they were tried.

    Attributes:
        objective: What the best one was chosen by.
        allowed_drop: By how much the metric might get worse.
        allowed_by: Where that limit comes from: the budget, or the default.
        complete: Whether the time sufficed for all candidates.
    """

    objective: Literal["latency", "size"]
    allowed_drop: float
    allowed_by: Literal["budget", "default"]
    complete: bool
    candidates: list[CandidateReport]


class BudgetVerdict(_Record):
    """A budget, what was found, and the verdict. Only a measurement passes a budget."""

    name: str
    limit: float
    value: float | None
    unit: str
    basis: Literal["measured", "estimated", "unknown"]
    passed: bool


class Report(_Record):
    """All that a build found out. Written also when it fails."""

    schema_version: Literal[1] = 1
    tool: str
    versions: dict[str, str]
    status: Literal["passed", "failed", "error"]
    error: dict[str, Any] | None = None
    source: SourceRecord | None
    target: str
    data: DataRecord | None
    metric: MetricRecord | None
    steps: list[StepReport]
    search: SearchReport | None = None
    layers: list[LayerReport]
    coverage: Coverage | None
    agreement: Agreement | None = None
    placement: PlacementInfo | None = None
    budgets: list[BudgetVerdict]
    files: list[FileRecord]
    notes: list[str]
    output: str = ""
    seconds: float
