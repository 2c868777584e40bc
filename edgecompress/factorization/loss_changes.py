"""What the model's outputs lose where the last components of a layer's output are dropped.

With the probes of :mod:`edgecompress.gradients.output_loss` the loss of a change dy of an output is
``E[(g . dy)^2] / 2``, where g is the gradient there. Dropping all components behind rank k changes
y by ``-sum_{i > k} u_i u_i^T y``, so one pass through the rows tells it of all ranks at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.errors import PassError
from edgecompress.factorization.parts import Layer, held_out
from edgecompress.gradients.backward import backward
from edgecompress.gradients.output_loss import output_losses
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.numerics.moments import chosen_places
from edgecompress.numerics.tree_sum import TreeSum
from edgecompress.walk.blocks import Block
from edgecompress.walk.scratch import Budget, Store

__all__ = ["Components", "loss_changes", "output_places"]

# What it tells is rough, and costs three times a plain pass.
_ROWS = 64
_BATCH_ROWS = 4


class Components:
    """Directions of the components of layers' outputs, and the outputs' means.

    Use it in a ``with`` block, which frees what they take.
    """

    def __init__(self, budget: Budget) -> None:
        self._directions = Store(budget)
        self._means: dict[str, Tensor | None] = {}
        self._places: dict[str, int] = {}

    def keep(self, name: str, directions: Tensor, mean: Tensor | None) -> None:
        """Keep float [groups, rows, k] and float [groups, rows]; None where no mean goes."""
        self._places[name] = len(self._places)
        self._directions.put(self._places[name], directions.float())
        self._means[name] = mean

    def of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Directions and mean of a layer, by its output."""
        return self._directions.get(self._places[name]), self._means[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._directions.close()


def output_places(
    layer: Layer, y: Tensor, batch: Batch, most: int, generator: torch.Generator
) -> Tensor | None:
    """Places of a layer's output that are no padding, at most so many; None for all of them."""
    grid = (len(y), *y.shape[2:]) if layer.op == "Conv" else tuple(y.shape[:-1])
    real = None
    if batch.mask is not None:
        shape = (grid[0], 1, *grid[1:]) if layer.op == "Conv" else (*grid, 1)
        mask = position_mask(shape, torch.from_numpy(batch.mask))
        real = None if mask is None else mask.expand(shape).flatten()
    chosen = chosen_places(math.prod(grid), most, generator, real)
    return None if chosen is None else chosen.to(y.device)


def loss_changes(
    model: Model,
    layers: Sequence[Layer],
    components: Components,
    context: Context,
    blocks: Sequence[Block],
    *,
    rows: int,
    threads: int,
) -> dict[str, Tensor]:
    """Loss of each component of each layer, given that those behind it are dropped already.

    Args:
        model: The graph.
        layers: Of it.
        components: Of their outputs.
        context: Calibration rows, device, seed and resources.
        blocks: Cuts of the graph.
        rows: About so many rows, and not more than are needed.
        threads: Batches on their way at once.

    Returns:
        By output of the layer: float64 [k]; zeros where the losses do not depend on it.

    Raises:
        PassError: Gradients are not finite.
    """
    data, resources = context.calibration, context.resources
    if data is None:
        raise ValueError("expected calibration rows")
    found: dict[str, Tensor] = {}
    steps = backward(
        model,
        data,
        output_losses(model, data),
        blocks,
        split="calibration",
        rows=min(rows, _ROWS),
        batch_size=_BATCH_ROWS,
        threads=threads,
        seed=context.seed,
        device=context.device,
        memory=resources.memory,
        scratch=resources.scratch,
        progress=context.progress,
        label="loss changes",
    )
    for step in steps:
        made = {value.name for node in step.block.nodes for value in node.outputs}
        here = {layer.output: layer for layer in layers if layer.output in made}
        sums = _Sums(here, components)
        step.advance(here, (), sums.see)
        found.update({name: sums.changes(layer) for name, layer in here.items()})
    return found


@dataclass
class _Sums:
    layers: Mapping[str, Layer]
    components: Components
    _losses: dict[str, TreeSum] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(
        self, batch: Batch, name: str, gradient: Tensor | None, values: Mapping[str, Tensor]
    ) -> None:
        """Take in the losses of a batch: float64 [k + 1], by the rank from which on all goes."""
        if gradient is None or held_out(batch.number):
            return
        effects = self._effects(batch, name, gradient, values[name])
        dropped = effects.flip(1).cumsum(1).flip(1)
        losses = dropped.square().sum(0).double().cpu() / 2
        with self._lock:
            self._losses.setdefault(name, TreeSum()).add(batch.number, losses)

    def _effects(self, batch: Batch, name: str, gradient: Tensor, y: Tensor) -> Tensor:
        """``g . u u^T y`` by row and component: float [rows, k]."""
        layer = self.layers[name]
        directions, mean = self.components.of(name)
        directions = directions.to(y.device)
        places = output_places(layer, y, batch, y.numel(), torch.Generator())
        signal = layer.form.outputs(y, None)
        if mean is not None:
            signal = signal - mean.to(signal)[:, None]
        parts = (signal.float() @ directions) * (layer.form.outputs(gradient, None) @ directions)
        parts = parts.sum(0)  # the groups' components of one number go together
        if places is not None:
            real = parts.new_zeros(len(parts), dtype=torch.bool)
            real[places] = True
            parts = torch.where(real[:, None], parts, 0.0)
        by_row = y.shape[0] == batch.rows
        return parts.reshape(batch.rows if by_row else 1, -1, parts.shape[1]).sum(1)

    def changes(self, layer: Layer) -> Tensor:
        """What each component changes.

        Raises:
            PassError: Gradients are not finite.
        """
        full = min(layer.rows, layer.columns)
        sums = self._losses.get(layer.output)
        if sums is None:
            return torch.zeros(full, dtype=torch.float64)
        total = sums.total()
        if not bool(total.isfinite().all()):
            raise PassError(
                "expected finite gradients on the calibration rows, got NaN or infinity",
                where=f"the layer {layer.node!r}, pass 'factorize'",
                cure="take ranks = 'spectrum', which needs none",
            )
        return total - torch.cat([total[1:], total.new_zeros(1)])
