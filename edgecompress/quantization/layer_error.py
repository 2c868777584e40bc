"""What int8 costs a layer, measured on a sample of its input rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.constraints import Int8Format
from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.errors import DataError
from edgecompress.model import Model
from edgecompress.numerics.affine import Affine, IntegerRange, fake_quantize, weight_scales
from edgecompress.quantization.linear_channels import output_axis
from edgecompress.torchgraph import to_torch

__all__ = [
    "InputSample",
    "LayerError",
    "input_sample",
    "not_finite",
    "on_weight_grid",
    "rounded",
]

_POSITIONS = 256  # of all rows together, where a layer reads vectors
_MAP_VALUES = 2**20  # of all rows together, where it reads maps: whole rows until so many are there
_MOST_MAPS = 16
_GRID_VALUES = 2**14  # that a grid is chosen on
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the range


@dataclass
class InputSample:
    """Extremes of each channel of an activation over all rows, and some of the rows.

    Attributes:
        name: Of the value.
        axis: Where its channels are: -1, or 1 for maps.
        batches: How many will come, about; the sample is spread over them.
        low: float32 [channels], smallest values seen.
        high: float32 [channels], largest values seen.
    """

    name: str
    axis: int
    batches: int
    low: Tensor | None = None
    high: Tensor | None = None
    _kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def is_filled(self) -> bool:
        """Whether any rows have come."""
        return self.low is not None

    @property
    def largest(self) -> Tensor:
        """float32 [channels], largest absolute values seen."""
        assert self.low is not None  # asked for behind the walk only
        assert self.high is not None
        return torch.maximum(self.low.abs(), self.high.abs())

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor]:
        """The sample in two parts of equal kind: one to choose on, one to judge on."""
        rows = torch.cat([self._kept[number] for number in sorted(self._kept)])
        self._kept.clear()
        return (rows[::2], rows[1::2]) if len(rows) > 1 else (rows, rows)

    def on_grid(self, scales: Tensor, half: int, int8: Int8Format) -> Tensor:
        """One half of the sample with its channels divided, and rounded to int8 as one tensor.

        Args:
            scales: float64 [channels].
            half: Which one.
            int8: The target's formats.
        """
        assert self.low is not None  # asked for behind the walk only
        assert self.high is not None
        x = self.halves[half]
        shape = [-1 if axis == self.axis % x.dim() else 1 for axis in range(x.dim())]
        x = (x / scales.reshape(shape)).float()
        low, high = float((self.low / scales).min()), float((self.high / scales).max())
        return rounded(x, low, high, int8)

    def add(self, batch: Batch, values: Tensor) -> None:
        """Take in a batch; padded positions do not count.

        Raises:
            DataError: Some values are NaN or infinite.
        """
        mask = None if batch.mask is None else torch.from_numpy(batch.mask)
        real = None if mask is None else position_mask(tuple(values.shape), mask)
        channels = values.movedim(self.axis, -1)
        if real is None:
            vectors = channels.reshape(-1, channels.shape[-1])
        else:
            kept = real.to(values.device).expand(values.shape).movedim(self.axis, -1)
            vectors = channels[kept.all(-1)]
        if not len(vectors):
            return
        low, high = torch.aminmax(vectors, dim=0)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise not_finite(self.name, vectors)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self._keep(batch.number, values if self.axis == 1 and values.dim() > 2 else vectors)

    def _keep(self, number: int, rows: Tensor) -> None:
        most = _POSITIONS
        if rows.dim() > 2:
            most = min(max(_MAP_VALUES // rows[0].numel(), 2), _MOST_MAPS)
        if number % max(self.batches // most, 1) == 0:
            step = math.ceil(len(rows) * min(self.batches, most) / most)
            self._kept[number] = rows[:: max(step, 1)].clone()


def input_sample(node: ir.Node, batches: int) -> InputSample:
    """An empty sample of what a layer reads.

    Args:
        node: The layer.
        batches: How many will come, about.
    """
    value = node.inputs[0]
    assert value is not None  # a layer has an input
    axis = 1 if node.op_type in ("Conv", "ConvTranspose") else -1
    return InputSample(value.name or "", axis, batches)


def not_finite(name: str, values: Tensor) -> DataError:
    """What to say of an activation that cannot be measured."""
    bad = int((~torch.isfinite(values)).sum())
    return DataError(
        f"{bad:,} of {values.numel():,} values are NaN or infinite",
        where=f"tensor {name!r} during equalization",
        cure="the float model overflows on these rows; check the preprocessing and the weights",
    )


def on_weight_grid(
    weight: Tensor, axis: int, integers: IntegerRange, *, per_channel: bool
) -> Tensor:
    """A weight rounded to integers and back, of the same shape.

    Args:
        weight: float32.
        axis: Of its output channels.
        integers: Symmetric range.
        per_channel: Whether each output channel has a scale of its own.
    """
    rows = weight.movedim(axis, 0)
    flat = rows.reshape(len(rows) if per_channel else 1, -1)
    steps = weight_scales(flat, integers, method="minmax")
    found = fake_quantize(flat, steps[:, None], 0, integers)
    return found.reshape(rows.shape).movedim(0, axis)


def rounded(x: Tensor, low: float, high: float, int8: Int8Format) -> Tensor:
    """A tensor on the int8 grid that has the least squared error.

    Args:
        x: Values.
        low: The smallest value to expect.
        high: The largest.
        int8: The target's formats.
    """
    symmetric = int8.activation_symmetric
    integers = IntegerRange.of(int8.activation, symmetric=symmetric)

    def on(values: Tensor, share: float) -> Tensor:
        grid = Affine.from_range(low * share, high * share, integers, symmetric=symmetric)
        return fake_quantize(values, torch.tensor(grid.scale), grid.zero_point, integers)

    few = x.reshape(-1)[:: math.ceil(x.numel() / _GRID_VALUES) | 1]
    errors = [float((on(few, share) - few).square().sum()) for share in _SHARES]
    return on(x, _SHARES[errors.index(min(errors))])


class LayerError:
    """A layer alone, computed with its weights and its input on int8 grids.

    Attributes:
        node: The layer.
        weight: float32, its weight.
    """

    def __init__(self, model: Model, node: ir.Node, int8: Int8Format) -> None:
        """Read the layer's weight.

        Args:
            model: The model that it is in.
            node: Conv, ConvTranspose, Gemm or MatMul with a constant weight.
            int8: The target's formats.
        """
        x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
        assert x is not None  # a layer has both
        assert weight is not None
        self.node = node
        self._input, self._output = x.name or "", y.name or ""
        self._axis = output_axis(node)
        self._per_channel = int8.per_channel
        self._integers = IntegerRange.of("int8", int8.weight_bits, symmetric=True)
        self._graph = to_torch(model, [node])
        parameters = self._graph.parameters_by_initializer
        self._parameter = parameters[weight.name or ""]
        self.weight = self._parameter.detach().clone()
        for parameter in parameters.values():  # a bias makes no error of its own
            if parameter is not self._parameter:
                parameter.data.zero_()

    def output(self, x: Tensor) -> Tensor:
        """The layer's float output without its bias."""
        return self._run(x, self.weight)

    def error(self, reference: Tensor, x: Tensor, factors: Tensor) -> float:
        """Squared error over squared output, of the layer on integers.

        Args:
            reference: What :meth:`output` gave.
            x: The input on its grid, divided by the factors of its channels.
            factors: Of the weights, broadcastable to them.
        """
        weight = (self.weight * factors).float()
        grid = on_weight_grid(weight, self._axis, self._integers, per_channel=self._per_channel)
        found = self._run(x, grid)
        power = float(reference.double().square().sum())
        return float((found - reference).double().square().sum()) / power if power > 0 else 0.0

    def _run(self, x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            self._parameter.data = weight.contiguous()
            found: Tensor = self._graph({self._input: x})[self._output]
            return found
