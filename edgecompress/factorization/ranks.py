"""Where the ranks go: how many each layer gets under one budget, and which stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from edgecompress.errors import DataError, RecipeError, TargetError
from edgecompress.factorization.layers import sharing
from edgecompress.factorization.parts import Layer, Spectrum
from edgecompress.factorization.rank_plan import RankPlan, RankSettings
from edgecompress.factorization.survey import survey
from edgecompress.factorization.timing import LayerTimes, input_shapes, slower_words
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.numerics.rank_allocation import Rungs, by_loss, even, rungs, zero_sum

__all__ = ["RankPlan", "RankSettings", "choose_ranks"]

# Of two factors against the layer: what is above it is slower, not noise.
_SLOWER = 1.03
# The layers' times, added up, are within the budget of latency after so many corrections.
_CORRECTIONS = 3


def choose_ranks(
    model: Model, layers: Sequence[Layer], settings: RankSettings, context: Context
) -> RankPlan:
    """A rank for each layer that is to be factorized.

    The budget is ``keep`` times what the layers cost as they are. It is never exceeded, and missed
    by less than one step of one layer. Layers that share a weight share its rank, and count once.

    Args:
        model: The graph, without functions of its own.
        layers: Of it.
        settings: How.
        context: Rows, device, seed, and what measures on the target.

    Raises:
        TargetError: The budget is of latency, and nothing can be measured here.
        RecipeError: No ranks are fast enough for the budget of latency.
        DataError: There are no rows for spectra, or activations or gradients are not finite.
        MeasurementError: The runtime cannot run a layer by itself.
    """
    if settings.budget == "latency" and context.timer is None:
        raise TargetError(
            "a budget of latency is measured layer by layer, and the target cannot be measured "
            "from this machine",
            where="pass 'factorize', option 'budget'",
            cure="take budget = 'macs', or a target that is at hand",
        )
    choice = _Choice(settings, context, _times(model, layers, settings, context))
    units = choice.reachable(choice.explicit(choice.units(layers)))
    if settings.method != "uniform" and units:
        choice.survey(model, [layer for unit in units for layer in unit.layers])
    choice.share_out(units)
    spectra = tuple(choice.spectra.values())
    return RankPlan(choice.ranks, choice.dense, spectra, choice.seconds)


def _times(
    model: Model, layers: Sequence[Layer], settings: RankSettings, context: Context
) -> LayerTimes | None:
    wanted = settings.budget == "latency" or settings.never_slower
    if context.timer is None or not wanted or not layers:
        return None
    data, resources = context.calibration, context.resources
    shapes = input_shapes(model, layers, data, resources=resources, device=context.device)
    return LayerTimes(context.timer, shapes)


@dataclass(frozen=True)
class _Unit:
    """Layers of one weight, which get one rank, and what they cost as they are."""

    layers: tuple[Layer, ...]
    cost: float

    @property
    def first(self) -> Layer:
        return self.layers[0]

    @property
    def full(self) -> int:
        return min(self.first.rows, self.first.columns)

    @property
    def break_even(self) -> float:
        """Rank at which two factors are as many numbers as the weight."""
        return self.first.rows * self.first.columns / (self.first.rows + self.first.columns)


@dataclass
class _Choice:
    """Ranks while they are chosen."""

    settings: RankSettings
    context: Context
    times: LayerTimes | None
    ranks: dict[str, int] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    _fixed: set[_Unit] = field(default_factory=set)

    def units(self, layers: Sequence[Layer]) -> list[_Unit]:
        shared = sharing(layers)
        groups = {layer.weight: tuple(shared.get(layer.weight, (layer,))) for layer in layers}
        found = list(groups.values())
        if self.settings.budget == "macs":
            return [_Unit(group, sum(layer.macs for layer in group)) for group in found]
        if self.settings.budget == "parameters" or self.times is None:
            return [_Unit(group, float(group[0].parameters)) for group in found]
        self.times.of([(layer, None) for layer in layers])  # all in turn
        return [_Unit(group, sum(self.times.of([(x, None) for x in group]))) for group in found]

    def explicit(self, units: Sequence[_Unit]) -> list[_Unit]:
        """Take the ranks that were asked for; the units that are left."""
        left = []
        for unit in units:
            given = [self.settings.explicit.get(layer.output) for layer in unit.layers]
            rank = next((each for each in given if each is not None), None)
            if rank is None:
                left.append(unit)
            elif rank < 1:
                self._leave(unit, self._too_little(unit))
            elif rank >= unit.break_even:
                self._leave(unit, f"two factors of rank {rank} are no smaller than the weight")
            else:
                reason = self._slower({unit: rank}).get(unit)
                self._take({unit: rank}) if reason is None else self._leave(unit, reason)
        return left

    def reachable(self, units: Sequence[_Unit]) -> list[_Unit]:
        """Those whose share is a rank of 1 at least."""
        for unit in units:
            if self.settings.keep * unit.break_even < 1:
                self._leave(unit, self._too_little(unit))
        return [unit for unit in units if self.settings.keep * unit.break_even >= 1]

    def survey(self, model: Model, layers: Sequence[Layer]) -> None:
        if self.context.calibration is None:
            raise DataError(
                f"ranks = {self.settings.method!r} looks at activations, and no rows are named",
                where="pass 'factorize'",
                cure="add a [data] table to the recipe, or take ranks = 'uniform'",
            )
        found = survey(
            model,
            layers,
            self.context,
            rows=self.settings.rows,
            gradients=self.settings.method in ("loss", "zero_sum"),
        )
        self.spectra = {spectrum.layer.output: spectrum for spectrum in found}

    def share_out(self, units: list[_Unit]) -> None:
        """Ranks under the budget, again without those that turn out to be slower on the target."""
        while units:
            chosen = self._allocated(units)
            slower = self._slower({unit: rank for unit, rank in chosen.items() if rank < unit.full})
            if not slower:
                self._take(chosen)
                return
            for unit, reason in slower.items():
                self._leave(unit, reason)
            self._fixed.update(slower)
            if self.settings.budget != "latency":
                units = [unit for unit in units if unit not in slower]

    def _allocated(self, units: Sequence[_Unit]) -> dict[_Unit, int]:
        """The full rank stands for the layer as it is."""
        budget = allowed = self.settings.keep * sum(unit.cost for unit in units)
        chosen: dict[_Unit, int] = {}
        for _ in range(_CORRECTIONS):
            ladders = [self._ladder(unit) for unit in units]
            places = zip(units, ladders, self._climbed(units, ladders, allowed), strict=True)
            chosen = {u: u.full if x.is_dense(at) else x.ranks[at] for u, x, at in places}
            left = self._seconds(chosen) if self.settings.budget == "latency" else 0.0
            if left <= budget:
                break
            allowed *= budget / left
        return chosen

    def _seconds(self, ranks: Mapping[_Unit, int]) -> float:
        """Time of all layers at some ranks, by themselves."""
        assert self.times is not None
        pairs = [(x, None if k >= u.full else k) for u, k in ranks.items() for x in u.layers]
        return sum(self.times.of(pairs))

    def _climbed(
        self, units: Sequence[_Unit], ladders: Sequence[Rungs], budget: float
    ) -> list[int]:
        method = self.settings.method
        try:
            if method == "uniform":
                return even(ladders, budget)
            falls = [self._falls(unit, ladder) for unit, ladder in zip(units, ladders, strict=True)]
            return (zero_sum if method == "zero_sum" else by_loss)(ladders, falls, budget)
        except ValueError as error:
            least = sum(ladder.costs[0] for ladder in ladders) / sum(u.cost for u in units)
            raise RecipeError(
                f"no ranks are so fast: the lowest ones leave {least:.2f} of the layers' time",
                where=f"pass 'factorize', keep = {self.settings.keep:g} of the latency",
                cure=f"take keep = {least + 0.01:.2f} or more, or a lower floor",
            ) from error

    def _falls(self, unit: _Unit, ladder: Rungs) -> list[float]:
        """By rung: what is lost there; for ``zero_sum``, what the step from below it gains."""
        found = torch.zeros(len(ladder.ranks), dtype=torch.float64)
        for layer in unit.layers:
            spectrum = self.spectra[layer.output]
            values = spectrum.loss_change
            if values is None:
                values = spectrum.energies * self._weight(spectrum)
            behind = torch.cat([values.flip(0).cumsum(0).flip(0), values.new_zeros(1)])
            found += behind[list(ladder.ranks)]
        if self.settings.method == "zero_sum":
            found = -found.diff(prepend=found[:1])
        return [float(each) for each in found]

    def _weight(self, spectrum: Spectrum) -> float:
        """What a layer's lost power counts: importance, scaled to 1 to 2, over all power."""
        known = [each.importance for each in self.spectra.values() if each.importance > 0]
        share = 0.5
        if spectrum.importance > 0 and max(known) > min(known):
            share = (spectrum.importance - min(known)) / (max(known) - min(known))
        return (1 + share) / spectrum.power if spectrum.power > 0 else 0.0

    def _ladder(self, unit: _Unit) -> Rungs:
        if unit in self._fixed:
            return Rungs((unit.full,), (unit.cost,))
        step = self._step(unit)
        wanted = self.settings.keep * unit.break_even
        share = 0.0 if self.settings.method == "uniform" else self.settings.floor
        # A budget of time may need ranks below the even share of the parameters.
        lowest = 1 if self.settings.budget == "latency" else step
        least = max(lowest, int(share * wanted) // step * step)
        plain = rungs(unit.full, unit.cost / unit.break_even, unit.cost, least=least, step=step)
        if self.settings.budget != "latency" or self.times is None:
            return plain
        below = [rank for rank in plain.ranks if rank < unit.break_even]
        seconds = [0.0] * len(below)
        for layer in unit.layers:
            found = self.times.curve(layer, below)
            seconds = [sum(pair) for pair in zip(seconds, found, strict=True)]
        above = len(plain.ranks) - len(below)
        return Rungs(plain.ranks, (*(min(s, unit.cost) for s in seconds), *[unit.cost] * above))

    def _step(self, unit: _Unit) -> int:
        step = self.settings.multiple or self.context.constraints.rank_multiple
        while step > max(self.settings.keep * unit.break_even, 1):
            step //= 2
        return step

    def _slower(self, ranks: Mapping[_Unit, int]) -> dict[_Unit, str]:
        """Units whose factors take longer on the target, with the reason."""
        if self.times is None:
            return {}
        pairs = [(layer, rank) for unit, rank in ranks.items() for layer in unit.layers]
        found = self.times.slower(pairs, _SLOWER)
        for layer, rank in pairs:
            dense, factors = self.times.of([(layer, None), (layer, rank)])
            self.seconds[layer.output] = dense, factors
        if not self.settings.never_slower:
            return {}
        return {
            unit: slower_words(unit.first, rank, found[unit.first.output, rank])
            for unit, rank in ranks.items()
            if (unit.first.output, rank) in found
        }

    def _take(self, ranks: Mapping[_Unit, int]) -> None:
        for unit, rank in ranks.items():
            if rank < unit.full:
                self.ranks.update({layer.output: rank for layer in unit.layers})
            elif unit not in self._fixed:
                self._leave(unit, "the budget leaves it a rank at which factors save nothing")

    def _leave(self, unit: _Unit, reason: str) -> None:
        self.dense.update({layer.output: reason for layer in unit.layers})

    def _too_little(self, unit: _Unit) -> str:
        least = 1 / unit.break_even
        return f"its rank would be 0; it would be 1 with keep = {least:.2g} or more"
