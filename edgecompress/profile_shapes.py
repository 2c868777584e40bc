"""Lists of input shapes, as people ask for them: numbers for dimensions, or whole shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgecompress.errors import DataError, nearest
from edgecompress.model import Model

__all__ = ["shape_list"]

Shapes = dict[str, tuple[int, ...]]


def shape_list(
    model: Model,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    dims: Mapping[str, Sequence[int]] | None = None,
) -> list[Shapes]:
    """Shapes of the inputs, one entry for each profile.

    Lists of the same length go along with one another; lists of one entry hold for all.

    Args:
        model: The model.
        batch: A symbolic first dimension that nothing else says.
        shapes: Whole shapes, by input.
        dims: Numbers, by symbolic dimension, e.g. ``{"seq": [16, 64, 128]}``.

    Raises:
        DataError: There is no such dimension, or lists differ in length.
    """
    shapes, dims = shapes or {}, dims or {}
    inputs = {spec.name: spec.shape or () for spec in model.signature.inputs}
    symbols = {dim for shape in inputs.values() for dim in shape if isinstance(dim, str)}
    for name in dims:
        if name not in symbols:
            hint = nearest(name, symbols) if symbols else "all dimensions are numbers"
            raise DataError(f"the model has no dimension {name!r}; {hint}", where="--dim")
    lengths = {len(each) for each in (*shapes.values(), *dims.values())} - {1}
    if len(lengths) > 1:
        raise DataError(
            f"lists of {' and '.join(map(str, sorted(lengths)))} entries do not go together",
            where="--shape and --dim",
            cure="give lists of the same length, or of one entry",
        )
    if not shapes and not dims:
        return [{}]
    return [
        {
            **_filled(inputs, batch, {n: v[i % len(v)] for n, v in dims.items()}),
            **{name: each[i % len(each)] for name, each in shapes.items()},
        }
        for i in range(max(lengths, default=1))
    ]


def _filled(
    inputs: Mapping[str, Sequence[int | str | None]], batch: int, dims: Mapping[str, int]
) -> Shapes:
    """Shapes of the inputs that have a dimension of ``dims`` and no other one without a number."""
    filled: Shapes = {}
    for name, shape in inputs.items():
        if not any(dim in dims for dim in shape):
            continue
        numbers = [
            dim if isinstance(dim, int) else dims.get(str(dim), batch if place == 0 else None)
            for place, dim in enumerate(shape)
        ]
        whole = tuple(number for number in numbers if number is not None)
        if len(whole) == len(numbers):
            filled[name] = whole
    return filled
