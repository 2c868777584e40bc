"""Models on int8 wherever LiteRT and what stands on it have kernels, and rows for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgecompress.constraints import Constraints, Int8Format
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from tests.running import ARM, rows_of

F = np.float32
INTEGERS: Constraints = replace(
    ARM,
    int8=Int8Format("int8", activation_symmetric=False),
    int8_ops=frozenset(
        {
            *("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Concat", "GlobalAveragePool"),
            *("AveragePool", "ReduceMean", "Sigmoid", "Tanh", "Gelu", "LeakyRelu", "Softmax"),
            *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Gather"),
            *("Slice", "Resize", "Split", "Pad"),
        }
    ),
    int8_everywhere=True,
    slow_shallow_convs=False,
)


def images(rows: int, size: int = 16, seed: int = 0) -> np.ndarray:
    """Rows of noise, ``[rows, 3, size, size]``."""
    return np.random.default_rng(seed).normal(0, 1, (rows, 3, size, size)).astype(F)


def quantized(
    model: Model,
    folder: Path,
    rows: dict[str, np.ndarray],
    constraints: Constraints = INTEGERS,
) -> Model:
    """The model as the quantize pass makes it."""
    context = Context(rows_of(folder, model, rows), constraints)
    return run_pass(make_pass("quantize", {}), model, context).model


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two arrays, as vectors."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
