"""Images as a feed: preprocessed when they are read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.array_feed import check_values, digest
from edgecompress.data.feeds import Feed, Rows, hashes
from edgecompress.data.images import ImageFiles
from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.errors import DataError

__all__ = ["ImageFeed"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageFeed(Feed):
    """Images, preprocessed when they are read.

    Attributes:
        images: Files, or pixels ``[rows, channels, h, w]`` (a view of whatever layout).
        preprocess: From pixels to the model's numbers.
    """

    images: Array | ImageFiles
    preprocess: PreprocessSpec

    def read(self, rows: Rows) -> Array:
        """Images, preprocessed."""
        if isinstance(self.images, ImageFiles):
            single = [np.moveaxis(self._file(self.images, row)[None], 3, 1) for row in rows]
            array = np.concatenate([self.preprocess.apply(image) for image in single])
        else:
            array = self.preprocess.apply(self.images[rows])
        if self._channels_last(array.shape[1]):
            array = np.moveaxis(array, 1, 3)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            array = np.clip(np.rint(array), limits.min, limits.max)
        return np.ascontiguousarray(array, dtype=self.dtype)

    def row_shape(self, row: int) -> tuple[int, ...]:
        """Shape of one image after preprocessing."""
        if isinstance(self.images, ImageFiles):
            height, width, channels = self._file(self.images, row).shape
            return self._checked(channels, height, width)
        return self._checked(*self.images.shape[1:])

    def check(self, rows: Rows) -> None:
        """Read every image, and compare sizes."""
        if isinstance(self.images, ImageFiles):
            self._check_files(self.images, rows)
            return
        self._checked(*self.images.shape[1:])
        check_values(self.images, rows, self.images.dtype, self.where)

    def digest(self, rows: Rows) -> str:
        """SHA-256 of pixels or files."""
        if not isinstance(self.images, ImageFiles):
            return digest(self.images, rows)
        sha = hashlib.sha256()
        for row in rows:
            sha.update(self.images.files[row].read_bytes())
        return sha.hexdigest()

    def contents(self, rows: Rows) -> npt.NDArray[np.uint64] | None:
        """Of files; rows of an array may be equal for other reasons than being copies."""
        if not isinstance(self.images, ImageFiles):
            return None
        return hashes(self.images.files[row].read_bytes() for row in rows)

    def _file(self, images: ImageFiles, row: int) -> npt.NDArray[np.uint8]:
        shape = self.spec.shape
        grey = shape is not None and 1 in (shape[1], shape[3])
        return images.read(row, "L" if grey else "RGB")

    def _check_files(self, images: ImageFiles, rows: Rows) -> None:
        first: tuple[int, ...] | None = None
        for row in rows:
            height, width, channels = self._file(images, row).shape
            try:
                shape = self._checked(channels, height, width)
            except DataError as error:
                raise DataError(
                    error.what, where=str(images.files[row]), cure=error.cure
                ) from error
            first = first or shape
            if shape != first:
                raise DataError(
                    f"images differ in size after preprocessing: {list(first)} and {list(shape)}",
                    where=str(images.files[row]),
                    cure="set preprocess.resize to [h, w], or add a center_crop",
                )

    def _checked(self, channels: int, height: int, width: int) -> tuple[int, ...]:
        self.preprocess.check_channels(channels)
        height, width = self.preprocess.output_size(height, width)
        last = self._channels_last(channels)
        return self.check_shape(
            (height, width, channels) if last else (channels, height, width),
            "check preprocess.layout, resize and center_crop",
        )

    def _channels_last(self, channels: int) -> bool:
        shape = self.spec.shape
        return (
            shape is not None
            and isinstance(shape[1], int)
            and shape[1] != channels
            and shape[3] == channels
        )
