"""Factors of one weight, from what the layers that use it see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from edgecompress.factorization.collecting import Collected, StageMoments, input_key
from edgecompress.factorization.conv_costs import split_cost
from edgecompress.factorization.conv_splits import best_split
from edgecompress.factorization.parts import Layer, Objective, Split
from edgecompress.factorization.reading import own_bias, read_weight
from edgecompress.model import Model
from edgecompress.numerics.balance import balanced
from edgecompress.numerics.conv_factors import composed
from edgecompress.numerics.low_rank import Gram, LowRank, Problem, best_mix, objective

__all__ = ["Solver"]

_POINTS = 32  # of a spectrum, for the report


class Solver:
    """Solves layer by layer; what layers of one stage share is worked out once.

    Attributes:
        spectra: By output of the layer: share of the full rank, and the relative error there.
    """

    def __init__(
        self, model: Model, damping: float, count: Literal["parameters", "macs"], device: str
    ) -> None:
        """Nothing is solved yet.

        Args:
            model: The original model, which has the weights.
            damping: See :class:`~edgecompress.numerics.low_rank.Gram`.
            count: What the rank of a layer stands for where its split is of another form.
            device: torch device.
        """
        self._model = model
        self._damping = damping
        self._count = count
        self._device = device
        self.spectra: dict[str, list[tuple[float, float]]] = {}
        self._moments: StageMoments | None = None
        self._grams: dict[tuple[object, ...], Gram] = {}

    def forget(self) -> None:
        """Free what the layers of a stage shared."""
        self._moments, self._grams = None, {}

    def split(
        self,
        sharing: Sequence[Layer],
        ranks: Mapping[str, int],
        kind: Objective,
        moments: StageMoments | None,
    ) -> Split | str:
        """The factors of a weight; a reason where it had better stay as it is.

        Args:
            sharing: The layers that use it.
            ranks: By output of the layer; the first one's counts.
            kind: What the factors are to keep.
            moments: Of the layers' stage; None where there are no rows.

        Raises:
            PassError: Activations are not finite, or there is nothing but padding.
        """
        if moments is not self._moments:
            self._moments, self._grams = moments, {}
        layer = sharing[0]
        weight = read_weight(self._model, layer, self._device)
        # One bias takes up what one layer sees; where several share the weight, none does.
        centred = layer.bias and len(sharing) == 1
        seen = None
        if moments is not None and kind != "input_agnostic":
            seen = _joined([moments.of(each, centred=centred) for each in sharing])
        problem = self._problem(layer, weight, kind, seen, centred, ranks[layer.output])
        gram = None if seen is None else seen.gram
        split = self._solved(layer, weight, problem, ranks[layer.output], gram)
        if seen is None or not centred or isinstance(split, str):
            return split
        return self._with_shift(layer, weight, split, seen)

    def _problem(
        self,
        layer: Layer,
        weight: Tensor,
        kind: Objective,
        seen: Collected | None,
        centred: bool,
        rank: int,
    ) -> Problem:
        if seen is None:
            return objective(weight, weight[:, :0, :0], kind="input_agnostic")
        key = (*input_key(layer), centred)
        if key not in self._grams:
            self._grams[key] = Gram(seen.gram, damping=self._damping)
        gram = self._grams[key]
        if seen.cross is None:
            return objective(weight, gram, kind=kind)
        alpha = self._alpha(layer)
        target = weight @ seen.cross if seen.by_input else seen.cross / alpha
        power = None if seen.power is None else seen.power / alpha**2
        mix = 1.0
        if kind == "mixed":
            mix = best_mix(weight, gram, target=target, rank=rank)
        return objective(weight, gram, kind=kind, target=target, power=power, mix=mix)

    def _solved(
        self, layer: Layer, weight: Tensor, problem: Problem, rank: int, gram: Tensor | None
    ) -> Split | str:
        low = LowRank(*problem)
        self.spectra[layer.output] = _curve(low)
        if math.prod(layer.kernel) == 1:
            left, right = balanced(*low.factors(rank), gram)
            power = low.power
            return Split("matrix", (rank,), (right, left), None, low.error(rank) / (power or 1.0))
        costs = split_cost(layer, "output", (rank,))
        most = costs[0] if self._count == "parameters" else costs[1]
        return best_split(
            layer, weight, problem.target, problem.gram, problem.power, most, count=self._count
        )

    def _with_shift(self, layer: Layer, weight: Tensor, split: Split, seen: Collected) -> Split:
        """With what the bias must take up so that the mean of the output stays."""
        if split.kind == "matrix":
            right, left = split.weights
            now = left.double() @ right.double()
        else:
            now = composed(split.weights, layer.groups).double()
        mean = seen.mean[..., None]
        if seen.mean_output is None:
            wanted = (weight @ mean)[..., 0]
        else:
            own = own_bias(self._model, layer).to(mean.device)
            wanted = (seen.mean_output - own) / self._alpha(layer)
        shift = wanted - (now @ mean)[..., 0]
        return replace(split, shift=shift.flatten().float())

    def _alpha(self, layer: Layer) -> float:
        """What a Gemm scales its product by."""
        node = next(n for n in self._model.ir.graph if n.outputs[0].name == layer.output)
        return node.attributes.get_float("alpha", 1.0)


def _curve(low: LowRank) -> list[tuple[float, float]]:
    full = low.energies.shape[1]
    power = low.power or 1.0
    ranks = sorted({round(full * i / _POINTS) for i in range(_POINTS + 1)})
    return [(rank / full, low.error(rank) / power) for rank in ranks]


def _joined(seen: Sequence[Collected | None]) -> Collected | None:
    """Of layers that share a weight, as if all places were those of one layer."""
    found = [each for each in seen if each is not None]
    if len(found) < 2:
        return found[0] if found else None
    places = sum(each.places for each in found)

    def mean(tensors: Sequence[Tensor]) -> Tensor:
        parts = [t * (each.places / places) for t, each in zip(tensors, found, strict=True)]
        return torch.stack(parts).sum(0)

    crosses = [each.cross for each in found if each.cross is not None]
    powers = [each.power for each in found if each.power is not None]
    return Collected(
        places=places,
        gram=mean([each.gram for each in found]),
        cross=mean(crosses) if crosses else None,
        by_input=found[0].by_input,
        power=mean(powers) if powers else None,
        mean=mean([each.mean for each in found]),
        mean_output=None,  # only a bias would need it
    )
