"""Signal to noise of each node: as its error arrives, and as far as it is made there."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from edgecompress.comparison.side_by_side import (
    MAX_ROWS,
    Setting,
    comparable,
    difference,
    power,
    run_both,
    signal_power,
)
from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.model import Model
from edgecompress.progress import Progress, silent

__all__ = ["NodeError", "NodeErrors", "compare_nodes", "counterparts"]

_FLOATS = (
    None,
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)


@dataclass
class NodeError:
    """Power of a node's output and of its error, summed over rows.

    Attributes:
        node: Name in the original model.
        op: Operator.
        value: Name of the compared output in the original model.
        signal: Sum of squares of the original output.
        noise: Sum of squares of the difference, where each graph runs on its own activations.
        own_noise: The same where the nodes that stand for this one in the compressed graph are
            given the original's activations: what is lost here, and not before. The pairs in front
            of their inputs belong to it, the pair behind the output does not. None where they
            cannot be run alone.
        gain: Part that ``own_noise`` has in the power of the error at the model's outputs, to first
            order and relative to their signal. None where no gradient reaches the node.
        avoidable_noise: What ``own_noise`` is without the pairs in front of the inputs that would
            stay if this node alone were kept in float, since the nodes in front need them too.
        avoidable_gain: The same of ``gain``.
    """

    node: str
    op: str
    value: str
    signal: float = field(default=0.0)
    noise: float = field(default=0.0)
    own_noise: float | None = field(default=None)
    gain: float | None = field(default=None)
    avoidable_noise: float | None = field(default=None)
    avoidable_gain: float | None = field(default=None)

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); inf where they are equal."""
        return _decibels(self.signal, self.noise)

    @property
    def own_db(self) -> float | None:
        """The same for what is lost here."""
        return None if self.own_noise is None else _decibels(self.signal, self.own_noise)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf  # also where the noise is no number


def counterparts(original: Model, compressed: Model) -> dict[str, str]:
    """Values of the original -> values of the compressed graph that stand for them.

    Values keep their names through passes. Where a Q/DQ pair follows, what consumers see is the
    pair's output, so that is the counterpart.
    """
    present = {o.name: o for n in compressed.ir.graph for o in n.outputs if o.name}
    pairs = {}
    for node in original.ir.graph:
        for out in node.outputs:
            if out.name and out.name in present and out.dtype in _FLOATS:
                pairs[out.name] = _behind_pair(present[out.name])
    return pairs


def _behind_pair(value: ir.Value) -> str:
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            for further in use.node.outputs[0].uses():
                if further.node.op_type == "DequantizeLinear":
                    return further.node.outputs[0].name or ""
    return value.name or ""


class NodeErrors:
    """Sums up the errors of all matched float outputs, as they arrive.

    Attributes:
        pairs: Of :func:`counterparts`.
        by_value: Errors by the name of the output in the original.
        unmatched: Nodes of the original none of whose outputs the compressed graph computes.
    """

    def __init__(self, original: Model, compressed: Model) -> None:
        self.pairs = counterparts(original, compressed)
        self.by_value = {
            value.name or "": NodeError(node.name or value.name or "", node.op_type, value.name)
            for node in original.ir.graph
            for value in node.outputs
            if value.name in self.pairs
        }
        there = {value.name for node in compressed.ir.graph for value in node.outputs}
        self.unmatched = sum(
            node.op_type != "Constant" and there.isdisjoint(value.name for value in node.outputs)
            for node in original.ir.graph
        )
        self._sources = {theirs: ours for ours, theirs in self.pairs.items()}

    @property
    def ours(self) -> Collection[str]:
        """All that are compared."""
        return self.by_value

    @property
    def theirs(self) -> Collection[str]:
        """What consumers see of them."""
        return self._sources

    def see(self, batch: Batch, name: str, values: Tensor, originals: Mapping[str, Tensor]) -> None:
        """Add the error of one batch."""
        ours = self._sources[name]
        reference = originals.get(ours)
        if reference is None or not comparable(reference, values):
            return
        error = self.by_value[ours]
        error.signal += signal_power(reference, batch)
        error.noise += power(difference(reference, values), batch)

    def leave(self) -> None:
        """Nothing is held."""

    def worst_first(self) -> list[NodeError]:
        """The errors of all nodes that were reached."""
        reached = [e for e in self.by_value.values() if e.signal != 0 or e.noise != 0]
        return sorted(reached, key=lambda e: e.sqnr_db)


def compare_nodes(
    original: Model,
    compressed: Model,
    data: CalibrationSet,
    *,
    rows: int = MAX_ROWS,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> tuple[list[NodeError], int]:
    """Run both graphs over the same validation rows and sum up errors.

    Each graph runs on its own activations, so a node's error includes what it inherits.

    Args:
        original: The reference.
        compressed: The other model, with the same inputs.
        data: Rows; validation rows, or calibration rows where there are none.
        rows: At most so many.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.

    Returns:
        Errors of all matched float outputs, worst first, and the number of nodes without match.
    """
    errors = NodeErrors(original, compressed)
    run_both(original, compressed, data, [errors], Setting(rows, device, memory, scratch, progress))
    return errors.worst_first(), errors.unmatched
