"""Weights of 4 or 8 bits beside float activations: numbers found, and put into the graph.

Weights that no rows decide about come first, one after the other. Then calibration rows walk
through the graph, block by block. Inside a block, layers that read the same activation are rounded
together by GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), on what they see behind all weights
that were rounded before (true-sequential). Scales are chosen before any weight is moved (static
groups), so that columns may be taken in the order of their power (act-order) while blocks stay
neighbours, as runtimes want them. The weights of one walk block are in memory, not more.

What rounding took from a layer may be given back by thin factors beside it
(:mod:`edgecompress.quantization.residual`); what later layers see has passed through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgecompress.constraints import WeightOnlyFormat
from edgecompress.data.calibration import CalibrationSet
from edgecompress.data.token_mask import position_mask
from edgecompress.errors import PassError
from edgecompress.graph_pass import Change, Timer
from edgecompress.model import Model
from edgecompress.numerics.blockwise import Blocks, choose_scales, quantize_blocks, round_to
from edgecompress.numerics.moments import SecondMoments, products
from edgecompress.numerics.obs import obs_round
from edgecompress.progress import Progress, silent
from edgecompress.quantization.residual import put_residual, residual
from edgecompress.quantization.residual_cost import Corrected, time_corrections
from edgecompress.quantization.weight_layouts import NbitsNodes, nodes_for
from edgecompress.quantization.weight_nodes import WeightNodes
from edgecompress.quantization.weight_plan import Matrix, Use, WeightPlan
from edgecompress.walk.blocks import find_blocks
from edgecompress.walk.walker import Walk, WalkStep
from edgecompress.weights.spool import WeightSpool

__all__ = ["WeightRun", "WeightsDone", "quantize_weights"]


@dataclass(frozen=True)
class WeightRun:
    """What the work may use.

    Attributes:
        data: Calibration rows; None where no matrix needs them.
        rows: How many of them, about.
        damping: Share of the mean diagonal that is added to the Hessian, and where factors make up
            for rounding.
        device: torch device for the walk.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for what does not fit.
        progress: Told how far the work is.
        half: Whether the runtime takes constants of float16.
        timer: How long small models take on the target; None where that cannot be measured.
    """

    data: CalibrationSet | None = None
    rows: int = 128
    damping: float = 0.01
    device: str = "cpu"
    memory: int | None = None
    scratch: Path | None = None
    progress: Progress = silent
    half: bool = True
    timer: Timer | None = None


@dataclass
class WeightsDone:
    """The result.

    Attributes:
        model: The new model.
        changed: Edits, one for each node.
        products: Outputs of the nodes that multiply by integers now.
        corrected: Layers with factors beside them.
    """

    model: Model
    changed: list[Change] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    corrected: list[Corrected] = field(default_factory=list)


def quantize_weights(
    model: Model, edited: Model, plan: WeightPlan, form: WeightOnlyFormat, run: WeightRun
) -> WeightsDone:
    """Carry a plan out.

    Args:
        model: The float model, without functions of its own; it is not changed.
        edited: A clone of it, which is changed in place.
        plan: What is to be done.
        form: Layout of the target.
        run: Data and resources.

    Raises:
        PassError: Activations are not finite.
        OutputError: The scratch folder cannot be written.
    """
    spool = WeightSpool(run.scratch)
    nodes = nodes_for(form.layout, edited.ir, spool.keep)
    work = _Work(model, WeightsDone(edited), nodes, run)
    free = [matrix for matrix in plan.matrices if matrix.rounding != "gptq"]
    for done, matrix in enumerate(free):
        run.progress("round weights", done, len(free))
        blocks = nearest(work.weight(matrix), matrix)
        work.put(matrix, blocks)
        if matrix.residual_rank and not matrix.needs_rows:
            work.correct(matrix, blocks, None)
    for half in plan.halves:
        before = model.ir.graph.initializers[half.weight].const_value
        size = 0 if before is None else before.nbytes
        work.record(half.lookups, "float16", size, nodes.put_half(half))
    bound = [matrix for matrix in plan.matrices if matrix.needs_rows]
    if bound:
        work.walk(bound)
    if isinstance(nodes, NbitsNodes):
        renamed = nodes.take_biases()
        work.rename(renamed)
    if run.timer is not None:
        work.done.corrected = time_corrections(work.done.corrected, form, run.timer)
    return work.done


@dataclass
class _Work:
    model: Model
    done: WeightsDone
    nodes: WeightNodes
    run: WeightRun

    def weight(self, matrix: Matrix) -> Tensor:
        """The float weight, [rows, columns]."""
        array = torch.from_numpy(np.array(self.model.initializer(matrix.weight)))
        return array.T if matrix.transposed else array

    def put(self, matrix: Matrix, blocks: Blocks) -> None:
        value = self.model.ir.graph.initializers[matrix.weight].const_value
        before = 0 if value is None else value.nbytes
        after = self.nodes.put(matrix, blocks)
        grid = matrix.grid
        what = f"{grid.bits} bits in blocks of {grid.size}, {matrix.rounding}"
        self.record((*matrix.lookups, *matrix.products), what, before, after)
        self.done.products += [use.output for use in matrix.products]

    def record(self, uses: Sequence[Use], what: str, before: int, after: int) -> None:
        for use in uses:
            self.done.changed.append(Change(use.node, use.op, what, before, after))
            before = after = 0  # what several nodes share is counted once

    def correct(self, matrix: Matrix, blocks: Blocks, moments: _Moments | None) -> None:
        """Put factors beside the layers of a matrix that ask for them."""
        found = residual(
            self.weight(matrix),
            blocks.dequantized(),
            matrix.residual_rank,
            None if moments is None else moments.total,
            damping=self.run.damping,
            half=self.run.half,
        )
        if found is None:
            return
        self.rename(put_residual(self.nodes, matrix, found))
        tokens = 1 if moments is None else moments.tokens
        half, added = found.left.dtype == torch.float16, found.bytes
        for use in matrix.products:
            if use.residual_rank:
                self.done.corrected.append(
                    Corrected(
                        use, matrix, found.rank, found.before, found.after, added, tokens, half
                    )
                )
                self._amend(use, f", + rank {found.rank}", added)
                added = 0  # what several nodes share is counted once

    def _amend(self, use: Use, what: str, added: int) -> None:
        for at, change in enumerate(self.done.changed):
            if (change.node, change.op) == (use.node, use.op):
                self.done.changed[at] = replace(
                    change, what=change.what + what, bytes_after=change.bytes_after + added
                )

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Say what outputs of products are called now."""
        self.done.products = [renamed.get(name, name) for name in self.done.products]

    def walk(self, matrices: Sequence[Matrix]) -> None:
        """Round matrices on what their layers see."""
        run = self.run
        assert run.data is not None  # the pass has seen to it
        left = {use.output: matrix for matrix in matrices for use in matrix.products}
        steps = Walk(
            self.model,
            run.data,
            current=self.done.model,
            blocks=find_blocks(self.model),
            rows=run.rows,
            device=run.device,
            memory=run.memory,
            scratch=run.scratch,
            progress=run.progress,
            label="round weights by GPTQ",
        )
        for step in steps:
            for group in _groups(step, left):
                found = _moments(step, {use.input for _, use in group})
                for matrix, use in group:
                    if use.output in left:  # not rounded with another layer that shares it
                        self._fit(matrix, use, found[use.input])
                        left = {name: m for name, m in left.items() if m is not matrix}

    def _fit(self, matrix: Matrix, use: Use, moments: _Moments) -> None:
        weight = self.weight(matrix)
        try:
            if matrix.rounding == "gptq":
                blocks = rounded(weight, matrix, moments.total, self.run.damping)
                self.put(matrix, blocks)
            else:
                blocks = nearest(weight, matrix)  # it was put before the walk
            if matrix.residual_rank:
                self.correct(matrix, blocks, moments)
        except PassError as error:
            error.where = f"{use.node}, pass 'quantize_weights'"
            raise


def nearest(weight: Tensor, matrix: Matrix) -> Blocks:
    """A weight, float [rows, columns], rounded to the nearest, as its matrix is to be."""
    return quantize_blocks(weight, matrix.grid, "minmax" if matrix.rounding == "minmax" else "mse")


def rounded(weight: Tensor, matrix: Matrix, moments: Tensor, damping: float) -> Blocks:
    """GPTQ in blocks.

    Args:
        weight: float [rows, columns].
        matrix: Its grid.
        moments: [columns, columns], sum of the products of the inputs.
        damping: As in :func:`edgecompress.numerics.obs.obs_round`.
    """
    grid, power = matrix.grid, moments.diagonal()
    alive = bool((power > 0).any())
    scales, zeros = choose_scales(weight, grid, "mse", power / power.mean() if alive else None)
    blocks = round_to(weight, grid, scales, zeros)
    order = torch.argsort(power, descending=True, stable=True)
    moved = obs_round(weight, moments, blocks.column, damping=damping, order=order)
    return round_to(moved, grid, scales, zeros)


def _groups(step: WalkStep, left: dict[str, Matrix]) -> Iterator[list[tuple[Matrix, Use]]]:
    """Layers of a block that read the same activation, in graph order."""
    groups: dict[str, list[tuple[Matrix, Use]]] = {}
    for node in step.block.nodes:
        matrix = left.get(node.outputs[0].name or "")
        if matrix is not None:
            use = next(u for u in matrix.products if u.output == node.outputs[0].name)
            groups.setdefault(use.input, []).append((matrix, use))
    yield from groups.values()


@dataclass(frozen=True)
class _Moments:
    """What a layer sees.

    Attributes:
        total: float64 [n, n], sum of the products of its inputs.
        tokens: Places of one row, about.
    """

    total: Tensor
    tokens: int


def _moments(step: WalkStep, names: set[str]) -> dict[str, _Moments]:
    """Sums for each activation, as the edited graph gives it."""
    sums = {name: SecondMoments() for name in names}
    graph, count = step.current, 0
    for batch in step.batches():
        mask, count = batch.source.mask, count + batch.source.rows

        def see(name: str, values: Tensor, mask: np.ndarray | None = mask) -> None:
            rows = _real_rows(values, mask)
            sums[name].add(products(rows[None]), len(rows))

        with torch.no_grad():
            graph(batch.current, observe=see, watch=names, outputs=())
    return {
        name: _Moments(found.total()[0], max(1, round(found.places / max(count, 1))))
        for name, found in sums.items()
    }


def _real_rows(values: Tensor, mask: np.ndarray | None) -> Tensor:
    """What a layer multiplies by its weight, without padding: float32 [places, columns]."""
    flat = values.float().reshape(-1, values.shape[-1])
    real = None if mask is None else position_mask(tuple(values.shape), torch.from_numpy(mask))
    if real is None:
        return flat
    return flat[real.to(values.device).expand(values.shape)[..., 0].reshape(-1)]
