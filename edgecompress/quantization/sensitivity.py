"""Sensitivity: what each layer, alone in a format, does to its output and to the model's.

Every candidate is run in every format on the float stream. Its error power is compared with its
signal (``sqnr_db``), and its error dy with the gradient g of the loss at the model's outputs:
``E[(g . dy)^2] / 2`` is the expected loss with only this node in this format, to second order
(:mod:`edgecompress.gradients.output_loss`; the idea is HAWQ-V2's, Dong et al., NeurIPS 2020,
arXiv 1911.03852, with the measured error of the output in place of that of the weight). One pass
forward and one backward over the rows tell it of all nodes and formats.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.errors import DataError
from edgecompress.gradients.backward import BackwardStep, backward
from edgecompress.gradients.output_loss import LossKind, OutputLoss, output_losses
from edgecompress.graph_pass import Applied, Context
from edgecompress.model import Model
from edgecompress.numerics.tree_sum import TreeSum
from edgecompress.quantization.variants import Candidate, Part, candidates
from edgecompress.torchgraph import TorchGraph
from edgecompress.walk.blocks import Block, find_blocks, whole

__all__ = ["FormatError", "NodeSensitivity", "Sensitivity", "measure_sensitivity"]

_BATCH_ROWS = 4


@dataclass(frozen=True)
class FormatError:
    """What one format does.

    Attributes:
        sqnr_db: 10 log10 of signal to error power at the node's output; inf where it is exact.
        loss: Expected loss at the model's outputs, per row.
        bytes: Of the node's weights in this format, with scales and bias.
    """

    sqnr_db: float
    loss: float
    bytes: int


@dataclass(frozen=True)
class NodeSensitivity:
    """One node in all formats that it may have.

    Attributes:
        node: Name, for people.
        op: Operator.
        output: Its first output, which identifies it.
        weights: Names of its weight matrices: nodes that share one have one format.
        bytes_float: Of its weights and bias in float.
        macs: Multiply-accumulates with its weights, for one row; 0 where it has none.
        elements: Of its output, for one row.
        formats: By name.
        reached: Whether a gradient reaches it. If not, ``loss`` is its own relative error.
    """

    node: str
    op: str
    output: str
    weights: tuple[str, ...]
    bytes_float: int
    macs: float
    elements: float
    formats: Mapping[str, FormatError]
    reached: bool = True

    @property
    def worst(self) -> float:
        """The largest loss of its formats."""
        return max(error.loss for error in self.formats.values())

    def as_note(self) -> dict[str, Any]:
        """Plain data, for notes and reports."""
        formats = {f: {"sqnr_db": e.sqnr_db, "loss": e.loss} for f, e in self.formats.items()}
        return {"node": self.node, "op": self.op, "formats": formats}


@dataclass(frozen=True)
class Sensitivity:
    """All candidates of a model, in graph order.

    Attributes:
        nodes: One by one.
        losses: What the loss is, at each output.
        rows: That it was taken on.
        split: Which rows these are.
        notes: What the figures leave out.
    """

    nodes: tuple[NodeSensitivity, ...]
    losses: tuple[OutputLoss, ...]
    rows: int
    split: str
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """What a loss is measured in."""
        kinds = {loss.kind for loss in self.losses}
        words = {"kl": "KL divergence, nats", "squared": "relative squared error"}
        return " + ".join(words[kind] for kind in sorted(kinds)) or "relative error of the node"

    def as_note(self, chosen: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Plain data, for notes and reports.

        Args:
            chosen: Node's output -> its format. Default: none is chosen for any.
        """
        picked = chosen or {}
        return {
            "unit": self.unit,
            "rows": self.rows,
            "split": self.split,
            "nodes": [{**n.as_note(), "chosen": picked.get(n.output)} for n in self.nodes],
            "remarks": list(self.notes),
        }


def measure_sensitivity(
    model: Model,
    variants: Mapping[str, Applied],
    context: Context,
    *,
    rows: int = 64,
    loss: LossKind | None = None,
) -> Sensitivity:
    """How much each node of a float model suffers from each format.

    Args:
        model: The float model.
        variants: Format -> what the pass that writes it returned for the whole model.
        context: Its rows are used: validation rows, or calibration rows where there are none.
        rows: About so many.
        loss: See :func:`edgecompress.gradients.output_loss.output_losses`.

    Raises:
        DataError: There are no rows, or values are NaN or infinite.
    """
    data = context.calibration
    if data is None:
        raise DataError("sensitivity is measured on rows, and none are named", where="data")
    model = model.inlined()
    found = candidates(model, variants)
    losses = output_losses(model, data, loss)
    split: Any = "validation" if data.validation_rows else "calibration"
    sums = _Sums()
    blocks = _blocks(model, len(variants), context.resources.memory)
    steps = backward(
        model,
        data,
        losses,
        blocks,
        split=split,
        rows=rows,
        batch_size=_BATCH_ROWS,
        threads=torch.get_num_threads() if context.device == "cpu" else 1,
        seed=context.seed,
        device=context.device,
        memory=context.resources.memory,
        scratch=context.resources.scratch,
        progress=context.progress,
        label="sensitivity",
    )
    for step in steps:
        _judge(step, found, sums, context.device)
    nodes = tuple(sums.of(candidate) for candidate in found)
    return Sensitivity(nodes, tuple(losses), sums.rows, split, _notes(nodes, blocks, losses))


def _blocks(model: Model, variants: int, memory: int | None) -> list[Block]:
    """The whole graph where it fits into memory in all formats, and torch can run it."""
    one = whole(model)
    fits = memory is None or model.weight_bytes * (2 + variants) <= memory
    return [one] if fits and not one.opaque else find_blocks(model)


def _judge(step: BackwardStep, found: Sequence[Candidate], sums: _Sums, device: str) -> None:
    """Run the candidates of a block in all formats, where their gradients are at hand."""
    made = {value.name for node in step.block.nodes for value in node.outputs}
    here: dict[str, list[_Module]] = {}
    for candidate in found:
        for format_, part in candidate.parts.items():
            if part.stands_for in made:
                module = _Module((candidate.output, format_), part, device)
                here.setdefault(part.stands_for, []).append(module)

    def see(batch: Batch, name: str, gradient: Tensor | None, values: Mapping[str, Tensor]) -> None:
        for module in here[name]:
            sums.add(module.key, batch, values[name], module.run(values), gradient)

    kept = {name for modules in here.values() for module in modules for name in module.part.inputs}
    step.advance(here, kept, see)


class _Module:
    """A candidate in one format, as a torch module that is made when it is first needed."""

    def __init__(self, key: tuple[str, str], part: Part, device: str) -> None:
        self.key = key
        self.part = part
        self._device = device
        self._made: TorchGraph | None = None
        self._lock = threading.Lock()

    def run(self, values: Mapping[str, Tensor]) -> Tensor:
        with self._lock:
            if self._made is None:
                self._made = self.part.module(self._device)
        return self.part.run(self._made, values)


@dataclass
class _Sums:
    """Sums over batches; whatever thread adds them, in whatever order, they are the same."""

    powers: dict[tuple[str, str], TreeSum] = field(default_factory=dict)
    unreached: set[str] = field(default_factory=set)
    seen: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        return sum(self.seen.values())

    def add(
        self,
        key: tuple[str, str],
        batch: Batch,
        output: Tensor,
        moved: Tensor,
        gradient: Tensor | None,
    ) -> None:
        """Take in signal and error of a node's output, and their effect on the loss."""
        error = moved.double() - output.double()
        signal = output.double()
        if batch.mask is not None:
            mask = position_mask(tuple(output.shape), torch.from_numpy(batch.mask))
            if mask is not None:
                real = mask.to(error)
                # What padding holds may be anything, and infinite.
                error, signal = (torch.where(real > 0, each, 0.0) for each in (error, signal))
        loss = torch.zeros((), dtype=torch.float64)
        if gradient is not None:
            product = gradient.double() * error
            by_row = product.dim() > 0 and product.shape[0] == batch.rows
            loss = (product.flatten(1).sum(1) if by_row else product.sum()).square().sum() / 2
        noise = error.square().sum()
        size = torch.tensor(output.numel(), dtype=torch.float64)
        found = torch.stack([signal.square().sum().cpu(), noise.cpu(), loss.cpu(), size])
        with self._lock:
            if gradient is None:
                self.unreached.add(key[0])
            self.seen[batch.number] = batch.rows
            self.powers.setdefault(key, TreeSum()).add(batch.number, found)

    def of(self, candidate: Candidate) -> NodeSensitivity:
        """What was found of a candidate.

        Raises:
            DataError: Some of it is not finite.
        """
        name, rows = candidate.output, max(self.rows, 1)
        reached = name not in self.unreached
        formats, elements = {}, 0.0
        for format_ in candidate.parts:
            signal, noise, loss, size = self.powers[name, format_].total().tolist()
            if not math.isfinite(signal + noise + loss):
                raise DataError(
                    "the values, or their gradients, are NaN or infinite",
                    where=f"node {candidate.node!r} in the format {format_}",
                    cure="the float model overflows on these rows; check the preprocessing",
                )
            relative = noise / signal if signal > 0 else float(noise > 0)
            decibels = -10 * math.log10(relative) if relative > 0 else math.inf
            formats[format_] = FormatError(
                decibels, loss / rows if reached else relative, candidate.bytes[format_]
            )
            elements = size / rows
        return NodeSensitivity(
            node=candidate.node,
            op=candidate.op,
            output=name,
            weights=candidate.weights,
            bytes_float=candidate.bytes_float,
            macs=elements * candidate.macs,
            elements=elements,
            formats=formats,
            reached=reached,
        )


def _notes(
    nodes: Sequence[NodeSensitivity], blocks: Sequence[Block], losses: Sequence[OutputLoss]
) -> tuple[str, ...]:
    found = []
    opaque = [block.name for block in blocks if block.opaque]
    if opaque:
        found.append(
            f"no gradients pass through {', '.join(opaque)}, which onnxruntime runs: losses of "
            "nodes in front of it are scaled by what noise does to its outputs"
        )
    unreached = [node.node for node in nodes if not node.reached]
    if unreached:
        found.append(
            f"no gradient reaches {len(unreached)} nodes ({', '.join(unreached[:3])}"
            f"{', ...' if len(unreached) > 3 else ''}): the relative error of their outputs stands "
            "for their losses"
        )
    if not losses:
        found.append("the model has no floating-point output to take a loss at")
    return tuple(found)
