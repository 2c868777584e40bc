"""An ONNX file."""

from __future__ import annotations

from pathlib import Path

from edgecompress.model import Model
from edgecompress.quantized_form import quantized_form
from edgecompress.sources.loaded import Loaded

__all__ = ["load_onnx"]


def load_onnx(path: Path, *, origin: str) -> Loaded:
    """Read and check an ONNX file; a note tells where it is quantized already.

    Raises:
        ModelError: The file cannot be used.
    """
    model = Model.load(path)
    form = quantized_form(model)
    notes = () if form is None else (f"is quantized already: {form}",)
    return Loaded(model, kind="onnx", origin=origin, notes=notes)
