"""What the commands answer, beside the build report: typed, and the same thing as ``--json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgecompress.measure import Measurement
from edgecompress.report.data import BudgetVerdict, Coverage, SkipReport

__all__ = [
    "LayerInfo",
    "Inspection",
    "ExportResult",
    "PlannedStep",
    "Plan",
    "ProfileResult",
    "ValidationResult",
    "NodeSqnr",
    "Comparison",
    "Check",
    "Diagnosis",
]


class _Result(BaseModel):
    # An SQNR is infinite where nothing changed; JSON has no number for that.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class LayerInfo(_Result):
    """A node that carries weights, or that costs multiply-accumulates.

    Attributes:
        macs: Multiply-accumulates for batch 1, or None where the shapes do not tell.
        bytes: Bytes of its weights.
        passes: Names of installed passes that could compress it.
    """

    node: str
    op: str
    weight_shape: list[int] | None
    parameters: int
    bytes: int
    macs: int | None
    passes: list[str]


class Inspection(_Result):
    """What ``edgecompress inspect`` shows."""

    path: str
    opset: int
    producer: str
    digest: str
    size_bytes: int
    signature: dict[str, list[dict[str, Any]]]
    nodes: int
    operators: dict[str, int]
    parameters: int
    macs: int | None
    already_quantized: bool
    unsupported: list[str]
    layers: list[LayerInfo]


class ExportResult(_Result):
    """What ``edgecompress export`` wrote, and its largest relative error against torch."""

    path: str
    files: list[str]
    kind: Literal["onnx", "torch", "exported-program"]
    opset: int
    size_bytes: int
    export_error: float | None
    signature: dict[str, list[dict[str, Any]]]


class PlannedStep(_Result):
    """One step that a build would run, and whether its result lies in the cache."""

    name: str
    options: dict[str, Any]
    cached: bool


class Plan(_Result):
    """What ``edgecompress build --dry-run`` would do."""

    source: str
    target: str
    measurable: bool
    measurable_reason: str
    calibration_rows: int
    validation_rows: int
    metric: str | None
    steps: list[PlannedStep]
    budgets: dict[str, float]
    output: str


class ProfileResult(_Result):
    """What ``edgecompress profile`` measured on the target's runtime."""

    model: str
    target: str
    measurement: Measurement
    unsupported: list[SkipReport]


class ValidationResult(_Result):
    """What ``edgecompress validate`` found: each budget with its verdict."""

    model: str
    reference: str | None
    target: str
    passed: bool
    metric: str | None
    metric_value: float | None
    reference_metric: float | None
    measurement: Measurement
    coverage: Coverage | None
    budgets: list[BudgetVerdict]


class NodeSqnr(_Result):
    """Signal to quantization noise of one node's output, over the validation rows."""

    node: str
    op: str
    sqnr_db: float


class Comparison(_Result):
    """What ``edgecompress compare A B`` shows; nodes are worst first."""

    a: str
    b: str
    rows: int
    metric: str
    metric_a: float
    metric_b: float
    size_bytes_a: int
    size_bytes_b: int
    outputs: list[NodeSqnr]
    nodes: list[NodeSqnr]
    unmatched: int


class Check(_Result):
    """One line of ``edgecompress doctor``."""

    name: str
    status: Literal["ok", "missing", "problem"]
    detail: str
    cure: str | None = None


class Diagnosis(_Result):
    """What ``edgecompress doctor`` found; ``healthy`` covers the core, not the extras."""

    healthy: bool
    checks: list[Check]
