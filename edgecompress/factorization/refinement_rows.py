"""Rows that a block is refined on: what it is fed, and what it is to make of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edgecompress.data.token_mask import position_mask
from edgecompress.errors import PassError
from edgecompress.numerics.one_thread import alone
from edgecompress.parallel.threads import in_order
from edgecompress.walk.scratch import Budget, Store
from edgecompress.walk.step import WalkStep
from edgecompress.walk.streams import WalkBatch

__all__ = ["RefinementRows"]


class _Power(NamedTuple):
    energy: float
    values: int


class RefinementRows:
    """Rows of the edited stream, with the original block's outputs on the original stream.

    Attributes:
        counts: Rows of each batch, by its place.
    """

    def __init__(
        self, step: WalkStep, inputs: Sequence[str], outputs: Sequence[str], budget: Budget
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            step: The block.
            inputs: What the edited block reads.
            outputs: What it is to compute as the original block does.
            budget: Of what is kept.
        """
        self._step = step
        self._inputs = tuple(inputs)
        self._wanted = tuple(outputs)
        self._budget = budget
        self._feeds: dict[str, Store] = {}
        self._goals: dict[str, Store] = {}
        self._masks: dict[int, Tensor | None] = {}
        self._powers: dict[int, dict[str, _Power]] = {}
        self.counts: dict[int, int] = {}

    def read(self, threads: int) -> None:
        """Run the original block.

        Raises:
            PassError: Its outputs are not finite.
            OutputError: The scratch folder cannot be written.
        """

        def goals(batch: WalkBatch) -> dict[str, Tensor]:
            with torch.no_grad():  # it holds for one thread
                found = self._step.original(batch.original, outputs=self._wanted)
            return {name: y for name, y in found.items() if y.is_floating_point()}

        batches = self._step.feeds(self._step.original.input_names, self._inputs)
        for batch, found in in_order(goals, batches, threads, alone):
            mask = batch.source.mask
            self._masks[batch.place] = None if mask is None else torch.from_numpy(mask)
            self.counts[batch.place] = batch.source.rows
            self._powers[batch.place] = {n: self._power(batch.place, y) for n, y in found.items()}
            for stores, values in ((self._feeds, batch.current), (self._goals, found)):
                for name, value in values.items():
                    stores.setdefault(name, Store(self._budget)).put(batch.place, value)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs of floating point."""
        return tuple(self._goals)

    @property
    def places(self) -> list[int]:
        """Of all batches."""
        return list(self.counts)

    def feeds(self, place: int) -> dict[str, Tensor]:
        """What the edited block reads of a batch."""
        return {name: store.get(place) for name, store in self._feeds.items()}

    def squares(self, place: int, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Squared errors of outputs, summed up over the real positions of a batch."""
        errors = {}
        for name, store in self._goals.items():
            goal = store.get(place).to(found[name].device)
            errors[name] = self._energy(place, _wide(found[name]) - _wide(goal))
        return errors

    def power(self, name: str, places: Sequence[int]) -> tuple[float, int]:
        """Squares of an output summed up over some batches, 1 where that is 0; how many values."""
        powers = [self._powers[place][name] for place in places]
        return sum(power.energy for power in powers) or 1.0, sum(power.values for power in powers)

    def close(self) -> None:
        """Forget all rows."""
        for store in (*self._feeds.values(), *self._goals.values()):
            store.close()

    def _power(self, place: int, goal: Tensor) -> _Power:
        energy = float(self._energy(place, goal.double()))
        if not math.isfinite(energy):
            raise PassError(
                "expected finite outputs on the calibration rows, got NaN or infinity",
                where=f"block {self._step.block.name!r} of the original graph",
                cure="look for the node that makes them with `edgecompress statistics`, or do not "
                "refine",
            )
        return _Power(energy, goal.numel())

    def _energy(self, place: int, values: Tensor) -> Tensor:
        """Sum of squares over real positions, whatever is at the others."""
        mask = self._masks[place]
        if mask is not None:
            real = position_mask(tuple(values.shape), mask.to(values.device))
            values = values if real is None else torch.where(real, values, 0)
        return values.square().sum()


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
