"""What every source returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from edgecompress.model import Model

if TYPE_CHECKING:
    import torch

__all__ = ["Arrays", "ExampleInputs", "Loaded", "Reference"]

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
            inputs and on random inputs of another batch size. None where nothing was exported.
        reference: torch's own outputs on the example inputs. None where nothing was exported.
    """

    model: Model
    kind: Literal["onnx", "torch", "exported-program"]
    origin: str
    export_error: float | None = None
    reference: Reference | None = None
