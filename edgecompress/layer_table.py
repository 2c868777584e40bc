"""The per-layer table of a report: bytes, format, error and time of each node with weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

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
    parts = _parts(original, compressed)
    formats = {change.node: change.what for change in changes}
    errors = _errors(original, compressed, data, progress)
    times_before, times_after = _times(before), _times(after)
    table = []
    for node in original.ir.graph:
        name = _label(node)
        layer = info.get(name)
        if layer is None:
            continue
        now = [(part, after_info.get(_label(part))) for part in parts.get(_output(node), [])]
        results = [(part, result) for part, result in now if result is not None]
        outputs = dict.fromkeys([_output(node), *(_output(part) for part, _ in results)])
        table.append(
            LayerReport(
                node=name,
                op=layer.op,
                parameters=layer.parameters,
                macs=layer.macs,
                bytes_before=layer.bytes,
                bytes_after=sum(r.bytes for _, r in results) if results else layer.bytes,
                format=formats.get(name, "float"),
                sqnr_db=errors.get(_output(node)),
                time_before_us=times_before.get(_output(node)),
                time_after_us=_sum(times_after.get(name) for name in outputs),
            )
        )
    return table


def _parts(original: Model, compressed: Model) -> dict[str, list[ir.Node]]:
    """Output of a node -> what computes it now: itself, and new nodes that it alone needs."""
    ours = {value.name for node in original.ir.graph for value in node.outputs}
    owner: dict[ir.Node, str] = {}
    for node in reversed(compressed.ir.graph):
        names = [value.name for value in node.outputs if value.name in ours]
        readers = [reader for value in node.outputs for reader in value.consumers()]
        names += [owner[reader] for reader in readers if reader in owner]
        if names and names[0] is not None:
            owner[node] = names[0]
    found: dict[str, list[ir.Node]] = defaultdict(list)
    for node, name in owner.items():
        found[name].append(node)
    return found


def _label(node: ir.Node) -> str:
    return node.name or _output(node)


def _sum(times: Iterable[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if known else None


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
