"""What each rank of each layer is worth: spectra, importance of blocks, changes of the loss.

One walk of the original graph tells second moments of the layers' inputs or outputs, whichever are
less work, and with them how much of the power of an output each component carries. Where changes of
the loss are asked for, a second one goes forth and back.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.factorization.collecting import input_key
from edgecompress.factorization.layers import sharing
from edgecompress.factorization.loss_changes import Components, loss_changes, output_places
from edgecompress.factorization.parts import Layer, Spectrum, held_out
from edgecompress.factorization.places import draw
from edgecompress.factorization.reading import not_finite, only_padding, own_bias, read_weight
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.numerics.low_rank import Gram, LowRank
from edgecompress.numerics.one_thread import one_thread
from edgecompress.numerics.tree_sum import TreeSum
from edgecompress.walk.blocks import Block, find_blocks
from edgecompress.walk.scratch import Budget
from edgecompress.walk.step import Watch
from edgecompress.walk.walker import Walk

__all__ = ["survey"]

_BATCH_ROWS = 8
_LEAST_BATCHES = 8
# Part of the memory that the directions of the components may take.
_KEPT_SHARE = 4
_NO_ENERGY = 1e-12


def survey(
    model: Model, layers: Sequence[Layer], context: Context, *, rows: int, gradients: bool
) -> list[Spectrum]:
    """The spectra of layers, in the original graph.

    Batches that are held out are in none of the figures. On the CPU they do not depend on the
    number of threads.

    Args:
        model: The graph, without functions of its own.
        layers: Of it.
        context: Calibration rows, device, seed and resources.
        rows: Calibration rows, about.
        gradients: Whether changes of the loss are wanted, too: about four times the work.

    Returns:
        One for each layer, in their order.

    Raises:
        PassError: Activations or gradients are not finite, or there is nothing but padding.
        OutputError: The scratch folder cannot be written.
    """
    data, resources = context.calibration, context.resources
    if data is None:
        raise ValueError("expected calibration rows")
    memory = resources.memory
    rows = min(rows, data.calibration_rows)
    batch_size = max(1, min(_BATCH_ROWS, rows // _LEAST_BATCHES))
    blocks = find_blocks(model)
    found: dict[str, Spectrum] = {}
    kept = Budget(None if memory is None else memory // _KEPT_SHARE, resources.scratch)
    with one_thread() as before, Components(kept) as components:
        threads = before if context.device == "cpu" else 1
        walk = Walk(
            model,
            data,
            blocks=blocks,
            rows=rows,
            batch_size=batch_size,
            threads=threads,
            device=context.device,
            memory=memory,
            scratch=resources.scratch,
            progress=context.progress,
            label="spectra",
        )
        alone = {layer.weight for layer in layers} - set(sharing(layers))
        for step in walk:
            outputs = {value.name for node in step.block.nodes for value in node.outputs}
            here = [layer for layer in layers if layer.output in outputs]
            sums = _BlockSums(step.block, here, alone, rows, context.seed)
            step.advance(Watch(sums.names, sums.see, again=True))
            importance = sums.importance()
            for layer in here:
                low = sums.solved(layer, model, vectors=gradients)
                found[layer.output] = Spectrum(layer, low.energies, low.power, importance)
                if gradients:
                    components.keep(layer.output, low.directions, low.mean)
        changes = {}
        if gradients:
            changes = loss_changes(
                model, layers, components, context, blocks, rows=rows, threads=threads
            )
    ordered = (found[layer.output] for layer in layers)
    return [replace(each, loss_change=changes.get(each.layer.output)) for each in ordered]


@dataclass(frozen=True)
class _Solved:
    """A layer's components: float64 [k] of energies, float32 [groups, rows, k] of directions."""

    energies: Tensor
    power: float
    directions: Tensor
    mean: Tensor | None


class _Moments:
    """Means of columns and of their products, of layers' inputs or of one's outputs."""

    def __init__(self, layer: Layer, of_output: bool) -> None:
        self.layer = layer
        self.of_output = of_output
        self._total = TreeSum()

        self._lock = threading.Lock()

    def add(self, batch: Batch, value: Tensor, most: int, generator: torch.Generator) -> None:
        """Take in a batch; in whatever order, from whatever thread."""
        form = self.layer.form
        if self.of_output:
            places = output_places(self.layer, value, batch, most, generator)
            columns = form.outputs(value, places)
        else:
            places, _ = form.places(value, batch.mask, most, generator)
            columns = form.columns(value, places)
        columns = columns.float()
        one = torch.cat([columns, columns.new_ones((*columns.shape[:2], 1))], 2)
        found = (one.mT @ one).double().cpu()
        with self._lock:
            self._total.add(batch.number, found)

    def of(self, layer: Layer, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Products and mean: float64 [groups, n, n] and [groups, n].

        Raises:
            PassError: They are not finite, or there is nothing but padding.
        """
        total = self._total.total() if self._total.nodes else torch.zeros(1, 1, 1)
        count = float(total[0, -1, -1])
        if count == 0:
            raise only_padding(layer)
        if not bool(total.isfinite().all()):
            raise not_finite(layer)
        mean = total[:, :-1, -1] / count
        products = total[:, :-1, :-1] / count
        return products - mean[..., None] * mean[:, None] if centred else products, mean


class _BlockSums:
    """What is summed up while the rows pass a block."""

    def __init__(
        self, block: Block, layers: Sequence[Layer], alone: Collection[str], rows: int, seed: int
    ) -> None:
        self._alone = alone
        self._rows = max(rows, 1)
        self._seed = seed
        self._lock = threading.Lock()
        self._moments: dict[tuple[object, ...], _Moments] = {}
        self._of: dict[str, _Moments] = {}
        for group in _by_input(layers):
            self._plan(group)
        self._ends = _ends(block)
        self._entered: dict[int, Tensor] = {}
        self._cosines = TreeSum()

    def _plan(self, group: Sequence[Layer]) -> None:
        """Take moments of the input that layers share, or of their outputs."""
        first = group[0]
        many = sum(layer.rows**2 for layer in group) > first.columns**2
        for layer in group:
            # A bias of the node itself is in its output, and goes with the mean alone.
            plain = layer.op == "MatMul" or not layer.bias or layer.weight in self._alone
            of_output = plain and not many
            key = (layer.output,) if of_output else input_key(layer)
            self._of[layer.output] = self._moments.setdefault(key, _Moments(layer, of_output))

    @property
    def names(self) -> set[str]:
        """Values that are looked at."""
        moments = self._moments.values()
        return {*self._ends, *(m.layer.output if m.of_output else m.layer.input for m in moments)}

    def see(self, batch: Batch, name: str, value: Tensor) -> None:
        """Take in a value; called from several threads."""
        if held_out(batch.number):
            return
        for moments in self._moments.values():
            layer = moments.layer
            if name == (layer.output if moments.of_output else layer.input):
                most, generator = draw(
                    layer, batch.rows, of_rows=self._rows, seed=self._seed, number=batch.number
                )
                moments.add(batch, value, most, generator)
        if name in self._ends:
            self._compare(batch, name, value)

    def _compare(self, batch: Batch, name: str, value: Tensor) -> None:
        """Sum up the cosines of what goes into the block and what comes out, and their number."""
        before, behind = self._ends
        if name == before:
            self._entered[batch.number] = value.clone()
        if name != behind:
            return
        x = self._entered.pop(batch.number, None)
        if x is None or x.shape != value.shape:
            return
        axis = 1 if value.dim() == 4 else -1
        cosines = torch.cosine_similarity(x.double(), value.double(), dim=axis).flatten()
        shape = tuple(1 if i == axis % value.dim() else n for i, n in enumerate(value.shape))
        mask = None if batch.mask is None else position_mask(shape, torch.from_numpy(batch.mask))
        if mask is not None:
            cosines = cosines[mask.expand(shape).flatten().to(cosines.device)]
        found = torch.stack([cosines.sum(), cosines.new_tensor(len(cosines))]).cpu()
        with self._lock:
            self._cosines.add(batch.number, found)

    def importance(self) -> float:
        """1 - cosine; 0 where the block has not one input and one output of the same shape."""
        if not self._cosines.nodes:
            return 0.0
        total, places = self._cosines.total().tolist()
        return max(1 - total / places, 0.0) if places else 0.0

    def solved(self, layer: Layer, model: Model, *, vectors: bool) -> _Solved:
        """The components of a layer.

        Raises:
            PassError: As :meth:`_Moments.of`.
        """
        moments = self._of[layer.output]
        centred = layer.bias and layer.weight in self._alone
        products, mean = moments.of(layer, centred=centred)
        full = min(layer.rows, layer.columns)
        if moments.of_output:
            if vectors:
                values, basis = torch.linalg.eigh(products)
            else:
                values, basis = torch.linalg.eigvalsh(products), products[..., :0]
            energies = values.flip(1).clamp_min(0)[:, :full].sum(0)
            directions = basis.flip(2)[:, :, :full]
        else:
            weight = read_weight(model, layer).to(products)
            low = LowRank(None, Gram(products), None, weight, vectors=vectors)
            energies = low.energies.sum(0)
            directions = weight[..., :0]
            if vectors:
                # Columns of no energy are nothing but rounding, brought to some length.
                there = low.energies > _NO_ENERGY * low.energies[:, :1]
                directions = low.factors(full, balance="right")[0] * there[:, None]
            mean = (weight @ mean[..., None])[..., 0] + own_bias(model, layer)
        return _Solved(energies, float(energies.sum()), directions, mean if centred else None)


def _by_input(layers: Iterable[Layer]) -> list[list[Layer]]:
    groups: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        groups.setdefault(input_key(layer), []).append(layer)
    return list(groups.values())


def _ends(block: Block) -> tuple[str, ...]:
    """Input and output of a block that has one of each."""
    outputs = {*block.outputs, *block.results}
    return (*block.inputs, *outputs) if len(block.inputs) == len(outputs) == 1 else ()
