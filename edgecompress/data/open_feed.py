"""From a column of rows and a model input to the feed that fits both."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.array_feed import ArrayFeed, RaggedFeed
from edgecompress.data.feeds import Feed
from edgecompress.data.image_feed import ImageFeed
from edgecompress.data.images import ImageFiles
from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.data.ragged import Ragged
from edgecompress.data.text_feed import TokenFeed
from edgecompress.data.tokens import TokenArray
from edgecompress.errors import DataError
from edgecompress.model import TensorSpec

__all__ = ["Opened", "open_feed", "takes_pixels"]

Array = npt.NDArray[Any]
Opened = Array | Ragged | ImageFiles | TokenArray

_PREPROCESS = (
    "add a [data.preprocess] table with the scale, mean and std that the model was trained with"
)


def open_feed(
    spec: TensorSpec, column: Opened, preprocess: PreprocessSpec | None, where: str
) -> Feed:
    """Check rank and dtype of a column against the model's input.

    Raises:
        DataError: They do not fit, or images are to feed a float input without preprocessing.
    """
    where = f"{where}: input {spec.name!r}"
    dtype = _model_dtype(spec, where)
    if isinstance(column, TokenArray):
        if preprocess is not None:
            raise DataError("preprocessing is for images, this input is fed by text", where=where)
        return TokenFeed(spec, dtype, where, column.tokens, column.array)
    if isinstance(column, ImageFiles) and preprocess is None:
        if dtype.kind not in "iu":
            what = f"pixels from 0 to 255 would feed {spec} as they are"
            raise DataError(what, where=where, cure=_PREPROCESS)
        preprocess = PreprocessSpec()
    if preprocess is not None:
        return ImageFeed(spec, dtype, where, _images(spec, column, preprocess, where), preprocess)
    assert not isinstance(column, ImageFiles)
    return _open_array(spec, dtype, column, where)


def _open_array(spec: TensorSpec, dtype: np.dtype[Any], column: Array | Ragged, where: str) -> Feed:
    if not _fits(column.dtype, dtype):
        cure = _PREPROCESS if column.dtype == np.uint8 else f"save the array as {dtype}"
        raise DataError(f"expected {spec}, got {column.dtype}", where=where, cure=cure)
    rank = column.ndim if spec.shape is None else len(spec.shape)
    if column.ndim not in (rank, rank + 1):
        shape = list(column.shape) if isinstance(column, np.ndarray) else f"{column.ndim} axes"
        raise DataError(
            f"expected {spec} with the rows along the first axis, got an array of shape {shape}",
            where=where,
            cure="an array of one axis more than the input holds one whole feed per row",
        )
    if isinstance(column, Ragged):
        return RaggedFeed(spec, dtype, where, column.ndim == rank + 1, column)
    return ArrayFeed(spec, dtype, where, column.ndim == rank + 1, column)


def takes_pixels(spec: TensorSpec, column: Opened) -> bool:
    """Whether the model's own preprocessing suits: pixels are to feed four axes of floats."""
    pixels = isinstance(column, ImageFiles) or (
        isinstance(column, np.ndarray) and column.dtype == np.uint8 and column.ndim in (3, 4)
    )
    floats = np.dtype(spec.dtype).kind not in "iu" if spec.dtype in np.sctypeDict else True
    return pixels and floats and (spec.shape is None or len(spec.shape) == 4)


def _model_dtype(spec: TensorSpec, where: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError as error:
        raise DataError(f"an input of type {spec.dtype} cannot be fed", where=where) from error
    if dtype.kind not in "fiubV":
        raise DataError(f"an input of type {spec.dtype} cannot be fed", where=where)
    return dtype


def _fits(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Same kind of number; the width may differ, since values are checked against it."""
    kind = _number(given)
    return given == wanted or (kind is not None and kind == _number(wanted))


def _number(dtype: np.dtype[Any]) -> str | None:
    if dtype.kind == "V":  # bfloat16 and its like, but also records and raw bytes
        return "float" if "float" in dtype.name else None
    return {"i": "int", "u": "int", "f": "float"}.get(dtype.kind)


def _images(
    spec: TensorSpec, column: Array | Ragged | ImageFiles, preprocess: PreprocessSpec, where: str
) -> Array | ImageFiles:
    if spec.shape is not None and len(spec.shape) != 4:
        raise DataError(
            f"preprocessing is for images of 4 axes, the model has {spec}",
            where=where,
            cure="name the image input: [data.preprocess.INPUT]",
        )
    if isinstance(column, ImageFiles):
        return column
    if isinstance(column, Ragged):
        raise DataError(
            "images of different sizes are read from files only",
            where=where,
            cure="name a folder of images, or yield arrays of one size",
        )
    if column.ndim not in (3, 4) or column.dtype.kind not in "fiu":
        raise DataError(
            "expected images [rows, height, width, channels] to preprocess, got "
            f"{column.dtype}{list(column.shape)}",
            where=where,
        )
    if column.ndim == 3:
        return column[:, None]
    layout = preprocess.layout or ("nhwc" if column.dtype == np.uint8 else "nchw")
    return np.moveaxis(column, 3, 1) if layout == "nhwc" else column
