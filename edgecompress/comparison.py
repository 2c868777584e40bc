"""Two models side by side: where a compressed graph departs from the original, node by node."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.calibration import CalibrationSet, Split
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.torchgraph import TorchGraph, as_tensors, to_torch

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
    first, second = to_torch(original, device=device), to_torch(compressed, device=device)
    done = 0
    with torch.inference_mode():
        for feeds, count in _feeds(data, rows):
            kept = _run_and_keep(first, feeds, errors)

            def observe(name: str, values: Tensor, kept: dict[str, Tensor] = kept) -> None:
                ours = sources[name]
                reference = kept.pop(ours, None)
                if reference is not None and reference.shape == values.shape:
                    difference = reference.double() - values.double()
                    errors[ours].signal += float(reference.double().square().sum())
                    errors[ours].noise += float(difference.square().sum())

            second(feeds, observe=observe, watch=set(sources), outputs=())
            done += count
            progress("compare", done, min(rows, data.validation_rows or data.calibration_rows))
    compared = [e for e in found if e.signal > 0 or e.noise > 0]
    unmatched = sum(all(o.name not in pairs for o in n.outputs) for n in original.ir.graph)
    return sorted(compared, key=lambda e: e.sqnr_db), unmatched


def _feeds(data: CalibrationSet, rows: int) -> Iterator[tuple[dict[str, Tensor], int]]:
    split: Split = "validation" if data.validation_rows else "calibration"
    batches = data.batches(split, _BATCH_ROWS)
    for batch in islice(batches, max(1, math.ceil(rows / _BATCH_ROWS))):
        yield as_tensors(batch.inputs), batch.rows


def _run_and_keep(
    graph: TorchGraph, feeds: dict[str, Tensor], names: dict[str, NodeError]
) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def keep(name: str, values: Tensor) -> None:
        kept[name] = values

    graph(feeds, observe=keep, watch=set(names), outputs=())
    return kept
