"""Block refinement: the parameters of a block, trained against the original block's output.

What factors found layer by layer have lost, they and the block's other parameters can partly make
good together (AA-SVD, arXiv 2604.02119). The block reads the edited graph's rows, X', and learns
what the original block makes of the original graph's, X. Batches that are held out are watched: the
best parameters seen on them are kept, the ones it began with where nothing is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgecompress.errors import UnsupportedOperatorError
from edgecompress.factorization.parts import held_out
from edgecompress.factorization.refinement_rows import RefinementRows
from edgecompress.model import Model
from edgecompress.numerics.one_thread import alone, one_thread
from edgecompress.numerics.training import RateSchedule, Training
from edgecompress.parallel.threads import in_order
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.liveness import reads
from edgecompress.walk.scratch import Budget
from edgecompress.walk.step import WalkStep

__all__ = ["RefineSettings", "RefinedBlock", "refine_block"]

_INTEGERS = ("QuantizeLinear", "DequantizeLinear")  # their float inputs are scales, not weights


@dataclass(frozen=True)
class RefineSettings:
    """How a block is refined.

    Attributes:
        steps: Of AdamW.
        learning_rate: At its peak, as a share of the root mean square of each tensor.
        weight_decay: As in AdamW.
        batch_rows: Rows of one step: as many whole batches of the walk as make at least so many.
        warm_up: Share of the steps in which the rate rises.
        final: Rate at the end, as a share of the peak.
        clip: Of the gradient's norm, where the error at the start counts as 1.
        seed: Of the order of the batches.
        device: torch device.
        threads: Batches that are computed at once, on the CPU; results do not depend on it.
        looks: How often the held-out rows are looked at, besides at the start.
    """

    steps: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    batch_rows: int = 32
    warm_up: float = 0.1
    final: float = 0.1
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    looks: int = 8


@dataclass(frozen=True)
class RefinedBlock:
    """What became of a block.

    Attributes:
        block: Its name.
        before: Squared error of its outputs by their power, on held-out rows: the mean over the
            outputs; NaN where it was not measured.
        after: The same, with the parameters that it has now.
        steps: That were taken.
        best: After how many of them it was best.
        kept: Whether the model was changed.
        reason: Why it was not, or what else is worth knowing.
    """

    block: str
    before: float
    after: float
    steps: int = 0
    best: int = 0
    kept: bool = False
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the report; what is no finite number is None."""
        found = asdict(self)
        for name in ("before", "after"):
            found[name] = found[name] if math.isfinite(found[name]) else None
        return found


def refine_block(
    step: WalkStep, model: Model, settings: RefineSettings, budget: Budget | None = None
) -> RefinedBlock:
    """Train all float parameters of a block of the edited graph.

    Initializers stay as they are where something outside the block depends on them, too, and so do
    single numbers, such as the slope of an activation.

    Args:
        step: The block, on a walk whose edited graph is ``model``.
        model: The edited graph; its initializers get the trained values, in their element types.
        settings: How.
        budget: Of the rows at the block and of its outputs, which are kept meanwhile; None for no
            limit.

    Raises:
        PassError: The original block's outputs are not finite.
        OutputError: The scratch folder cannot be written.
    """
    module: TorchGraph | None = None
    if not step.block.opaque:
        with suppress(UnsupportedOperatorError):
            module = to_torch(model, step.current_nodes, device=settings.device)
    if module is None:
        return _untouched(step, "torch cannot run it")
    parameters = _trained(module, _frozen(step, model))
    wanted = dict.fromkeys((*step.block.outputs, *step.block.results))
    outputs = [name for name in wanted if name in module.output_names]
    if not parameters or not outputs:
        return _untouched(step, "it has nothing to train")
    rows = RefinementRows(step, module.input_names, outputs, budget or Budget())
    try:
        with one_thread():
            rows.read(settings.threads)
            if not rows.outputs:
                return _untouched(step, "it has no outputs of floating point")
            found = _Refinement(module, parameters, rows, settings).run(step.block.name)
    finally:
        rows.close()
    if found.kept:
        module.write_back(model)
    return found


class _Refinement:
    def __init__(
        self,
        module: TorchGraph,
        parameters: Sequence[nn.Parameter],
        rows: RefinementRows,
        settings: RefineSettings,
    ) -> None:
        self._module = module
        self._parameters = list(parameters)
        self._rows = rows
        self._settings = settings
        on_host = torch.device(settings.device).type == "cpu"
        self._threads = settings.threads if on_host else 1
        places = rows.places
        self._held = [place for place in places if held_out(place)] or places[-1:]
        self._trained_on = [place for place in places if place not in self._held] or places
        self._weights: dict[str, float] = {}
        self._scale = 1.0

    def run(self, block: str) -> RefinedBlock:
        """Train, and leave the best parameters in the module."""
        settings = self._settings
        before = self._judge()
        if before == 0:
            return RefinedBlock(block, before, before, reason="nothing was lost in it")
        self._weigh(before)
        training = Training(
            self._parameters,
            RateSchedule(settings.steps, settings.learning_rate, settings.warm_up, settings.final),
            weight_decay=settings.weight_decay,
            clip=settings.clip,
        )
        looks = {settings.steps * (i + 1) // settings.looks for i in range(settings.looks)}
        best, least, values = 0, before, training.values()
        done, reasons = 0, list[str]()
        for places in self._mini_batches():
            if not training.step(self._gradients(places)):
                reasons.append(f"the loss was not finite after {done} steps")
                break
            done += 1
            if done in looks:
                error = self._judge()
                if error < least:
                    best, least, values = done, error, training.values()
        training.load(values)
        if not best:
            reasons.append("no step made it better on held-out rows")
        if self._held == self._trained_on:
            reasons.append("judged on the only batch, which it was trained on")
        return RefinedBlock(block, before, least, done, best, best > 0, "; ".join(reasons))

    def _weigh(self, error: float) -> None:
        """Let the loss be 1 where the error is what it was before, each output counting the same.

        Gradients of a block in half precision would vanish in it, so they are scaled up on their
        way: to about 1 at the outputs.
        """
        steepest = 0.0
        for name in self._rows.outputs:
            energy, values = self._rows.power(name, self._trained_on)
            weight = len(self._trained_on) / (energy * len(self._rows.outputs) * error)
            self._weights[name] = weight
            steepest = max(steepest, weight * math.sqrt(error * energy / values))
        exponent = -math.log2(steepest) if math.isfinite(steepest) and steepest else 0.0
        self._scale = 2.0 ** round(exponent)

    def _mini_batches(self) -> Iterator[list[int]]:
        """Places of each step; each epoch passes in an order of its own."""
        places, counts = self._trained_on, self._rows.counts
        wanted = min(self._settings.batch_rows, sum(counts[place] for place in places))
        generator = torch.Generator().manual_seed(self._settings.seed)
        order: list[int] = []
        for _ in range(self._settings.steps):
            taken, rows = list[int](), 0
            while not taken or rows < wanted:
                if not order:
                    order = torch.randperm(len(places), generator=generator).tolist()
                taken.append(places[order.pop()])
                rows += counts[taken[-1]]
            yield taken

    def _gradients(self, places: Sequence[int]) -> list[Tensor]:
        """Of the mean loss of some batches, summed up in their order."""

        def of_batch(place: int) -> tuple[Tensor, ...]:
            squares = self._squares(place)
            loss = torch.stack([squares[name] * w for name, w in self._weights.items()]).sum()
            return torch.autograd.grad(
                loss * self._scale, self._parameters, allow_unused=True, materialize_grads=True
            )

        total = [torch.zeros_like(p, dtype=_wide(p.dtype)) for p in self._parameters]
        for _, found in in_order(of_batch, places, min(self._threads, len(places)), alone):
            for mine, summand in zip(total, found, strict=True):
                mine += summand
        return [mine / (len(places) * self._scale) for mine in total]

    def _judge(self) -> float:
        """Squared error on the rows held out, by the power of the outputs."""

        def of_batch(place: int) -> dict[str, float]:
            with torch.no_grad():  # it holds for one thread
                return {name: float(found) for name, found in self._squares(place).items()}

        names, total = self._rows.outputs, 0.0
        found = [f for _, f in in_order(of_batch, self._held, self._threads, alone)]
        for name in names:
            energy, _ = self._rows.power(name, self._held)
            total += sum(squares[name] for squares in found) / energy
        return total / len(names)

    def _squares(self, place: int) -> Mapping[str, Tensor]:
        feeds = self._rows.feeds(place)
        return self._rows.squares(place, self._module(feeds, outputs=self._rows.outputs))


def _trained(module: TorchGraph, frozen: set[str]) -> list[nn.Parameter]:
    chosen = []
    for name, parameter in module.parameters_by_initializer.items():
        parameter.requires_grad_(name not in frozen and parameter.numel() > 1)
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def _frozen(step: WalkStep, model: Model) -> set[str]:
    """Initializers that something outside the block depends on, too, and scales of integers."""
    nodes = step.current_nodes
    inside, handed_on = set(nodes), {*step.block.outputs, *step.block.results}
    shared = {value for node in model.ir.graph if node not in inside for value in reads(node)}
    shared.update(value for value in model.ir.graph.outputs if value.producer() is None)
    scales = {value for node in nodes if node.op_type in _INTEGERS for value in reads(node)}
    for node in reversed(nodes):
        # Context, such as tables of positions, is computed again by each block that reads it.
        if any(value in shared and value.name not in handed_on for value in node.outputs):
            shared.update(reads(node))
    return {value.name or "" for value in shared | scales}


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _untouched(step: WalkStep, reason: str) -> RefinedBlock:
    return RefinedBlock(step.block.name, math.nan, math.nan, reason=reason)
