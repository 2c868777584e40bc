"""Nodes in the order of the error that they bring to the model's outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgecompress.comparison import NodeError, diagnose
from edgecompress.comparison.side_by_side import Setting
from edgecompress.data.calibration import CalibrationSet
from edgecompress.graph_pass import Change
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.resources import Resources

__all__ = ["Noise", "noisy_nodes"]

_ROWS = 16
"""An order of nodes needs fewer rows than figures that are shown."""


@dataclass(frozen=True)
class Noise:
    """Error that a node makes itself.

    Attributes:
        own: Its power, as a share of that of the node's output; None where it is unknown.
        gain: What it adds to the error of the model's outputs, as a share of their power.
    """

    node: str
    op: str
    own: float | None
    gain: float | None


def noisy_nodes(
    original: Model,
    compressed: Model,
    changes: Iterable[Change],
    data: CalibrationSet,
    resources: Resources,
    *,
    progress: Progress = silent,
) -> list[Noise]:
    """Changed nodes, those that do the outputs the most harm first.

    Where the harm is unknown, the share of a node's own error in its output stands for it.
    """
    setting = Setting(_ROWS, memory=resources.memory, scratch=resources.scratch, progress=progress)
    errors = diagnose(original, compressed, data, setting).nodes
    names = {change.node for change in changes}
    worst: dict[str, Noise] = {}
    for error in errors:
        if error.node in names:
            noise = Noise(error.node, error.op, _own(error), error.gain)
            worst[error.node] = max(worst.get(error.node, noise), noise, key=_harm)
    return sorted(worst.values(), key=_harm, reverse=True)


def _own(error: NodeError) -> float | None:
    if error.own_noise is None or error.signal <= 0:
        return None
    return error.own_noise / error.signal


def _harm(noise: Noise) -> tuple[float, float]:
    own = noise.own or 0.0
    return (own if noise.gain is None else noise.gain), own
