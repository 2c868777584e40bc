"""What splits of a layer cost, on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgecompress.factorization.parts import Layer, Pair, SplitKind

__all__ = ["places_of", "split_cost"]


def split_cost(layer: Layer, kind: SplitKind, ranks: Pair, *, first: int = 0) -> tuple[int, float]:
    """What a layer costs when it is split.

    Args:
        layer: The layer; a convolution for ``spatial`` and ``tucker``.
        kind: Of the split.
        ranks: Of each group; for ``tucker`` of the input and of the output. Where the latter is
            that of all outputs, the last of the three convolutions is left out.
        first: For ``spatial``: the axis along which the first convolution moves.

    Returns:
        Parameters of all weights, and multiply-accumulates for one row.
    """
    parts = list(_parts(layer, kind, ranks, first))
    return sum(size for size, _ in parts), sum(size * places for size, places in parts)


def places_of(layer: Layer) -> float:
    """How many places of its output a layer's weight is applied at, for one row."""
    if layer.lengths[1]:
        return math.prod(layer.lengths[1])
    return layer.macs / layer.parameters or 1.0


def _parts(layer: Layer, kind: SplitKind, ranks: Pair, first: int) -> Iterator[tuple[int, float]]:
    """Parameters of each part of a split, and the places where it is applied."""
    groups, rows, kernel = layer.groups, layer.rows, layer.kernel
    places, steps = places_of(layer), _steps(layer)
    depth = layer.columns // math.prod(kernel)
    if kind in ("matrix", "output"):
        yield groups * ranks[0] * layer.columns, places
        yield groups * rows * ranks[0], places
    elif kind == "spatial":
        last = 1 - first
        yield groups * ranks[0] * depth * kernel[first], places * steps[last]
        yield groups * rows * ranks[0] * kernel[last], places
    else:
        inputs, outputs = ranks
        yield groups * inputs * depth, places * math.prod(steps)
        yield groups * outputs * inputs * math.prod(kernel), places
        if outputs < rows:
            yield groups * rows * outputs, places


def _steps(layer: Layer) -> list[float]:
    """How much longer the input is than the output, for each spatial axis."""
    if layer.lengths[0] and layer.lengths[1]:
        return [before / after for before, after in zip(*layer.lengths, strict=True)]
    strides = dict(layer.form.attributes or ()).get("strides")
    return [float(step) for step in strides or (1,) * len(layer.kernel)]
