"""What every source returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.model import Model

if TYPE_CHECKING:
    import torch

__all__ = ["Arrays", "ExampleInputs", "Kind", "Loaded", "Reference"]

Kind = Literal["onnx", "torch", "exported-program", "transformers"]
"""What a source was."""

Arrays = dict[str, npt.NDArray[np.generic]]
"""Arrays by the name of the graph's input or output."""

ExampleInputs: TypeAlias = Union["tuple[torch.Tensor, ...]", "Mapping[str, torch.Tensor]"]
"""Positional tensors, or tensors by parameter name."""


@dataclass(frozen=True)
class Reference:
    """What the source itself computes on its example inputs, by the names of the graph."""

    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Loaded:
    """A model, and where it came from.

    Attributes:
        model: The graph.
        kind: What the source was.
        origin: The source as the user named it, or the class of the module.
        export_error: Largest ``max|onnx - torch| / max|torch|`` over all outputs, on the example
            inputs and on inputs of other sizes. None where nothing was exported.
        reference: torch's own outputs on the example inputs. None where nothing was exported.
        folder: The folder that holds the tokenizer or the image preprocessor of the model, if any.
        task: What the model does, by the name that Hugging Face's pipelines give it.
        preprocess: What the model's own preprocessor does with images, if it says so.
        notes: What a reader of a report should know of the way from source to graph.
    """

    model: Model
    kind: Kind
    origin: str
    export_error: float | None = None
    reference: Reference | None = None
    folder: Path | None = None
    task: str | None = None
    preprocess: PreprocessSpec | None = None
    notes: tuple[str, ...] = ()
