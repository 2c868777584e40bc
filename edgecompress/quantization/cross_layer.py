"""Cross-layer equalization: the weights of neighbouring layers are made to span the same ranges.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019
(arXiv 1906.04721), section 4.1. It is for targets with one scale for a whole weight. Whether it
helps is measured: the graph runs on integers with and without the factors, and a chain whose last
layers do not come nearer to the float graph stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.constraints import Int8Format
from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.model import Model
from edgecompress.numerics.affine import IntegerRange
from edgecompress.numerics.equalize import cross_layer_scales, powers_of_two
from edgecompress.numerics.one_thread import one_thread
from edgecompress.numerics.tree_sum import TreeSum
from edgecompress.progress import Progress, silent
from edgecompress.quantization.equalization import Group, fold
from edgecompress.quantization.layer_error import not_finite, on_weight_grid, rounded
from edgecompress.quantization.linear_channels import Fold, output_axis
from edgecompress.quantization.products import insert_products
from edgecompress.walk.walker import Walk, Watch

__all__ = ["Chain", "equalize_chains"]

_MOST_SWEEPS = 20
_WIDEST = 2.0**8
_STABLE = 0.01  # largest logarithm of a factor in the last sweep


@dataclass
class Chain:
    """Groups that share layers.

    Attributes:
        groups: In graph order.
        scales: Of each group, float64 [channels].
        before: Squared error over squared output behind the chain on integers, added up.
        after: The same with the factors.
    """

    groups: list[Group]
    scales: list[Tensor]
    before: float = 0.0
    after: float = 0.0

    @property
    def layers(self) -> list[ir.Node]:
        """All layers that take part."""
        nodes = [n for g in self.groups for n in (g.source.node, *(a.node for a in g.layers))]
        return list(dict.fromkeys(nodes))

    @property
    def ends(self) -> list[str]:
        """Outputs of the layers that no other of its layers reads: no factor changes them."""
        sources = {group.source.node for group in self.groups}
        return [node.outputs[0].name or "" for node in self.layers if node not in sources]


def equalize_chains(
    model: Model,
    groups: Sequence[Group],
    data: CalibrationSet,
    int8: Int8Format,
    *,
    rows: int,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> list[Chain]:
    """Find the factors of all chains, and measure what they do.

    Args:
        model: The float model that the groups are of.
        groups: Groups whose sources are layers.
        data: Where calibration rows come from.
        int8: The target's formats.
        rows: How many calibration rows, about.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.

    Raises:
        DataError: An activation is NaN or infinite.
    """
    chains = _chains(groups)
    if not chains:
        return []
    for chain in chains:
        chain.scales = _stable_scales(chain.groups)
    for scaled in (False, True):
        copy, inputs = _on_integers(model, chains, int8, scaled=scaled)
        meter = _Meter(chains, inputs, int8)
        with one_thread() as threads:
            walk = Walk(
                model,
                data,
                current=copy,
                rows=rows,
                threads=threads,
                device=device,
                memory=memory,
                scratch=scratch,
                progress=progress,
                label="equalize",
            )
            for step in walk:
                step.advance(Watch(meter.ends, meter.keep), Watch(meter.names, meter.see))
        for chain in chains:
            if scaled:
                chain.after = meter.error(chain)
            else:
                chain.before = meter.error(chain)
    return chains


class _Meter:
    """Rounds what the layers of chains read, and adds up the errors behind the chains."""

    def __init__(self, chains: Sequence[Chain], inputs: set[str], int8: Int8Format) -> None:
        self.ends = {name for chain in chains for name in chain.ends}
        self.names = self.ends | inputs
        self._inputs = inputs
        self._int8 = int8
        self._references: dict[tuple[int, str], Tensor] = {}
        self._sums: dict[str, TreeSum] = {name: TreeSum() for name in self.ends}
        self._lock = Lock()

    def keep(self, batch: Batch, name: str, values: Tensor) -> None:
        """Look at a value of the float graph."""
        self._references[batch.number, name] = values.clone()

    def see(self, batch: Batch, name: str, values: Tensor) -> None:
        """Look at a value of the graph on integers; what layers read is rounded in place."""
        if name in self.ends:
            reference = self._references.pop((batch.number, name)).double()
            error = (values.double() - reference).square().sum()
            with self._lock:
                self._sums[name].add(batch.number, torch.stack([error, reference.square().sum()]))
        if name in self._inputs:
            low, high = (float(end) for end in torch.aminmax(values))
            if not math.isfinite(low + high):
                raise not_finite(name, values)
            values.copy_(rounded(values, low, high, self._int8))

    def error(self, chain: Chain) -> float:
        """Squared error over squared output, over all ends."""
        totals = [self._sums[name].total() for name in chain.ends]
        return sum(float(error / power) for error, power in totals if power > 0)


def _on_integers(
    model: Model, chains: Sequence[Chain], int8: Int8Format, *, scaled: bool
) -> tuple[Model, set[str]]:
    """A copy with the weights of all chains on their grids, with the factors or without.

    In front of each layer is a product with ones: its value belongs to the layer alone and may be
    rounded in place. The second answer is the names of these.
    """
    copy = model.clone()
    nodes = dict(zip(model.ir.graph, copy.ir.graph, strict=True))
    integers = IntegerRange.of("int8", int8.weight_bits, symmetric=True)
    for chain in chains:
        for group, scales in zip(chain.groups, chain.scales, strict=True):
            if scaled:
                fold(copy.ir.graph, group.among(nodes), scales.numpy())
        for layer in chain.layers:
            weight = nodes[layer].inputs[1]
            assert weight is not None  # a layer has one
            assert weight.const_value is not None
            array = torch.from_numpy(weight.const_value.numpy().copy())
            axis = output_axis(layer)
            grid = on_weight_grid(array, axis, integers, per_channel=int8.per_channel)
            weight.const_value = ir.tensor(grid.numpy(), name=weight.name)
    layers = [nodes[layer] for chain in chains for layer in chain.layers]
    products = insert_products(copy.ir.graph, layers)
    return copy, {product.outputs[0].name or "" for product in products}


def _chains(groups: Sequence[Group]) -> list[Chain]:
    """Groups that share a layer, together."""
    of: dict[ir.Node, list[Group]] = {}
    for group in groups:
        own = [group]
        for node in (group.source.node, *(layer.node for layer in group.layers)):
            if node in of and of[node] is not own:
                own[:0] = of[node]
        for member in own:
            for node in (member.source.node, *(layer.node for layer in member.layers)):
                of[node] = own
    found = {id(own): own for own in of.values()}
    return [Chain(own, []) for own in found.values()]


def _stable_scales(groups: Sequence[Group]) -> list[Tensor]:
    """Sweep over the pairs until nothing moves; only absolute values of the weights count."""
    weights: dict[ir.Value, Tensor] = {}
    for part in (part for group in groups for part in _weights(group)):
        assert part.value.const_value is not None  # found to be constant
        array = torch.from_numpy(part.value.const_value.numpy().copy())
        weights.setdefault(part.value, array.double().abs())
    total = [torch.ones(group.source.channels, dtype=torch.float64) for group in groups]
    least = [_least_scales(group) for group in groups]
    for _ in range(_MOST_SWEEPS):
        moved = 0.0
        for number, group in enumerate(groups):
            first, *second = _weights(group)
            made = _largest([first], weights, group.source.channels)
            read = _largest(second, weights, group.source.channels)
            wanted = total[number] * cross_layer_scales(made, read)
            scales = wanted.clamp(max=_WIDEST).maximum(least[number]) / total[number]
            for part in (first, *second):
                factors = scales[torch.from_numpy(part.labels)]
                weights[part.value] *= factors if part.times else 1 / factors
            total[number] = total[number] * scales
            moved = max(moved, float(scales.log().abs().max()))
        if moved < _STABLE:
            break
    return [powers_of_two(scales) for scales in total]


def _least_scales(group: Group) -> Tensor:
    """Factors below which the bias of a channel would pass the largest of all.

    Channels that are all but dead would get them; one scale for the weight could not hold both.
    """
    least = torch.full((group.source.channels,), 1 / _WIDEST, dtype=torch.float64)
    for part in group.source.folds[1:]:
        assert part.value.const_value is not None  # found to be constant
        bias = torch.from_numpy(part.value.const_value.numpy().copy()).double().abs()
        if float(bias.max()) > 0:
            least = torch.maximum(least, (bias / bias.max()).expand_as(least))
    return least


def _weights(group: Group) -> list[Fold]:
    return [group.source.folds[0], *(layer.weight for layer in group.layers)]


def _largest(folds: Sequence[Fold], weights: dict[ir.Value, Tensor], channels: int) -> Tensor:
    found = torch.zeros(channels, dtype=torch.float64)
    for part in folds:
        values = weights[part.value]
        labels = torch.from_numpy(part.labels).expand(values.shape)
        found.scatter_reduce_(0, labels.reshape(-1), values.reshape(-1), "amax")
    return found
