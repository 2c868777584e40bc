"""What the image preprocessor of a transformers folder does, in this package's terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.errors import MissingDependencyError, SourceError
from edgecompress.sources.translate import reason

__all__ = ["read_preprocess"]

Pair = tuple[int, int]

_RESAMPLE = {0: "nearest", 1: "lanczos", 3: "bicubic", 4: "box", 5: "hamming"}
_BILINEAR = 2


def read_preprocess(
    transformers: Any, folder: Path, origin: str
) -> tuple[PreprocessSpec | None, list[str]]:
    """Preprocessing that ``preprocessor_config.json`` asks for, and how ours differs from it.

    Transformers itself reads the file, since most of its values are defaults of the class.

    Raises:
        SourceError: Transformers cannot read it.
        MissingDependencyError: Pillow is not installed.
    """
    if not (folder / "preprocessor_config.json").is_file():
        return None, ["the folder has no preprocessor_config.json: preprocessing is unknown"]
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except ImportError:
        raise MissingDependencyError("pillow", "reading an image preprocessor", "images") from None
    except Exception as error:
        raise SourceError(
            f"transformers cannot read its preprocessor_config.json: {reason(error)}",
            where=origin,
            cure="take the file that save_pretrained() of transformers wrote",
        ) from error
    try:
        sizes = _sizes(processor)
    except ValueError as error:
        return None, [f"the folder's preprocessor {error}, which this package does not do"]
    return PreprocessSpec(**sizes, **_numbers(processor)), _differences(processor)


def _sizes(processor: Any) -> dict[str, Any]:
    if getattr(processor, "do_pad", False) or getattr(processor, "do_thumbnail", False):
        raise ValueError("pads images")
    crop = None
    if getattr(processor, "do_center_crop", False):
        crop = _pair(processor.crop_size)
    resize: Pair | int | None = None
    if getattr(processor, "do_resize", False):
        side = _edge(processor.size, "shortest_edge")
        share = getattr(processor, "crop_pct", None)
        if side is None:
            resize = _pair(processor.size)
        elif share is None:
            resize = side
        elif side < 384:  # ConvNeXt's recipe: below 384 a crop, from there on none
            resize, crop = int(side / share), (side, side)
        else:
            resize = (side, side)
    return {"resize": resize, "antialias": resize is not None, "center_crop": crop}


def _numbers(processor: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    if getattr(processor, "do_flip_channel_order", False):
        numbers["channels"] = "bgr"
    if getattr(processor, "do_rescale", False):
        numbers["scale"] = float(processor.rescale_factor)
    if getattr(processor, "do_normalize", False):
        numbers["mean"] = _per_channel(processor.image_mean)
        numbers["std"] = _per_channel(processor.image_std)
    return numbers


def _differences(processor: Any) -> list[str]:
    resample = getattr(processor, "resample", _BILINEAR)
    if not getattr(processor, "do_resize", False) or resample is None or resample == _BILINEAR:
        return []
    name = _RESAMPLE.get(int(resample), str(resample))
    return [f"the folder's preprocessor resizes by {name} interpolation, this package by bilinear"]


def _edge(size: Any, name: str) -> int | None:
    if isinstance(size, Mapping):
        return size.get(name)
    found: int | None = getattr(size, name, None)
    return found


def _pair(size: Any) -> Pair:
    if isinstance(size, int):
        return size, size
    height, width = _edge(size, "height"), _edge(size, "width")
    if height is None or width is None:
        raise ValueError("resizes to no fixed height and width")
    return height, width


def _per_channel(values: Any) -> float | tuple[float, ...]:
    return float(values) if isinstance(values, (int, float)) else tuple(map(float, values))
