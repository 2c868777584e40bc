"""Weights of 4 or 8 bits beside float activations: numbers found, and put into the graph.

Weights that no rows decide about come first, one after the other. Then calibration rows walk
through the graph, block by block. Inside a block, layers that read the same activation are rounded
together by GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), on what they see behind all weights
that were rounded before (true-sequential). Scales are chosen before any weight is moved (static
groups), so that columns may be taken in the order of their power (act-order) while blocks stay
neighbours, as runtimes want them. The weights of one walk block are in memory, not more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgecompress.constraints import WeightOnlyFormat
from edgecompress.data.calibration import CalibrationSet
from edgecompress.data.token_mask import position_mask
from edgecompress.errors import PassError
from edgecompress.graph_pass import Change
from edgecompress.model import Model
from edgecompress.numerics.blockwise import Blocks, choose_scales, quantize_blocks, round_to
from edgecompress.numerics.moments import SecondMoments, products
from edgecompress.numerics.obs import obs_round
from edgecompress.progress import Progress, silent
from edgecompress.quantization.weight_nodes import NbitsNodes, QdqNodes, WeightNodes
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
        damping: Share of the mean diagonal that is added to the Hessian.
        device: torch device for the walk.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for what does not fit.
        progress: Told how far the work is.
    """

    data: CalibrationSet | None = None
    rows: int = 128
    damping: float = 0.01
    device: str = "cpu"
    memory: int | None = None
    scratch: Path | None = None
    progress: Progress = silent


@dataclass
class WeightsDone:
    """The result.

    Attributes:
        model: The new model.
        changed: Edits, one for each node.
        products: Outputs of the nodes that multiply by integers now.
    """

    model: Model
    changed: list[Change] = field(default_factory=list)
    products: list[str] = field(default_factory=list)


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
    nodes: WeightNodes
    nodes = (NbitsNodes if form.layout == "nbits" else QdqNodes)(edited.ir, spool.keep)
    work = _Work(model, WeightsDone(edited), nodes, run)
    free = [matrix for matrix in plan.matrices if not matrix.needs_rows]
    for done, matrix in enumerate(free):
        run.progress("round weights", done, len(free))
        method = "mse" if matrix.method == "gptq" else matrix.method
        work.put(matrix, quantize_blocks(work.weight(matrix), matrix.grid, method), method)
    for half in plan.halves:
        before = model.ir.graph.initializers[half.weight].const_value
        size = 0 if before is None else before.nbytes
        work.record(half.lookups, "float16", size, nodes.put_half(half))
    bound = [matrix for matrix in plan.matrices if matrix.needs_rows]
    if bound:
        work.walk(bound)
    if isinstance(nodes, NbitsNodes):
        renamed = nodes.take_biases()
        work.done.products = [renamed.get(name, name) for name in work.done.products]
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

    def put(self, matrix: Matrix, blocks: Blocks, method: str) -> None:
        value = self.model.ir.graph.initializers[matrix.weight].const_value
        before = 0 if value is None else value.nbytes
        after = self.nodes.put(matrix, blocks)
        grid = matrix.grid
        what = f"{grid.bits} bits in blocks of {grid.size}, {method}"
        self.record((*matrix.lookups, *matrix.products), what, before, after)
        self.done.products += [use.output for use in matrix.products]

    def record(self, uses: Sequence[Use], what: str, before: int, after: int) -> None:
        for use in uses:
            self.done.changed.append(Change(use.node, use.op, what, before, after))
            before = after = 0  # what several nodes share is counted once

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
                found = _moments(step, {use.input for _, use in group}, run)
                for matrix, use in group:
                    if use.output in left:  # not rounded with another layer that shares it
                        self._round(matrix, found[use.input])
                        left = {name: m for name, m in left.items() if m is not matrix}

    def _round(self, matrix: Matrix, moments: Tensor) -> None:
        weight = self.weight(matrix)
        try:
            blocks = rounded(weight, matrix, moments, self.run.damping)
        except PassError as error:
            error.where = f"{matrix.products[0].node}, pass 'quantize_weights'"
            raise
        self.put(matrix, blocks, "gptq")


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


def _moments(step: WalkStep, names: set[str], run: WeightRun) -> dict[str, Tensor]:
    """Sum of the products of each activation, as the edited graph gives it: float64 [n, n]."""
    sums = {name: SecondMoments() for name in names}
    graph = step.current
    for batch in step.batches():
        mask = batch.source.mask

        def see(name: str, values: Tensor, mask: np.ndarray | None = mask) -> None:
            rows = _real_rows(values, mask)
            sums[name].add(products(rows[None]), len(rows))

        with torch.no_grad():
            graph(batch.current, observe=see, watch=names, outputs=())
    return {name: found.total()[0] for name, found in sums.items()}


def _real_rows(values: Tensor, mask: np.ndarray | None) -> Tensor:
    """What a layer multiplies by its weight, without padding: float32 [places, columns]."""
    flat = values.float().reshape(-1, values.shape[-1])
    real = None if mask is None else position_mask(tuple(values.shape), torch.from_numpy(mask))
    if real is None:
        return flat
    return flat[real.to(values.device).expand(values.shape)[..., 0].reshape(-1)]
