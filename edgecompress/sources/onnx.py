"""An ONNX file."""

from __future__ import annotations

from pathlib import Path

from edgecompress.model import Model
from edgecompress.sources.loaded import Loaded

__all__ = ["load_onnx"]


def load_onnx(path: Path, *, origin: str) -> Loaded:
    """Read and check an ONNX file.

    Raises:
        ModelError: The file cannot be used.
    """
    return Loaded(Model.load(path), kind="onnx", origin=origin)
