"""Small models whose weights are rounded on the walk, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from edgecompress.model import Model
from edgecompress.quantization.rounding import (
    RoundedLayer,
    RoundingMethod,
    RoundingNotes,
    round_weights,
)
from edgecompress.torchgraph import to_torch
from tests.models import from_text
from tests.quantization.quantized_graphs import with_pairs
from tests.running import rows_of

F = np.float32


def images(rows: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 3, 16, 16)).astype(F)


def rounded(
    folder: Path,
    model: Model,
    feeds: Mapping[str, np.ndarray],
    method: RoundingMethod,
    *,
    keep_mean: bool = False,
    **options: object,
) -> tuple[Model, Model, list[RoundedLayer], RoundingNotes]:
    quantized, layers = with_pairs(model, feeds, keep_mean=keep_mean)
    before = quantized.clone()
    data = rows_of(folder, model, feeds)
    settings = {"rows": 32, "iterations": 40, **options}
    notes = round_weights(model, quantized, layers, data, method=method, **settings)  # type: ignore[arg-type]
    return before, quantized, layers, notes


def error(model: Model, other: Model, feeds: Mapping[str, np.ndarray]) -> float:
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    with torch.no_grad():
        y, z = to_torch(model)(tensors)["y"], to_torch(other)(tensors)["y"]
    return float((y - z).square().mean())


def integers(model: Model, layers: Sequence[RoundedLayer]) -> list[np.ndarray]:
    return [np.asarray(model.initializer(layer.weight)) for layer in layers]


def matmul(seed: int = 0) -> tuple[Model, dict[str, np.ndarray]]:
    """Tokens with correlated features through two MatMuls."""
    rng = np.random.default_rng(seed)
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, L, 12] x, float[12, 16] w1, float[16, 6] w2) => (float[N, L, 6] y)
        { h = MatMul(x, w1)  r = Relu(h)  y = MatMul(r, w2) }
        """,
        w1=rng.normal(0, 0.3, (12, 16)).astype(F),
        w2=rng.normal(0, 0.3, (16, 6)).astype(F),
    )
    x = rng.normal(0, 1, (32, 10, 4)) @ rng.normal(0, 1, (4, 12)) + rng.normal(0, 0.1, (32, 10, 12))
    return model, {"x": x.astype(F)}
