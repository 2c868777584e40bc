"""Small models that are factorized on the walk, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.data.calibration import CalibrationSet
from edgecompress.factorization.engine import factorize_layers
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.result import Factorized, FactorizeSettings
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.resources import Resources
from tests.models import from_text
from tests.running import rows_of

F = np.float32


def chain(seed: int = 0, width: int = 16, rank: int | None = None) -> Model:
    """MatMul-Relu-MatMul-Add, twice, each with a residual; weights of a rank if one is given."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        if rank is None:
            return rng.normal(0, 0.3, (rows, columns)).astype(F)
        left, right = rng.normal(0, 0.6, (rows, rank)), rng.normal(0, 0.6, (rank, columns))
        return (left @ right).astype(F)

    w = width
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, L, {w}] x, float[{w}, {2 * w}] a1, float[{2 * w}, {w}] a2, float[{w}] c,
           float[{w}, {2 * w}] b1, float[{2 * w}, {w}] b2) => (float[N, L, {w}] y)
        {{ h1 = MatMul(x, a1)  r1 = Relu(h1)  m1 = MatMul(r1, a2)  o1 = Add(m1, c)  s1 = Add(x, o1)
           h2 = MatMul(s1, b1)  r2 = Relu(h2)  m2 = MatMul(r2, b2)  y = Add(s1, m2) }}
        """,
        a1=matrix(w, 2 * w),
        a2=matrix(2 * w, w),
        c=rng.normal(0, 0.5, w).astype(F),
        b1=matrix(w, 2 * w),
        b2=matrix(2 * w, w),
    )


def tokens(rows: int = 64, length: int = 5, width: int = 16, seed: int = 0) -> np.ndarray:
    """Correlated features, whose means are not zero."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(0, 1, (width, width)) * np.geomspace(1, 0.05, width)
    x = rng.normal(0, 1, (rows, length, width)) @ mixing.T
    return (x + np.linspace(-1, 1, width)).astype(F)


def factorized(
    data: CalibrationSet | None,
    model: Model,
    rank: int | Mapping[str, int],
    *,
    memory: int | None = None,
    scratch: Path | None = None,
    **settings: Any,
) -> Factorized:
    """All layers at a rank, or those named."""
    layers, _ = find_layers(model, lambda node: True)
    ranks = {x.output: rank for x in layers} if isinstance(rank, int) else dict(rank)
    chosen = [layer for layer in layers if layer.output in ranks]
    context = Context(calibration=data, resources=Resources(memory=memory, scratch=scratch))
    settings = {"rows": 64, "damping": 0.0, **settings}
    return factorize_layers(
        model, model.clone(), chosen, ranks, FactorizeSettings(**settings), context
    )


def rows(folder: Path, model: Model, x: np.ndarray) -> CalibrationSet:
    return rows_of(folder, model, {"x": x})
