"""Scales and zero points of activations: by one method, or by the method that serves each best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.constraints import Int8Format
from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import real_values
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.numerics.affine import Affine, IntegerRange, fake_quantize
from edgecompress.numerics.ranges import RangeMethod, choose_range
from edgecompress.qdq_plan import Placement
from edgecompress.statistics import Statistics, TensorStatistics
from edgecompress.torchgraph import TorchGraph, to_torch
from edgecompress.walk.walker import Walk, Watch

__all__ = ["ActivationMethod", "RangeOptions", "choose_affines"]

ActivationMethod = Literal["minmax", "moving_average", "percentile", "entropy", "mse", "auto"]

_CANDIDATES: tuple[RangeMethod, ...] = (
    "minmax",
    "moving_average",
    "percentile",
    "entropy",
    "mse",
)
_ROWS = 32
"""Rows that the candidates are compared on: errors of a whole tensor are averages already."""


class RangeOptions(Protocol):
    """How the range of an activation is chosen."""

    @property
    def method(self) -> ActivationMethod:
        """One of the methods of ``numerics.ranges``, or ``auto``."""

    @property
    def percentile(self) -> float:
        """Share of the values that ``percentile`` keeps, in percent."""


Options = TypeVar("Options", bound=RangeOptions)


@dataclass
class _Contest:
    """The candidates for one activation, and the relative error that each makes downstream."""

    affines: Sequence[Affine]
    readers: Sequence[TorchGraph]
    errors: list[float] = field(default_factory=list)

    @property
    def best(self) -> Affine:
        # Ties go to the first: the candidates stand in order of what they clip.
        return self.affines[self.errors.index(min(self.errors))] if self.errors else self.affines[0]


def choose_affines(
    model: Model,
    placement: Placement[Options],
    statistics: Statistics,
    int8: Int8Format,
    context: Context,
) -> dict[str, Affine]:
    """Scale and zero point of every activation that is quantized.

    Args:
        model: The float model.
        placement: What is quantized, and how each range is to be chosen.
        statistics: Of the measured activations.
        int8: Formats of the target.
        context: Where rows come from, for ``auto``.
    """
    affines: dict[str, Affine] = {}
    contests: dict[str, _Contest] = {}
    for name in placement.measured:
        options, seen = placement.options[name], statistics[name]
        # With 16 bits there is nothing to gain by clipping, and steps are finer than histograms.
        method = "minmax" if int8.activation.endswith("16") else options.method
        if method != "auto":
            affines[name] = _affine(method, seen, options, int8)
            continue
        candidates = [_affine(method, seen, options, int8) for method in _CANDIDATES]
        contests[name] = _Contest(tuple(dict.fromkeys(candidates)), ())
    open_ones = {name: c for name, c in contests.items() if len(c.affines) > 1}
    if open_ones:
        _compete(model, placement, open_ones, int8, context)
    affines |= {name: contest.best for name, contest in contests.items()}
    return affines | {name: affines[source] for name, source in placement.shared.items()}


def _affine(
    method: RangeMethod, seen: TensorStatistics, options: RangeOptions, int8: Int8Format
) -> Affine:
    symmetric = int8.activation_symmetric
    integers = IntegerRange.of(int8.activation, symmetric=symmetric)
    low, high = choose_range(
        method,
        seen.histogram,
        seen.low,
        seen.high,
        integers,
        averaged=seen.averaged,
        percentile=options.percentile,
        symmetric=symmetric,
    )
    return Affine.from_range(low, high, integers, symmetric=symmetric)


def _compete(
    model: Model,
    placement: Placement[Options],
    contests: Mapping[str, _Contest],
    int8: Int8Format,
    context: Context,
) -> None:
    """Sum up the error of each candidate, at the outputs of the layers that read the activation.

    Where no layer reads it, the error of the activation itself counts.
    """
    assert context.calibration is not None  # run_pass has seen to it
    layers = {layer.output for layer in placement.layers}
    readers = _readers(model, layers)
    for name, contest in contests.items():
        contest.readers = [to_torch(model, [node]) for node in readers.get(name, ())]
        contest.errors = [0.0] * len(contest.affines)
    integers = IntegerRange.of(int8.activation, symmetric=int8.activation_symmetric)

    def see(batch: Batch, name: str, values: Tensor) -> None:
        contest = contests[name]
        for number, affine in enumerate(contest.affines):
            scale = torch.tensor(affine.scale, dtype=values.dtype)
            rounded = fake_quantize(values, scale, affine.zero_point, integers)
            contest.errors[number] += sum(_errors(contest.readers, name, values, rounded, batch))

    walk = Walk(
        model,
        context.calibration,
        rows=_ROWS,
        device=context.device,
        memory=context.resources.memory,
        scratch=context.resources.scratch,
        progress=context.progress,
        label="choose ranges",
    )
    for step in walk:
        step.advance(Watch(contests, see))


def _readers(model: Model, layers: set[str]) -> dict[str, list[ir.Node]]:
    """The layers that read each value as their activation."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.ir.graph:
        if node.outputs[0].name in layers and node.inputs[0] is not None:
            found.setdefault(node.inputs[0].name or "", []).append(node)
    return found


def _errors(
    readers: Sequence[TorchGraph], name: str, values: Tensor, rounded: Tensor, batch: Batch
) -> Iterable[float]:
    """Error over signal, as powers, at each place where the activation has an effect."""
    pairs = [(values, rounded)]
    if readers:
        pairs = [
            (next(iter(of({name: values}).values())), next(iter(of({name: rounded}).values())))
            for of in readers
        ]
    mask = None if batch.mask is None else torch.from_numpy(batch.mask)
    for exact, off in pairs:
        error = off.double() - exact.double()
        signal = exact.double()
        if mask is not None:
            error, signal = real_values(error, mask), real_values(signal, mask)
        power = float(signal.square().sum())
        if power > 0:
            yield float(error.square().sum()) / power
