"""How the ranges of quantized activations fit the values that meet them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.comparison.side_by_side import comparable
from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.model import Model

__all__ = ["RangeUse", "Ranges"]

_LIMITS = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
}
# A range may leave out single outliers; of eight bits two that carry nothing are too many.
_CLIPPED_SHARE, _UNUSED_SHARE = 1e-3, 0.75
_ROUNDING = 1 / 12  # power of the rounding error, in steps


@dataclass
class RangeUse:
    """A QuantizeLinear of an activation, and the values that it met.

    Attributes:
        value: Name of the activation.
        low: Lowest number of the range; of the lowest channel where it has several.
        high: Highest number.
        count: Values that it met.
        clipped_low: How many of them lie below the range by more than half a step. Where only the
            compressed graph's do, and the original's do not, nothing is lost: such a quantizer does
            a ReLU's work.
        clipped_high: The same above the range.
        excess: Sum of squares of how far those lie outside, in steps.
        first: Lowest integer that occurred, clipped to the range; inf where none did.
        last: Highest one.
        steps: Integers of the range, less one.
    """

    value: str
    low: float
    high: float
    steps: int
    count: int = 0
    clipped_low: int = 0
    clipped_high: int = 0
    excess: float = 0.0
    first: float = field(default=math.inf)
    last: float = field(default=-math.inf)

    @property
    def unused(self) -> float | None:
        """Share of the range that no value came to; None where it met none."""
        if self.count == 0:
            return None
        return 1 - (self.last - self.first) / self.steps

    @property
    def fault(self) -> Literal["no width", "clips", "too wide"] | None:
        """What is wrong with the range: it clips if that costs more than rounding does."""
        if not self.high > self.low:
            return "no width"
        clipped = self.clipped_low + self.clipped_high
        if clipped > _CLIPPED_SHARE * self.count and self.excess > _ROUNDING * self.count:
            return "clips"
        return "too wide" if self.unused is not None and self.unused > _UNUSED_SHARE else None


@dataclass(frozen=True)
class _Grid:
    """Scale and zero point, shaped to meet the activation."""

    scale: Tensor
    zero_point: Tensor
    lowest: int
    highest: int
    use: RangeUse


class Ranges:
    """Counts what lies outside of each range, in the compressed graph's own activations."""

    def __init__(self, compressed: Model) -> None:
        self._grids: dict[str, list[_Grid]] = {}
        for node in compressed.ir.graph:
            grid = _grid(node) if node.op_type == "QuantizeLinear" else None
            if grid is not None:
                self._grids.setdefault(grid.use.value, []).append(grid)

    @property
    def ours(self) -> Collection[str]:
        """The same in the original."""
        return self._grids

    @property
    def theirs(self) -> Collection[str]:
        """What is quantized."""
        return self._grids

    @property
    def found(self) -> list[RangeUse]:
        """Ranges that met values, in graph order."""
        return [grid.use for grids in self._grids.values() for grid in grids if grid.use.count]

    def see(self, batch: Batch, name: str, values: Tensor, originals: Mapping[str, Tensor]) -> None:
        """Count the values of one batch."""
        mask = None
        if batch.mask is not None:
            mask = position_mask(tuple(values.shape), torch.from_numpy(batch.mask))
        reference = originals.get(name)
        if reference is not None and not comparable(reference, values):
            reference = None
        for grid in self._grids[name]:
            _count(grid, _levels(grid, values, mask), reference, mask)

    def leave(self) -> None:
        """Nothing is held."""


def _levels(grid: _Grid, values: Tensor, mask: Tensor | None) -> Tensor:
    """Where real values lie on the grid, neither rounded nor clipped."""
    level = values.float() / grid.scale.to(values.device)
    level += grid.zero_point.to(values.device)
    if mask is not None:
        level = level[mask.to(values.device).expand(values.shape)]
    return level.nan_to_num_(nan=grid.lowest, posinf=math.inf, neginf=-math.inf)  # 0 / 0


def _count(grid: _Grid, level: Tensor, reference: Tensor | None, mask: Tensor | None) -> None:
    use = grid.use
    if level.numel() == 0:
        return
    use.count += level.numel()
    low, high = (float(end) for end in level.aminmax())
    use.first = min(use.first, round(max(min(low, grid.highest), grid.lowest)))
    use.last = max(use.last, round(max(min(high, grid.highest), grid.lowest)))
    if low >= grid.lowest - 0.5 and high <= grid.highest + 0.5:
        return
    meant = level if reference is None else _levels(grid, reference, mask)
    below = (level < grid.lowest - 0.5) & (meant < grid.lowest - 0.5)
    above = (level > grid.highest + 0.5) & (meant > grid.highest + 0.5)
    use.clipped_low += int(below.sum())
    use.clipped_high += int(above.sum())
    use.excess += float((grid.lowest - level[below]).double().square().sum())
    use.excess += float((level[above] - grid.highest).double().square().sum())


def _grid(node: ir.Node) -> _Grid | None:
    """Of a QuantizeLinear of an activation; None where it is a weight's, or not on integers."""
    x, scale, *rest = node.inputs
    if x is None or scale is None or x.const_value is not None or _is_constant(x):
        return None
    scales = _numbers(scale)
    zero = rest[0] if rest else None
    zeros = np.zeros(1) if zero is None else _numbers(zero)
    kind = ir.DataType.UINT8 if zero is None else _type(zero)
    if scales is None or zeros is None or kind not in _LIMITS or "block_size" in node.attributes:
        return None
    lowest, highest = _LIMITS[kind]
    use = RangeUse(
        value=x.name or "",
        low=float((scales * (lowest - zeros)).min()),
        high=float((scales * (highest - zeros)).max()),
        steps=highest - lowest,
    )
    form = _shape(node, x, scales.size)
    if form is None:
        return None
    offsets = torch.from_numpy(zeros).float().reshape(form if zeros.size > 1 else ())
    return _Grid(torch.from_numpy(scales).float().reshape(form), offsets, lowest, highest, use)


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def _numbers(value: ir.Value) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.atleast_1d(tensor.numpy().astype(np.float64))


def _type(value: ir.Value) -> ir.DataType | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.dtype


def _shape(node: ir.Node, x: ir.Value, channels: int) -> tuple[int, ...] | None:
    """How per-channel scales are laid along their axis; None where the rank is unknown."""
    if channels == 1:
        return ()
    if x.shape is None:
        return None
    rank = len(x.shape)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return tuple(channels if place == axis % rank else 1 for place in range(rank))
