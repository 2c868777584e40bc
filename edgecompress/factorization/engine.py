"""Factorization of a model: block by block on the walk, with two streams.

X passes through the original graph and X' through what has been factorized so far. Within a block
the layers are taken in the order of the data, those that do not feed one another together; when all
of a block are factors, the block is refined. What later blocks see has passed through the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgecompress.data.token_mask import position_mask
from edgecompress.factorization.collecting import StageMoments
from edgecompress.factorization.nodes import write_shared
from edgecompress.factorization.parts import Layer, Objective, Split, held_out
from edgecompress.factorization.refinement import RefinedBlock, RefineSettings, refine_block
from edgecompress.factorization.solving import Solver
from edgecompress.factorization.stages import BlockRun, Values, stages_of
from edgecompress.graph_pass import Change, Context, Skip
from edgecompress.memory import give_back
from edgecompress.model import Model
from edgecompress.numerics.one_thread import one_thread
from edgecompress.walk.blocks import find_blocks
from edgecompress.walk.liveness import analyse
from edgecompress.walk.scratch import Budget
from edgecompress.walk.step import WalkStep
from edgecompress.walk.streams import WalkBatch
from edgecompress.walk.walker import Walk
from edgecompress.weights.spool import WeightSpool

__all__ = [
    "BlockError",
    "FactorizeSettings",
    "Factorized",
    "compare_objectives",
    "factorize_layers",
]

_BATCH_ROWS, _MOST_ROWS = 8, 64
_POSITIONS, _STEP_POSITIONS = 512, 2048  # of a batch, and of a step of the refinement
_SAMPLE = 32  # rows that tell how long they are
_LEAST_BATCHES = 8


@dataclass(frozen=True)
class FactorizeSettings:
    """How layers are factorized.

    Attributes:
        objective: What the factors are to keep.
        damping: Share of the mean input power with which the weights themselves count, too.
        rows: Calibration rows, about.
        count: What the rank of a layer stands for where its split is of another form.
        refinement: How blocks are refined; None: they are not.
    """

    objective: Objective = "anchored"
    damping: float = 0.01
    rows: int = 256
    count: Literal["parameters", "macs"] = "parameters"
    refinement: RefineSettings | None = None


@dataclass(frozen=True)
class BlockError:
    """What factorization did to the outputs of a block.

    Attributes:
        block: Its name.
        error: Squared error over power, on rows that were held out, before any refinement.
        refined: What became of the refinement; None where there was none.
    """

    block: str
    error: float
    refined: RefinedBlock | None = None


@dataclass
class Factorized:
    """The result.

    Attributes:
        model: The new model.
        objective: What its factors keep.
        splits: By output of the layer.
        spectra: By output of the layer: share of the full rank, and the relative error there.
        changed: Edits.
        skipped: Layers that were to be factorized and could not be.
        blocks: In the order of the data; those that hold factors, and all behind them.
    """

    model: Model
    objective: Objective
    splits: dict[str, Split] = field(default_factory=dict)
    spectra: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    changed: list[Change] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    blocks: list[BlockError] = field(default_factory=list)


def factorize_layers(
    model: Model,
    edited: Model,
    layers: Sequence[Layer],
    ranks: Mapping[str, int],
    settings: FactorizeSettings,
    context: Context,
) -> Factorized:
    """Replace layers by factors.

    On the CPU, results do not depend on the number of threads.

    Args:
        model: The model, without functions of its own; it is not changed.
        edited: A clone of it, which is changed in place.
        layers: Those that are to be factorized.
        ranks: By output of the layer.
        settings: How.
        context: Calibration rows, device and resources.

    Raises:
        PassError: Activations are not finite, or there is nothing but padding.
        OutputError: The scratch folder cannot be written.
    """
    work = _Work(model, Factorized(edited, settings.objective), layers, ranks, settings, context)
    with one_thread() as threads:
        if context.calibration is None:
            work.without_rows()
        else:
            work.walk(threads if context.device == "cpu" else 1)
    return work.done


def compare_objectives(
    model: Model,
    layers: Sequence[Layer],
    ranks: Mapping[str, int],
    settings: FactorizeSettings,
    objectives: Sequence[Objective],
    context: Context,
) -> dict[str, dict[str, float]]:
    """Errors of blocks without refinement, by objective and block."""
    found: dict[str, dict[str, float]] = {}
    for objective in objectives:
        if objective != settings.objective:
            other = replace(settings, objective=objective, refinement=None)
            done = factorize_layers(model, model.clone(), layers, ranks, other, context)
            found[objective] = {block.block: block.error for block in done.blocks}
    return found


@dataclass
class _Work:
    model: Model
    done: Factorized
    layers: Sequence[Layer]
    ranks: Mapping[str, int]
    settings: FactorizeSettings
    context: Context

    def __post_init__(self) -> None:
        self._spool = WeightSpool(self.context.resources.scratch)
        self._solver = Solver(
            self.model, self.settings.damping, self.settings.count, self.context.device
        )
        self._by_weight: dict[str, list[Layer]] = defaultdict(list)
        self.done.spectra = self._solver.spectra
        for layer in self.layers:
            self._by_weight[layer.weight].append(layer)

    def without_rows(self) -> None:
        """Factors of the weights alone."""
        for sharing in self._by_weight.values():
            self._put(sharing, self._solver.split(sharing, self.ranks, "input_agnostic", None))

    def walk(self, threads: int) -> None:
        context, data = self.context, self.context.calibration
        assert data is not None  # the caller has seen to it
        rows = min(self.settings.rows, data.calibration_rows)
        walk = Walk(
            self.model,
            data,
            current=self.done.model,
            blocks=find_blocks(self.model),
            rows=rows,
            batch_size=self._batch_rows(rows),
            threads=threads,
            device=context.device,
            memory=context.resources.memory,
            scratch=context.resources.scratch,
            progress=context.progress,
            label="factorize",
        )
        main = analyse(self.model.ir.graph).main
        weighty = {value.name or "" for node in main for value in node.outputs}
        for step in walk:
            outputs = {value.name for node in step.block.nodes for value in node.outputs}
            here = self._factorizable(step, [x for x in self.layers if x.output in outputs])
            if step.block.opaque or not (here or walk.diverged):
                continue
            run = BlockRun(
                step,
                self.model,
                self.done.model,
                weighty,
                walk.budget,
                threads=threads,
                device=context.device,
            )
            for stage in stages_of(step.block.nodes, here):
                self._stage(run, stage, rows)
                if context.resources.memory is not None:
                    give_back()
            self._finish(run, step, bool(here), threads, walk.budget)

    def _batch_rows(self, rows: int) -> int:
        """Rows of a batch: of short texts many at once, of long ones few for a refinement."""
        wanted = _BATCH_ROWS
        if self._length and self.settings.refinement is not None:
            wanted = min(wanted, int(_STEP_POSITIONS / 2 / self._length))
        elif self._length:
            wanted = max(wanted, min(_MOST_ROWS, int(_POSITIONS / self._length)))
        return max(1, min(wanted, rows // _LEAST_BATCHES))

    @cached_property
    def _length(self) -> float:
        """Mean length of texts; 0 where rows are something else."""
        data = self.context.calibration
        some = () if data is None else islice(data.batches("calibration", 1), _SAMPLE)
        lengths = [max((_length(x) for x in b.inputs.values()), default=0) for b in some]
        return sum(lengths) / len(lengths) if min(lengths, default=0) else 0.0

    def _factorizable(self, step: WalkStep, layers: Sequence[Layer]) -> list[Layer]:
        """Layers of a block that can be taken, the others with their reason."""
        found = []
        stages = stages_of(step.block.nodes, layers)
        place = {layer.output: n for n, stage in enumerate(stages) for layer in stage}
        for layer in layers:
            sharing = self._by_weight[layer.weight]
            reason = ""
            if step.block.opaque:
                reason = "torch cannot run its block"
            elif len({place.get(each.output) for each in sharing}) > 1:
                reason = "its weight is used in another place, too"
            if reason:
                self.done.skipped.append(Skip(layer.node, layer.op, reason))
            else:
                found.append(layer)
        return found

    def _stage(self, run: BlockRun, layers: Sequence[Layer], rows: int) -> None:
        moments = StageMoments(layers, self.settings.objective, rows, self.context.seed)
        for found in run.stage(layers, moments.look):
            moments.add(found)
        for weight in dict.fromkeys(layer.weight for layer in layers):
            sharing = self._by_weight[weight]
            split = self._solver.split(sharing, self.ranks, self.settings.objective, moments)
            self._put(sharing, split)

    def _put(self, sharing: Sequence[Layer], split: Split | str) -> None:
        """Write the factors of one weight into the graph, or say why it stays."""
        done = self.done
        if isinstance(split, str):
            done.skipped += [Skip(layer.node, layer.op, split) for layer in sharing]
            return
        written = write_shared(done.model, sharing, split, self._spool.keep)
        rank = " x ".join(map(str, split.ranks))
        for layer, each in zip(sharing, written, strict=True):
            done.splits[layer.output] = split
            what = f"{split.kind} factors of rank {rank}"
            change = Change(layer.node, layer.op, what, each.bytes_before, each.bytes_after)
            done.changed.append(change)

    def _finish(
        self, run: BlockRun, step: WalkStep, edited: bool, threads: int, budget: Budget
    ) -> None:
        kept, results = step.kept, step.block.results
        names = list(dict.fromkeys((*kept, *results)))
        errors = _Errors()

        def judged() -> Iterator[tuple[WalkBatch, Values, Values]]:
            def look(batch: WalkBatch, original: Values, current: Values) -> Any:
                chosen = {name: original[name] for name in kept}
                chosen_current = {name: current[name] for name in kept}
                found = _squares(names, batch, original, current)
                return batch, chosen, chosen_current, found

            for batch, original, current, found in run.finish(names, look):
                errors.add(found, held_out(batch.place))
                yield batch, original, current

        refinement = self.settings.refinement if edited else None
        if refinement is None:
            step.hand_over(judged())
            self.done.blocks.append(BlockError(step.block.name, errors.relative()))
            return
        for _ in judged():
            pass
        step_rows = refinement.batch_rows
        if self._length:
            step_rows = max(1, min(step_rows, int(_STEP_POSITIONS / self._length)))
        settings = replace(refinement, threads=threads, batch_rows=step_rows)
        refined = refine_block(step, self.done.model, settings, budget)
        self.done.blocks.append(BlockError(step.block.name, errors.relative(), refined))


class _Errors:
    """Sums of squares of an output's errors, and of the output."""

    def __init__(self) -> None:
        self._sums = {True: [0.0, 0.0], False: [0.0, 0.0]}

    def add(self, found: tuple[float, float], held: bool) -> None:
        sums = self._sums[held]
        sums[0] += found[0]
        sums[1] += found[1]

    def relative(self) -> float:
        """On rows held out, or on all where there are none."""
        error, power = self._sums[True] if self._sums[True][1] else self._sums[False]
        return error / power if power else 0.0


def _length(array: npt.NDArray[Any]) -> int:
    """Of a row of numbers that stand for text; 0 for everything else."""
    return array.shape[1] if array.ndim == 2 and np.issubdtype(array.dtype, np.integer) else 0


def _squares(
    names: Sequence[str], batch: WalkBatch, original: Values, current: Values
) -> tuple[float, float]:
    error = power = 0.0
    for name in names:
        y, z = original[name], current[name]
        if y.is_floating_point() and y.shape == z.shape:
            real = _real(y, batch)
            error += float(((y - z).double().square() * real).sum())
            power += float((y.double().square() * real).sum())
    return error, power


def _real(values: Tensor, batch: WalkBatch) -> Tensor | float:
    mask = batch.source.mask
    found = None if mask is None else position_mask(tuple(values.shape), torch.from_numpy(mask))
    return 1.0 if found is None else found.to(values.device)
