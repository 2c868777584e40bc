"""What the commands answer, beside the build report: typed, and the same thing as ``--json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgecompress.agreement import Agreement
from edgecompress.measure import Measurement
from edgecompress.report.data import BudgetVerdict, Coverage, SensitivityReport

__all__ = [
    "LayerInfo",
    "BlockInfo",
    "Inspection",
    "ExportResult",
    "PlannedStep",
    "PlannedCandidate",
    "Plan",
    "ValidationResult",
    "NodeSqnr",
    "RangeFit",
    "DeadChannels",
    "KeepFloat",
    "Comparison",
    "Check",
    "Diagnosis",
    "TensorSummary",
    "StatisticsResult",
    "SensitivityResult",
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


class PlannedCandidate(_Result):
    """One candidate of a search with its passes, and why it would not be tried, if so."""

    name: str
    passes: list[dict[str, Any]]
    refused: str | None


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
    candidates: list[PlannedCandidate] = []
    budgets: dict[str, float]
    output: str


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
    agreement: Agreement | None = None
    budgets: list[BudgetVerdict]


class NodeSqnr(_Result):
    """Signal to quantization noise of one node's output, over the validation rows.

    Attributes:
        sqnr_db: As the error arrives: made here, and inherited.
        own_db: Made here: with the inputs of the float model. None where the nodes that stand for
            it cannot be run alone.
    """

    node: str
    op: str
    sqnr_db: float
    own_db: float | None = None


class RangeFit(_Result):
    """How the range of a quantized activation fits the values that it meets.

    Attributes:
        value: Name of the activation in B.
        low: Lowest number of the range.
        high: Highest number.
        clipped_low: Share of the values below the range.
        clipped_high: Share of the values above it.
        unused: Share of the range that no value came to.
        fault: Whether it has no width, clips values at a higher cost than rounding has, or is more
            than four times as wide as its values.
    """

    value: str
    low: float
    high: float
    clipped_low: float
    clipped_high: float
    unused: float | None
    fault: Literal["no width", "clips", "too wide"] | None


class DeadChannels(_Result):
    """Output channels of a layer that are the same number for all rows.

    Attributes:
        channels: How many the layer has.
        dead: Those that are constant in B and not in A.
        dead_in_both: Those that are constant in both.
    """

    node: str
    op: str
    channels: int
    dead: list[int]
    dead_in_both: list[int]


class KeepFloat(_Result):
    """A node that is worth keeping in float.

    Attributes:
        node: Name, as recipes have it.
        share: Part of the error that would go, of the sum over all nodes. What is lost between two
            nodes on integers stays where only one of them is kept in float.
        basis: Of the share: the error as it reaches the outputs of the model, to first order; or
            its power relative to the node's own signal, where no gradient can be taken. Where
            outputs are infinite, nodes whose numbers their types cannot hold count alike.
        extra_bytes: What its weights take more in float.
        macs: Multiply-accumulates that would be done in float; None where shapes do not tell.
        line: For the table ``[pass.nodes]`` of the pass that compressed it.
    """

    node: str
    op: str
    share: float
    basis: Literal["output", "node", "infinite"]
    extra_bytes: int
    macs: int | None
    line: str


class Comparison(_Result):
    """What ``edgecompress compare A B`` shows; nodes are worst first.

    Attributes:
        ranges: Of all quantized activations of B, in the order of the graph.
        dead_channels: Layers that have some, in the order of the graph.
        keep_float: Nodes most worth keeping in float, the best first.
        unmatched: Nodes of A without a counterpart in B.
    """

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
    ranges: list[RangeFit] = []
    dead_channels: list[DeadChannels] = []
    keep_float: list[KeepFloat] = []
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


class SensitivityResult(_Result):
    """What ``edgecompress sensitivity`` shows; ``sensitivity`` is in graph order."""

    model: str
    data: str
    target: str
    sensitivity: SensitivityReport
