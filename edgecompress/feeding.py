"""Inputs to run a model with: real rows where there are any, else random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import DataError, nearest
from edgecompress.measure import random_feeds
from edgecompress.model import Model, Signature

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["inputs_for", "with_shapes"]


def inputs_for(
    model: Model,
    data: CalibrationSet | None,
    batch: int,
    shapes: Mapping[str, tuple[int, ...]],
) -> Mapping[str, npt.NDArray[np.generic]]:
    """One batch of inputs.

    Args:
        model: The model to feed.
        data: Rows to take it from, unless ``shapes`` say otherwise.
        batch: What a symbolic first dimension counts.
        shapes: Whole shapes of single inputs, by name.

    Raises:
        DataError: A shape does not fit, its input does not exist, or a dimension is left open.
    """
    if data is not None and not shapes:
        return data.sample(batch)
    signature = with_shapes(model.signature, shapes)
    dims = {
        dim: batch
        for spec in signature.inputs
        for dim in (spec.shape or ())[:1]
        if isinstance(dim, str)
    }
    try:
        return random_feeds(signature, dims)
    except DataError as error:
        cure = "give its whole shape, such as --shape x=1x3x224x224, or numbers, as --dim seq=64"
        raise DataError(error.what, where=error.where, cure=cure) from error


def with_shapes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    """The signature with numbers for the dimensions of some inputs.

    Raises:
        DataError: There is no such input, or its rank or a fixed dimension differs.
    """
    known = {spec.name: spec for spec in signature.inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise DataError(f"the model has no input {name!r}; {nearest(name, known)}")
        spec = known[name]
        fits = spec.shape is None or (
            len(spec.shape) == len(shape)
            and all(
                not isinstance(d, int) or d == n for d, n in zip(spec.shape, shape, strict=True)
            )
        )
        if not fits:
            raise DataError(
                f"expected {spec}, got the shape {list(shape)}", where=f"input {name!r}"
            )
        known[name] = replace(spec, shape=shape)
    return Signature(tuple(known.values()), signature.outputs)
