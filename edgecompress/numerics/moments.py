"""Second moments of a layer's inputs, and the columns of a convolution that they are taken of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SecondMoments", "chosen_places", "patches", "products"]


def patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    places: Tensor | None = None,
) -> Tensor:
    """What a convolution multiplies its weights by, place by place (im2col).

    Args:
        x: [n, c, ...], padded already.
        kernel: Sizes along the spatial axes.
        stride: Steps along them.
        dilation: Distances between the taps.
        groups: Groups of channels.
        places: Indices into the flattened ``[n, ...]`` of the outputs; None takes all of them.

    Returns:
        [groups, places, c / groups * taps]; a weight ``[out, c / groups, ...]`` has its columns in
        the same order.
    """
    lengths = x.shape[2:]
    taps = torch.zeros((), dtype=torch.int64, device=x.device)
    corners = torch.arange(len(x), device=x.device)
    for i, length in enumerate(lengths):
        reach = (kernel[i] - 1) * dilation[i] + 1
        along = torch.arange(0, length - reach + 1, stride[i], device=x.device)
        corners = (corners[..., None] * length) + along
        taps = taps[..., None] * length + torch.arange(kernel[i], device=x.device) * dilation[i]
    corners = corners.flatten() if places is None else corners.flatten()[places]
    # Channels last: what lies under a tap is one stretch of memory.
    flat = x.movedim(1, -1).reshape(-1, x.shape[1])
    found = flat[(corners[:, None] + taps.flatten()).flatten()]
    found = found.reshape(len(corners), -1, groups, x.shape[1] // groups)
    return found.permute(2, 0, 3, 1).reshape(groups, len(corners), -1)


def chosen_places(
    count: int, most: int, generator: torch.Generator, real: Tensor | None = None
) -> Tensor | None:
    """Places to look at: at most ``most`` of those that are no padding, drawn without repeats.

    Args:
        count: How many places there are.
        most: How many are wanted at most.
        generator: Of the CPU.
        real: bool [count]: which are no padding; None where all are.

    Returns:
        int64, ascending; None for all places.
    """
    if real is None and count <= most:
        return None
    there = torch.arange(count) if real is None else real.cpu().nonzero().flatten()
    if len(there) <= most:
        return there
    drawn = torch.randperm(len(there), generator=generator)[:most]
    return there[drawn.sort().values]


def products(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``x x^T`` and of ``x`` over places, in the precision of the columns.

    Args:
        columns: [groups, places, n].

    Returns:
        [groups, n, n] and [groups, n].
    """
    return columns.transpose(1, 2) @ columns, columns.new_ones(columns.shape[1]) @ columns


class SecondMoments:
    """Sums of ``x x^T`` and ``x`` over batches, in float64.

    The former is the Hessian of a layer's squared output error. The same bits for the same batches
    in the same order.

    Attributes:
        places: Over how many places they are.
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor] | None = None
        self.places = 0

    def add(self, found: tuple[Tensor, Tensor], places: int) -> None:
        """Take in the :func:`products` of a batch, and over how many places they are."""
        squares, values = (summand.double() for summand in found)
        if self._sums is not None:
            squares, values = squares.add_(self._sums[0]), values.add_(self._sums[1])
        self._sums = squares, values
        self.places += places

    def total(self, *, centred: bool = False) -> Tensor:
        """float64 [groups, n, n]; ``centred`` about the mean over all places.

        Raises:
            ValueError: There is no batch yet.
        """
        if self._sums is None:
            raise ValueError("there is no batch to sum up")
        squares, values = self._sums
        return squares - values[..., None] * self.mean()[..., None, :] if centred else squares

    def mean(self) -> Tensor:
        """float64 [groups, n].

        Raises:
            ValueError: There is no batch yet.
        """
        if self._sums is None:
            raise ValueError("there is no batch to sum up")
        return self._sums[1] / max(self.places, 1)
