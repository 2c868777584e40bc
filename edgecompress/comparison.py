"""Two models side by side: where a compressed graph departs from the original, node by node."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.data.token_mask import real_values
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.walk.walker import Walk, Watch

__all__ = ["NodeError", "compare_nodes", "counterparts"]

# All watched activations of a batch are held at once, so batches are small.
_BATCH_ROWS = 4
_MAX_ROWS = 64


@dataclass
class NodeError:
    """Power of a node's output and of its error, summed over rows.

    Attributes:
        node: Name in the original model.
        op: Operator.
        value: Name of the compared output in the original model.
        signal: Sum of squares of the original output.
        noise: Sum of squares of the difference.
    """

    node: str
    op: str
    value: str
    signal: float = field(default=0.0)
    noise: float = field(default=0.0)

    @property
    def sqnr_db(self) -> float:
        """10 log10(signal / noise); inf where they are equal."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


def counterparts(original: Model, compressed: Model) -> dict[str, str]:
    """Values of the original -> values of the compressed graph that stand for them.

    Values keep their names through passes. Where a Q/DQ pair follows, what consumers see is the
    pair's output, so that is the counterpart.
    """
    present = {o.name: o for n in compressed.ir.graph for o in n.outputs if o.name}
    pairs = {}
    for node in original.ir.graph:
        for out in node.outputs:
            if out.name and out.name in present and out.dtype in (None, ir.DataType.FLOAT):
                pairs[out.name] = _behind_pair(present[out.name])
    return pairs


def _behind_pair(value: ir.Value) -> str:
    for use in value.uses():
        if use.node.op_type == "QuantizeLinear":
            for further in use.node.outputs[0].uses():
                if further.node.op_type == "DequantizeLinear":
                    return further.node.outputs[0].name or ""
    return value.name or ""


def compare_nodes(
    original: Model,
    compressed: Model,
    data: CalibrationSet,
    *,
    rows: int = _MAX_ROWS,
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

    Raises:
        UnsupportedOperatorError: One of the graphs has operators that torch cannot run.
    """
    pairs = counterparts(original, compressed)
    found = [
        NodeError(node.name or value.name or "", node.op_type, value.name or "")
        for node in original.ir.graph
        for value in node.outputs
        if value.name in pairs
    ]
    errors = {e.value: e for e in found}
    sources = {theirs: ours for ours, theirs in pairs.items()}
    kept: dict[str, Tensor] = {}

    def keep(batch: Batch, name: str, values: Tensor) -> None:
        kept[name] = values

    def judge(batch: Batch, name: str, values: Tensor) -> None:
        ours = sources[name]
        reference = kept.pop(ours, None)
        if reference is None or reference.shape != values.shape:
            return
        signal, noise = _powers(reference, values, batch)
        errors[ours].signal += signal
        errors[ours].noise += noise

    walk = Walk(
        original,
        data,
        current=compressed,
        split="validation" if data.validation_rows else "calibration",
        rows=rows,
        batch_size=_BATCH_ROWS,
        device=device,
        memory=memory,
        scratch=scratch,
        progress=progress,
        label="compare",
    )
    for step in walk:
        # A cut may lie between a value and the Q/DQ pair that is compared with it.
        step.advance(Watch(errors, keep, again=True), Watch(sources, judge))
        kept.clear()
    compared = [e for e in found if e.signal > 0 or e.noise > 0]
    unmatched = sum(all(o.name not in pairs for o in n.outputs) for n in original.ir.graph)
    return sorted(compared, key=lambda e: e.sqnr_db), unmatched


def _powers(reference: Tensor, values: Tensor, batch: Batch) -> tuple[float, float]:
    """Sums of squares of the reference and of the difference, without padding."""
    if batch.mask is not None:
        mask = torch.from_numpy(batch.mask)
        reference, values = real_values(reference, mask), real_values(values, mask)
    signal = reference.double()
    return float(signal.square().sum()), float((signal - values.double()).square().sum())
