"""What the layers of a stage see in both graphs, summed up over the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgecompress.factorization.parts import Layer, Objective, held_out
from edgecompress.factorization.places import draw
from edgecompress.factorization.reading import not_finite, only_padding
from edgecompress.numerics.joint_moments import JointMoments, Products, joint_products
from edgecompress.walk.streams import WalkBatch

__all__ = ["Collected", "StageMoments", "input_key"]

Key = tuple[object, ...]
Sums = Mapping[Key, tuple[Products, Products | None]]


def input_key(layer: Layer) -> Key:
    """The same for layers that multiply the same columns, such as queries, keys and values."""
    return layer.input, layer.groups, layer.form.attributes, layer.kernel


@dataclass(frozen=True)
class Collected:
    """Means over places, for one layer.

    Attributes:
        places: Over how many.
        gram: [groups, columns, columns], of what the layer is to be applied to; float64, or float32
            where it is so large that a copy would count.
        cross: With that: float64 [groups, rows, columns] of the wanted output, or float64 [groups,
            columns, columns] of the layer's input in the original graph (``by_input``); None where
            the wanted output is the layer's own of the same input.
        by_input: What ``cross`` is of.
        power: float64 [groups], of the wanted output; None as ``cross``.
        mean: float64 [groups, columns], of what the layer is to be applied to.
        mean_output: float64 [groups, rows], of the wanted output as the node computes it; None as
            ``cross``.
    """

    places: int
    gram: Tensor
    cross: Tensor | None
    by_input: bool
    power: Tensor | None
    mean: Tensor
    mean_output: Tensor | None


@dataclass
class _Group:
    """Layers that read the same columns.

    The wanted outputs are products of the original inputs with the weights: cross moments with
    either tell the same, and the fewer they are, the less there is to multiply.
    """

    layers: list[Layer] = field(default_factory=list)
    moments: JointMoments = field(default_factory=JointMoments)
    outputs: JointMoments = field(default_factory=JointMoments)
    served: int = 0

    @property
    def by_input(self) -> bool:
        return sum(layer.rows for layer in self.layers) > self.layers[0].columns

    def where(self, layer: Layer) -> slice:
        """The layer's rows among those of all layers."""
        start = 0
        for each in self.layers:
            if each is layer:
                return slice(start, start + each.rows)
            start += each.rows
        raise ValueError(f"{layer.output} is not of this group")


class StageMoments:
    """Sums over the batches of one stage; batches that are held out do not count."""

    def __init__(self, layers: Sequence[Layer], objective: Objective, rows: int, seed: int) -> None:
        """Start with nothing.

        Args:
            layers: Of the stage.
            objective: What the sums are for.
            rows: How many rows will come, about.
            seed: Of the places that are drawn.
        """
        self._objective = objective
        self._rows = max(rows, 1)
        self._seed = seed
        self._groups: dict[Key, _Group] = {}
        for layer in layers:
            self._groups.setdefault(input_key(layer), _Group()).layers.append(layer)

    def look(
        self, batch: WalkBatch, original: Mapping[str, Tensor], edited: Mapping[str, Tensor]
    ) -> Sums | None:
        """The products of one batch; may be called from several threads.

        Args:
            batch: The batch.
            original: Inputs and outputs of the layers in the original graph.
            edited: Inputs of the layers in the edited graph.
        """
        if self._objective == "input_agnostic" or held_out(batch.place):
            return None
        found: dict[Key, tuple[Products, Products | None]] = {}
        for key, group in self._groups.items():
            first = group.layers[0]
            source = original if self._objective == "input_aware" else edited
            places = self._places(first, source[first.input], batch)
            columns = first.form.columns(source[first.input], places).float()
            if self._objective in ("input_aware", "shift_aware"):
                found[key] = joint_products(columns), None
                continue
            outputs = torch.cat(
                [each.form.outputs(original[each.output], places) for each in group.layers], dim=2
            ).float()
            if group.by_input:
                inputs = first.form.columns(original[first.input], places).float()
                nothing = columns[..., :0]  # sums and powers only
                found[key] = joint_products(columns, inputs), joint_products(nothing, outputs)
            else:
                found[key] = joint_products(columns, outputs), None
        return found

    def add(self, found: Sums | None) -> None:
        """Take in what :meth:`look` made of a batch; in the order of the batches."""
        for key, (products, outputs) in (found or {}).items():
            self._groups[key].moments.add(products)
            if outputs is not None:
                self._groups[key].outputs.add(outputs)

    def of(self, layer: Layer, *, centred: bool) -> Collected | None:
        """The means for a layer, once; None where the objective needs none.

        What no other layer of the stage will ask for is forgotten.

        Args:
            layer: The layer.
            centred: About the means, for a layer whose bias takes up the difference.

        Raises:
            PassError: Activations are not finite, or no place is left that is not padding.
        """
        if self._objective == "input_agnostic":
            return None
        group = self._groups[input_key(layer)]
        moments = group.moments
        if moments.places == 0:
            raise only_padding(layer)
        if not moments.finite() or (group.outputs.places and not group.outputs.finite()):
            raise not_finite(layer)
        own = self._objective in ("input_aware", "shift_aware")
        rows, by_input = group.where(layer), group.by_input and not own
        outputs = group.outputs if by_input else moments
        cross = None if own else moments.cross(centred=centred)
        found = Collected(
            places=moments.places,
            gram=moments.gram(centred=centred),
            cross=cross if cross is None or by_input else cross[:, rows],
            by_input=by_input,
            power=None if own else outputs.power(centred=centred)[:, rows].sum(1),
            mean=moments.mean_b,
            mean_output=None if own else outputs.mean_a[:, rows],
        )
        group.served += 1
        if group.served == len(group.layers):
            del self._groups[input_key(layer)]
        return found

    def _places(self, layer: Layer, x: Tensor, batch: WalkBatch) -> Tensor | None:
        most, generator = draw(
            layer, batch.source.rows, of_rows=self._rows, seed=self._seed, number=batch.place
        )
        return layer.form.places(x, batch.source.mask, most, generator)[0]
