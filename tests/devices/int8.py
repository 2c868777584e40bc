"""Small and real models on integers, in the formats that the devices of these tests take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgecompress.constraints import Constraints, Int8Format
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from tests.running import ARM, X86, rows_of

__all__ = ["ARM", "SYMMETRIC", "UNSIGNED", "images", "quantized"]

UNSIGNED = X86
SYMMETRIC = replace(X86, int8=Int8Format("int8", activation_symmetric=True))
"""Signed activations with their zero point at 0, which XNNPACK wants."""


def images(model: Model, rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Normally distributed rows for a model with one input of known size beside the batch."""
    spec = model.signature.inputs[0]
    assert spec.shape is not None
    shape = (rows, *(int(dim) for dim in spec.shape[1:] if dim is not None))
    return {spec.name: np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)}


def quantized(folder: Path, model: Model, constraints: Constraints) -> Model:
    """The model with all layers on integers, calibrated on :func:`images`."""
    rows = rows_of(folder, model, images(model))
    options = {"bias_correction": False}
    return run_pass(make_pass("quantize", options), model, Context(rows, constraints)).model
