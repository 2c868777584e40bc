"""Rows that a Python function of the user makes, at once or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.ragged import Ragged, RowSpool
from edgecompress.errors import DataError, EdgeCompressError
from edgecompress.references import user_line

__all__ = ["IGNORED_LABEL", "call_for_rows"]

Array = npt.NDArray[Any]
Rows = tuple[dict[str, Array | Ragged], Array | None]

IGNORED_LABEL = -100
"""The label of a position that no metric counts, as torch's and transformers' losses have it."""


def call_for_rows(
    function: Callable[..., Any], per_split: bool, name: str, split: str
) -> tuple[dict[str, Array | Ragged], Array | None]:
    """Arrays by name and labels, from what the function returns or yields.

    Batches that it yields go to a temporary file one by one; batches may differ in their shapes.

    Args:
        function: The user's.
        per_split: It takes the name of the split.
        name: Its reference, for messages.
        split: Which rows are wanted.

    Raises:
        DataError: It failed, or returned something else.
    """
    try:
        returned = function(split=split) if per_split else function()
        if isinstance(returned, Iterator):
            return _spooled(returned, name)
        arrays, labels = _pair(returned, name)
        return (
            {key: np.asarray(value) for key, value in arrays.items()},
            None if labels is None else np.asarray(labels),
        )
    except EdgeCompressError:
        raise
    except Exception as error:
        raise DataError(
            f"failed: {type(error).__name__}: {error}", where=f"{name} ({user_line(error)})"
        ) from error


def _pair(returned: Any, name: str) -> tuple[Mapping[str, Any], Any]:
    pair = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(pair[0], Mapping) or not pair[0]:
        raise DataError(
            "expected a dictionary of arrays, (dictionary, labels), or an iterator of these, got "
            + ("an empty one" if isinstance(pair[0], Mapping) else type(returned).__name__),
            where=name,
            cure="return {'name of the model input': array with rows along the first axis}",
        )
    return pair[0], pair[1]


def _spooled(batches: Iterator[Any], name: str) -> Rows:
    spools: dict[str, RowSpool] = {}
    labels: list[Array] = []
    for number, batch in enumerate(batches):
        arrays, given = _pair(batch, name)
        found = {key: np.asarray(value) for key, value in arrays.items()}
        for key, array in found.items():
            if array.ndim == 0 or array.dtype.hasobject:
                what = "a single value" if array.ndim == 0 else "Python objects"
                raise DataError(f"array {key!r}: expected rows, got {what}", where=name)
        if not spools:
            spools = {key: RowSpool(array.dtype, array.ndim) for key, array in found.items()}
        if found.keys() != spools.keys():
            raise DataError(
                f"batch {number} has the arrays {', '.join(found)}, "
                f"the first one {', '.join(spools)}",
                where=name,
            )
        for key, array in found.items():
            try:
                spools[key].append(array)
            except ValueError as error:
                raise DataError(f"array {key!r}, batch {number}: {error}", where=name) from error
        if given is not None:
            labels.append(np.asarray(given))
    if not spools:
        _pair({}, name)
    return {key: spool.column() for key, spool in spools.items()}, _joined(labels)


def _joined(labels: list[Array]) -> Array | None:
    """One array; labels of sequences of different lengths are filled up with ``IGNORED_LABEL``."""
    if not labels:
        return None
    if all(part.ndim == 2 and part.dtype.kind in "iu" for part in labels):
        width = max(part.shape[1] for part in labels)
        padding = [((0, 0), (0, width - part.shape[1])) for part in labels]
        labels = [
            np.pad(part.astype(np.int64), pad, constant_values=IGNORED_LABEL) if pad[1][1] else part
            for part, pad in zip(labels, padding, strict=True)
        ]
    return np.concatenate(labels)
