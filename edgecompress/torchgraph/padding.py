"""Padding in all of ONNX's modes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, integers, scalar, unsupported


def _source(place: int, length: int, mode: str) -> int:
    """Index in a line of ``length`` elements that stands at ``place`` of the endless line."""
    if mode == "edge":
        return min(max(place, 0), length - 1)
    if mode == "wrap":
        return place % length
    period = max(2 * (length - 1), 1)
    place %= period
    return min(place, period - place) if length > 1 else 0


def _pairs(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Amounts in torch's order: last axis first."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


def _pad(x: Tensor, before: Sequence[int], after: Sequence[int], mode: str, value: float) -> Tensor:
    if mode == "constant":
        return functional.pad(x, _pairs(before, after), value=value)
    if mode not in ("reflect", "edge", "wrap"):
        raise unsupported(f"mode={mode!r}")
    # A negative amount removes elements before the others are repeated.
    x = functional.pad(x, [min(n, 0) for n in _pairs(before, after)])
    for axis, (first, last) in enumerate(zip(before, after, strict=True)):
        if first <= 0 and last <= 0:
            continue
        length = x.shape[axis]
        places = range(-max(first, 0), length + max(last, 0))
        chosen = [_source(place, length, mode) for place in places]
        x = x.index_select(axis, torch.tensor(chosen, device=x.device))
    return x


@op("Pad", since=2)
def pad_attributes(
    x: Tensor, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """Pad before opset 11: amounts and value are attributes."""
    return _pad(x, pads[: x.ndim], pads[x.ndim :], mode, value)


@op("Pad", since=11, host=(1, 2, 3))
def pad(
    x: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Amounts before all axes, then behind all axes; for the named axes only if there are any."""
    amounts = integers(pads)
    value = 0 if constant_value is None or not constant_value.numel() else scalar(constant_value)
    if axes is None:
        return _pad(x, amounts[: x.ndim], amounts[x.ndim :], mode, value)
    named = [axis_of(axis, x.ndim) for axis in integers(axes)]
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(named):
        before[axis], after[axis] = amounts[i], amounts[i + len(named)]
    return _pad(x, before, after, mode, value)
