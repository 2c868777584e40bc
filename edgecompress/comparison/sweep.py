"""All that is asked about a compressed graph, in one walk."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgecompress.comparison.channels import Channels, ChannelUse
from edgecompress.comparison.nodes import NodeError, NodeErrors
from edgecompress.comparison.own import OwnErrors
from edgecompress.comparison.ranges import Ranges, RangeUse
from edgecompress.comparison.segments import Segments
from edgecompress.comparison.sensitivity import Sensitivity
from edgecompress.comparison.side_by_side import Setting, run_both
from edgecompress.data.calibration import CalibrationSet
from edgecompress.model import Model

__all__ = ["Findings", "diagnose"]

# A backward pass takes the weights, and the activations of a batch, at once.
_WHOLE_GRAPH_SHARE = 4


@dataclass(frozen=True)
class Findings:
    """What a comparison found.

    Attributes:
        nodes: Errors of all matched float outputs, worst first.
        unmatched: Nodes of the original without a counterpart.
        ranges: Of the activations that are quantized with a given scale, in graph order.
        channels: Layers with dead channels, in graph order.
        segments: Output of a node -> the nodes of the compressed graph that stand for it.
    """

    nodes: list[NodeError]
    unmatched: int
    ranges: list[RangeUse]
    channels: list[ChannelUse]
    segments: dict[str, tuple[ir.Node, ...]]


def diagnose(
    original: Model, compressed: Model, data: CalibrationSet, setting: Setting | None = None
) -> Findings:
    """Run both graphs over the same rows, and each node of the compressed one alone.

    Args:
        original: The reference.
        compressed: The other model, with the same inputs.
        data: Rows; validation rows, or calibration rows where there are none.
        setting: How it runs.
    """
    setting = setting or Setting()
    original, compressed = original.inlined(), compressed.inlined()
    errors = NodeErrors(original, compressed)
    segments = Segments(original, compressed, setting.device)
    names = errors.by_value.keys() & segments.borders
    memory = setting.memory
    small = memory is None or original.weight_bytes * _WHOLE_GRAPH_SHARE <= memory
    sensitivity = Sensitivity.of(original, names, setting.device) if small else None
    own = OwnErrors(segments, errors.by_value, sensitivity)
    ranges, channels = Ranges(compressed), Channels(original, errors.pairs)
    run_both(original, compressed, data, [errors, own, ranges, channels], setting)
    return Findings(
        nodes=errors.worst_first(),
        unmatched=errors.unmatched,
        ranges=ranges.found,
        channels=channels.found,
        segments={name: segments.nodes(name) for name in names},
    )
