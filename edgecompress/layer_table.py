"""The per-layer table of a report: bytes, format, error and time of each node with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgecompress.comparison import compare_nodes
from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import InputError
from edgecompress.graph_pass import Change
from edgecompress.inspection import list_layers
from edgecompress.measure import Measurement
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.report.data import LayerReport

__all__ = ["layer_table"]


def layer_table(
    original: Model,
    compressed: Model,
    changes: Sequence[Change],
    *,
    before: Measurement | None,
    after: Measurement | None,
    data: CalibrationSet | None,
    progress: Progress = silent,
) -> list[LayerReport]:
    """One line for each node of the original graph that carries weights or costs MACs.

    Args:
        original: The float graph that the compressing passes started from.
        compressed: The result.
        changes: What the passes changed, for the formats.
        before: Measurement of ``original``.
        after: Measurement of ``compressed``.
        data: Rows to compute errors on; None leaves them unknown.
        progress: Told how far the comparison is.
    """
    info = {layer.node: layer for layer in list_layers(original)}
    after_info = {layer.node: layer for layer in list_layers(compressed)}
    formats = {change.node: change.what for change in changes}
    errors = _errors(original, compressed, data, progress)
    times_before, times_after = _times(before), _times(after)
    table = []
    for node in original.ir.graph:
        name = node.name or _output(node)
        layer = info.get(name)
        if layer is None:
            continue
        result = after_info.get(name)
        table.append(
            LayerReport(
                node=name,
                op=layer.op,
                parameters=layer.parameters,
                macs=layer.macs,
                bytes_before=layer.bytes,
                bytes_after=layer.bytes if result is None else result.bytes,
                format=formats.get(name, "float"),
                sqnr_db=errors.get(_output(node)),
                time_before_us=times_before.get(_output(node)),
                time_after_us=times_after.get(_output(node)),
            )
        )
    return table


def _output(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _errors(
    original: Model, compressed: Model, data: CalibrationSet | None, progress: Progress
) -> Mapping[str, float]:
    if data is None:
        return {}
    try:
        found, _ = compare_nodes(original, compressed, data, progress=progress)
    except InputError:
        return {}  # torch cannot run the graph; the columns say unknown
    return {error.value: error.sqnr_db for error in found}


def _times(measurement: Measurement | None) -> dict[str, float]:
    """Output name of a node -> time of the kernel that computes it, shared by all it stands for."""
    if measurement is None:
        return {}
    return {
        name: kernel.mean_us for kernel in measurement.operators for name in kernel.output_names
    }
