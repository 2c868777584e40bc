"""Factorization of a model: block by block on the walk, with two streams.

X passes through the original graph and X' through what has been factorized so far. Within a block
the layers are taken in the order of the data, those that do not feed one another together; when all
of a block are factors, the block is refined. What later blocks see has passed through the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgecompress.factorization.block_errors import Errors, squares
from edgecompress.factorization.collecting import StageMoments
from edgecompress.factorization.nodes import write_shared
from edgecompress.factorization.pace import Pace
from edgecompress.factorization.parts import Layer, Objective, Split
from edgecompress.factorization.refinement import RefineSettings, refine_block
from edgecompress.factorization.result import BlockError, Factorized, FactorizeSettings
from edgecompress.factorization.solving import Solver
from edgecompress.factorization.stages import BlockRun, Values, stages_of
from edgecompress.graph_pass import Change, Context, Skip
from edgecompress.memory import give_back
from edgecompress.model import Model
from edgecompress.numerics.one_thread import one_thread
from edgecompress.walk.blocks import find_blocks
from edgecompress.walk.liveness import analyse, reads
from edgecompress.walk.scratch import Budget
from edgecompress.walk.step import WalkStep
from edgecompress.walk.streams import WalkBatch
from edgecompress.walk.walker import Walk
from edgecompress.weights.spool import WeightSpool

__all__ = ["compare_objectives", "factorize_layers"]

_Finished = tuple[tuple[WalkBatch, Values, Values], tuple[float, float]]


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
        resources = self.context.resources
        keep = {} if resources.memory is None else {"keep_bytes": resources.memory // 16}
        self._spool = WeightSpool(resources.scratch, **keep)
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
        refinement = self.settings.refinement
        pace = Pace(data, rows)
        if refinement is not None:
            step_rows = pace.step(refinement.batch_rows)
            refinement = replace(refinement, threads=threads, batch_rows=step_rows)
        walk = Walk(
            self.model,
            data,
            current=self.done.model,
            blocks=find_blocks(self.model),
            rows=rows,
            batch_size=pace.batch(refined=refinement is not None),
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
            self._finish(run, step, refinement if here else None, walk.budget)

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
        self._tidy()
        for weight in dict.fromkeys(layer.weight for layer in layers):
            sharing = self._by_weight[weight]
            split = self._solver.split(sharing, self.ranks, self.settings.objective, moments)
            self._put(sharing, split)
        self._solver.forget()
        self._tidy()

    def _tidy(self) -> None:
        if self.context.resources.memory is not None:
            give_back()

    def _put(self, sharing: Sequence[Layer], split: Split | str) -> None:
        """Write the factors of one weight into the graph, or say why it stays."""
        done = self.done
        if isinstance(split, str):
            done.skipped += [Skip(layer.node, layer.op, split) for layer in sharing]
            return
        written = write_shared(done.model, sharing, split, self._spool.keep)
        # Of all layers together the numbers would not fit.
        shapes = replace(split, weights=tuple(weight.to("meta") for weight in split.weights))
        rank = " x ".join(map(str, split.ranks))
        for layer, each in zip(sharing, written, strict=True):
            done.splits[layer.output] = shapes
            what = f"{split.kind} factors of rank {rank}"
            change = Change(layer.node, layer.op, what, each.bytes_before, each.bytes_after)
            done.changed.append(change)

    def _finish(
        self, run: BlockRun, step: WalkStep, refinement: RefineSettings | None, budget: Budget
    ) -> None:
        kept = step.kept
        names = list(dict.fromkeys((*kept, *step.block.results)))
        errors = Errors()

        def judged() -> Iterator[tuple[WalkBatch, Values, Values]]:
            def look(batch: WalkBatch, original: Values, edited: Values) -> _Finished:
                values = [{name: found[name] for name in kept} for found in (original, edited)]
                return (batch, values[0], values[1]), squares(names, batch, original, edited)

            for batch, found in run.finish(names, look):
                errors.add(batch[0], found)
                yield batch

        if refinement is None:
            step.hand_over(judged())
            self.done.blocks.append(BlockError(step.block.name, errors.relative()))
            return
        for _ in judged():
            pass
        refined = refine_block(step, self.done.model, refinement, budget)
        self.done.blocks.append(BlockError(step.block.name, errors.relative(), refined))
        if refined.kept:
            self._take_aside(step)

    def _take_aside(self, step: WalkStep) -> None:
        """Keep what was trained where it takes no memory, once there is much of it."""
        for value in {value for node in step.current_nodes for value in reads(node)}:
            tensor = value.const_value
            if tensor is not None and value.is_initializer():
                value.const_value = self._spool.keep(tensor)
