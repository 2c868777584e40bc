"""Report: one data model behind the JSON file, the HTML page and the JUnit file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgecompress.measure import Measurement

__all__ = [
    "Report",
    "StepReport",
    "LayerReport",
    "ChangeReport",
    "SkipReport",
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
    layers: list[LayerReport]
    coverage: Coverage | None
    budgets: list[BudgetVerdict]
    files: list[FileRecord]
    notes: list[str]
    output: str = ""
    seconds: float
