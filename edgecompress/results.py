"""What the commands answer, beside the build report: typed, and the same thing as ``--json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgecompress.measure import Measurement
from edgecompress.report.data import BudgetVerdict, Coverage, SkipReport

__all__ = [
    "LayerInfo",
    "BlockInfo",
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
    "TensorSummary",
    "StatisticsResult",
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


class BlockInfo(_Result):
    """A slice of the graph that data-driven passes work on at once, in the order of the data.

    Attributes:
        layers: Number of its nodes with a weight matrix.
        parameters: Elements of its float weights.
        inputs: Values that earlier blocks compute for it.
        outputs: Values that later blocks read.
        live_bytes: Of the activations that are kept behind it, for one row.
        opaque: torch has no translation of a part of it; onnxruntime runs it.
        group: Blocks of the same structure, one after the other, share a number.
    """

    name: str
    nodes: int
    layers: int
    parameters: int
    inputs: list[str]
    outputs: list[str]
    live_bytes: int
    opaque: bool
    group: int | None


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
    quantized_form: str | None = None
    unsupported: list[str]
    layers: list[LayerInfo]
    blocks: list[BlockInfo]


class ExportResult(_Result):
    """What ``edgecompress export`` wrote, and its largest relative error against torch."""

    path: str
    files: list[str]
    kind: Literal["onnx", "torch", "exported-program", "transformers"]
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


class TensorSummary(_Result):
    """One value of a graph over all rows; the figures are None where no row reached it.

    Attributes:
        op: Operator that computes it, ``input`` for an input of the model.
        low: Smallest value.
        high: Largest value.
        mean: Mean of an evenly spaced sample.
        rms: Root mean square of the same sample.
        count: How many numbers were seen.
    """

    name: str
    op: str
    low: float | None
    high: float | None
    mean: float | None
    rms: float | None
    count: int


class StatisticsResult(_Result):
    """What ``edgecompress statistics`` shows: values in graph order, and those of widest range."""

    model: str
    data: str
    rows: int
    tensors: list[TensorSummary]
    widest: list[str]
