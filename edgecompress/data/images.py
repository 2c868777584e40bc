"""Folders of images: one file per row, one sub-folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError, MissingDependencyError

__all__ = ["ImageFiles", "image_folder"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFiles:
    """Images that are read from their files when they are needed."""

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, row: int, mode: str = "RGB") -> npt.NDArray[np.uint8]:
        """Pixels ``[h, w, channels]`` of one image.

        Args:
            row: Which one.
            mode: Pillow's name of the colour space, "RGB" or "L".

        Raises:
            DataError: The file is broken.
            MissingDependencyError: Pillow is not installed.
        """
        image = _pillow()
        try:
            with image.open(self.files[row]) as opened:
                pixels = np.asarray(opened.convert(mode), dtype=np.uint8)
        except Exception as error:  # decoders raise anything for broken bytes
            raise DataError(
                f"is not a readable image ({error})",
                where=str(self.files[row]),
                cure="replace or remove the file",
            ) from error
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def image_folder(folder: Path) -> tuple[dict[str, ImageFiles], npt.NDArray[np.int64] | None]:
    """The images of a folder under the name "images", and their classes.

    Sub-folders are the classes: by number where all their names are numbers, else in alphabetical
    order. Images that lie in the folder itself have no classes.

    Raises:
        DataError: There are no images, or some lie beside the sub-folders.
        MissingDependencyError: Pillow is not installed.
    """
    _pillow()
    classes = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    by_class = {c.name: _images(c) for c in classes}
    by_class = {name: files for name, files in by_class.items() if files}
    loose = _images(folder)
    if not by_class and not loose:
        raise DataError(
            "holds no images",
            where=str(folder),
            cure=f"put {', '.join(sorted(IMAGE_SUFFIXES))} files into one sub-folder per class",
        )
    if not by_class:
        return {"images": ImageFiles(tuple(loose))}, None
    if loose:
        raise DataError(
            f"holds {len(loose)} images beside the sub-folders of the classes",
            where=str(folder),
            cure="move them into the sub-folder of their class",
        )
    numbered = all(name.isdecimal() for name in by_class)
    labels = [int(n) for n in by_class] if numbered else list(range(len(by_class)))
    counts = [len(files) for files in by_class.values()]
    files = tuple(file for listed in by_class.values() for file in listed)
    return {"images": ImageFiles(files)}, np.repeat(np.array(labels, np.int64), counts)


def _images(folder: Path) -> list[Path]:
    return sorted(
        f
        for f in folder.iterdir()
        if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")
    )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pillow", "reading image folders", "images") from error
    return Image
