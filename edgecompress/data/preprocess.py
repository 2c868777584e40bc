"""From the pixels of an image to the numbers that a model's image input expects."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, field_validator

from edgecompress.errors import DataError

__all__ = ["PreprocessSpec"]

Size = PositiveInt | tuple[PositiveInt, PositiveInt]
PerChannel = FiniteFloat | Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]


class PreprocessSpec(BaseModel):
    """Preprocessing of one image input, in the order of the fields from ``channels`` on.

    Attributes:
        layout: Order of the axes of the data. Default: ``nhwc`` for uint8 arrays and image files,
            ``nchw`` for the rest. The model's own layout is read from its signature.
        channels: The model's channel order; data are RGB.
        resize: ``h, w``, or the length of the shorter side in pixels; bilinear with half-pixel
            centres.
        antialias: Average over the source pixels when shrinking, as Pillow does.
        center_crop: ``h, w``, or the side of a square in pixels, cut from the middle.
        scale: Pixels are multiplied by it; ``0.00392156862745098`` is 1/255.
        offset: Added after the multiplication.
        mean: Subtracted after that: one number, or one per channel in the model's order.
        std: Divided by, last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Literal["nhwc", "nchw"] | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    resize: Size | None = None
    antialias: bool = False
    center_crop: Size | None = None
    scale: FiniteFloat = 1.0
    offset: FiniteFloat = 0.0
    mean: PerChannel = 0.0
    std: PerChannel = 1.0

    @field_validator("std")
    @classmethod
    def _no_zero(cls, value: PerChannel) -> PerChannel:
        if np.any(np.asarray(value) == 0):
            raise ValueError("std must not be 0: pixels are divided by it")
        return value

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing and cropping.

        Raises:
            DataError: The crop is larger than the image.
        """
        height, width = self._resized(height, width)
        if self.center_crop is None:
            return height, width
        crop = _pair(self.center_crop)
        if crop[0] > height or crop[1] > width:
            raise DataError(
                f"center_crop {crop[0]}x{crop[1]} is larger than the image of {height}x{width}",
                cure="resize to at least the size of the crop",
            )
        return crop

    def check_channels(self, count: int) -> None:
        """Refuse ``mean``, ``std`` or ``channels`` that do not fit images of ``count`` channels.

        Raises:
            DataError: A list is longer or shorter than ``count``, or BGR is asked of other than
                three channels.
        """
        for name in ("mean", "std"):
            given = np.size(getattr(self, name))
            if given not in (1, count):
                raise DataError(
                    f"preprocess.{name}: expected 1 or {count} numbers for images of {count} "
                    f"channels, got {given}"
                )
        if self.channels == "bgr" and count != 3:
            raise DataError(f"preprocess.channels 'bgr' needs 3 channels, the images have {count}")

    def apply(self, images: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """Preprocess images ``[rows, channels, h, w]``; the result has the same axes."""
        pixels = np.ascontiguousarray(images, dtype=np.float32)
        if self.channels == "bgr":
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        size = self._resized(*pixels.shape[2:])
        if size != pixels.shape[2:]:
            pixels = _resize(pixels, size, self.antialias)
        if self.center_crop is not None:
            pixels = _crop(pixels, _pair(self.center_crop))
        pixels = pixels * np.float32(self.scale) + np.float32(self.offset)
        return (pixels - _channel_axis(self.mean)) / _channel_axis(self.std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short = min(height, width)
        return self.resize * height // short, self.resize * width // short


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _channel_axis(value: PerChannel) -> npt.NDArray[np.float32]:
    return np.asarray(value, dtype=np.float32).reshape(-1, 1, 1)


def _resize(
    pixels: npt.NDArray[np.float32], size: tuple[int, int], antialias: bool
) -> npt.NDArray[np.float32]:
    import torch

    resized: npt.NDArray[np.float32] = torch.nn.functional.interpolate(
        torch.from_numpy(pixels),
        size=size,
        mode="bilinear",
        align_corners=False,
        antialias=antialias,
    ).numpy()
    return resized


def _crop(pixels: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    top = round((pixels.shape[2] - size[0]) / 2)
    left = round((pixels.shape[3] - size[1]) / 2)
    return pixels[:, :, top : top + size[0], left : left + size[1]]
