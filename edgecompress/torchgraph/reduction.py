"""Reductions over axes, the axes being an attribute or, from opset 13 or 18 on, an input."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import integers

Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = functools.reduce(lambda n, axis: n * x.shape[axis], axes, 1)
    return _sum(x, axes, keep).div(count, rounding_mode="trunc")


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _is_empty(x: Tensor, axes: list[int]) -> bool:
    return any(x.shape[axis] == 0 for axis in axes)


def _over_nothing(x: Tensor, axes: list[int], keep: bool, value: float) -> Tensor:
    """The neutral element where torch refuses to reduce no elements at all."""
    return torch.full_like(x.sum(axes, keepdim=keep), value, dtype=x.dtype)


def _extreme(x: Tensor, axes: list[int], keep: bool, *, largest: bool) -> Tensor:
    if _is_empty(x, axes):
        if x.is_floating_point():
            limit = float("inf")
            return _over_nothing(x, axes, keep, -limit if largest else limit)
        if x.dtype == torch.bool:
            return _over_nothing(x, axes, keep, not largest)
        info = torch.iinfo(x.dtype)
        return _over_nothing(x, axes, keep, info.min if largest else info.max)
    return x.amax(axes, keepdim=keep) if largest else x.amin(axes, keepdim=keep)


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if _is_empty(x, axes):
        return _over_nothing(x, axes, keep, -float("inf"))
    return torch.logsumexp(x, axes, keepdim=keep)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt().to(x.dtype),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": functools.partial(_extreme, largest=True),
    "ReduceMean": _mean,
    "ReduceMin": functools.partial(_extreme, largest=False),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x.square(), axes, keep),
}


def _with_attribute(reduce: Reduce) -> Callable[..., Tensor]:
    def run(x: Tensor, *, axes: tuple[int, ...] | None = None, keepdims: int = 1) -> Tensor:
        return reduce(x, list(range(x.ndim)) if axes is None else list(axes), bool(keepdims))

    return run


def _without_axes(name: str, reduce: Reduce, x: Tensor) -> Tensor:
    """``noop_with_empty_axes``: each element is reduced alone."""
    if name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"):
        return x
    return reduce(x.unsqueeze(-1), [-1], False)


def _with_input(name: str, reduce: Reduce) -> Callable[..., Tensor]:
    def run(
        x: Tensor,
        axes: Tensor | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        over = [] if axes is None else integers(axes)
        if not over and noop_with_empty_axes:
            return _without_axes(name, reduce, x)
        return reduce(x, over or list(range(x.ndim)), bool(keepdims))

    return run


for _name, _reduce in _REDUCTIONS.items():
    op(_name, since=1)(_with_attribute(_reduce))
    op(_name, since=13 if _name == "ReduceSum" else 18, host=(1,))(_with_input(_name, _reduce))


def _arg_extreme(largest: bool) -> Callable[..., Tensor]:
    def run(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        ordered = x.flip(axis) if select_last_index else x
        find = torch.argmax if largest else torch.argmin
        index = find(ordered, dim=axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - index if select_last_index else index

    return run


op("ArgMax", since=1)(_arg_extreme(True))
op("ArgMin", since=1)(_arg_extreme(False))


def _cumulative(function: Callable[..., Tensor], neutral: int) -> Callable[..., Tensor]:
    def run(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
        along = integers(axis)[0]
        ordered = x.flip(along) if reverse else x
        if exclusive:
            first = torch.full_like(ordered.narrow(along, 0, 1), neutral)
            rest = ordered.narrow(along, 0, x.shape[along] - 1)
            ordered = torch.cat([first, rest], along)
        result = function(ordered, along, dtype=x.dtype)
        return result.flip(along) if reverse else result

    return run


op("CumSum", since=11, host=(1,))(_cumulative(torch.cumsum, 0))
op("CumProd", since=26, host=(1,))(_cumulative(torch.cumprod, 1))
