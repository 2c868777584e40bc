"""Inputs for a model that is only to be timed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgecompress.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.model import Signature, TensorSpec

__all__ = ["random_feeds"]


def random_feeds(
    signature: Signature, dims: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the right type and shape for a model: good enough for times, not for accuracy.

    Floats are uniform in [0, 1). Integers and truth values are 1, which is a valid token, mask,
    index and position in nearly every model.

    Args:
        signature: The model's inputs.
        dims: Numbers for symbolic dimensions; an unnamed leading one is the batch and 1.
        seed: Seed of the floats.

    Raises:
        DataError: A dimension or type is unknown, or the shape is too large.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for spec in signature.inputs:
        shape = _shape(spec, dims or {})
        kind = np.dtype(spec.dtype) if spec.dtype in np.sctypeDict else None
        if kind is None or kind.kind not in "fiub":
            raise DataError(
                f"cannot make up values of type {spec.dtype}",
                where=f"input {spec}",
                cure="give data",
            )
        try:
            values = rng.random(shape) if kind.kind == "f" else np.ones(shape)
            feeds[spec.name] = values.astype(kind)
        except (ValueError, MemoryError) as error:  # negative, or more than there is memory
            raise DataError(
                f"inputs of this shape cannot be made: {error}",
                where=f"input {spec}",
                cure="check its dimensions",
            ) from error
    return feeds


def _shape(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    cure = "give the numbers of its dimensions"
    if spec.shape is None:
        raise DataError("its shape is unknown", where=f"input {spec}", cure=cure)
    shape = []
    for place, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif dim in dims:
            shape.append(dims[str(dim)])
        elif place == 0:
            shape.append(1)
        else:
            raise DataError(
                f"dimension {dim or '?'!r} has no number", where=f"input {spec}", cure=cure
            )
    return tuple(shape)
