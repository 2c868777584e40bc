"""Models and comparisons for runtimes that convert ONNX files, or read them in their own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.constraints import Constraints
from edgecompress.data.calibration import CalibrationSet
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.runtimes import Runtime
from edgecompress.target import Device, MeasurementSettings, TargetProfile
from tests.models import from_text, small_cnn
from tests.running import ARM, X86, rows_of, run

Shared = Callable[[str], Path]
QUICK = MeasurementSettings(warmup=1, runs=8, seconds=0.2, blocks=2, timeout_seconds=60)
F = np.float32


def profile(runtime: str, provider: str = "CPU", **options: Any) -> TargetProfile:
    """A target on this machine, with short measurements."""
    return TargetProfile(
        name=f"{runtime}-test",
        description="for tests",
        runtime=runtime,
        provider=provider,
        options=options,
        device=Device(kind="host"),
        measurement=QUICK,
    )


def images(rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows for :func:`tests.models.small_cnn`."""
    return {"x": np.random.default_rng(seed).normal(0, 1, (rows, 3, 16, 16)).astype(F)}


def quantized(model: Model, data: CalibrationSet, constraints: Constraints = X86) -> Model:
    """The model with Q/DQ pairs."""
    return run_pass(make_pass("quantize", {}), model, Context(data, constraints)).model


def int8_cnn(folder: Path, constraints: Constraints = X86) -> Model:
    """The small network with Q/DQ pairs around all layers."""
    model = small_cnn()
    data = rows_of(folder, model, images(32))
    return quantized(model, data, constraints)


def resnet(shared: Shared, folder: Path) -> tuple[Model, Model, dict[str, np.ndarray]]:
    """A trained ResNet-20, float and int8, and a real image."""
    model = Model.load(shared("resnet20_cifar10.onnx"))
    with np.load(shared("cifar10.npz")) as stored:
        pixels = stored["train_x"][:16]
    mean, std = np.array([0.485, 0.456, 0.406], F), np.array([0.229, 0.224, 0.225], F)
    x = np.ascontiguousarray(((pixels / F(255) - mean) / std).transpose(0, 3, 1, 2).astype(F))
    data = rows_of(folder, model, {"input": x})
    return model, quantized(model, data, ARM), {"input": x[:1]}


def wrong_names() -> Model:
    """Two outputs, one of them whole numbers, with a named batch."""
    return from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x, float[4, 3] w) => (float[N, 3] last, int64[N] best)
        {
            last = MatMul(x, w)
            best = ArgMax<axis=1, keepdims=0>(last)
        }
        """,
        w=np.random.default_rng(0).normal(0, 1, (4, 3)).astype(F),
    )


def transformer() -> Model:
    """One block of attention and a feed-forward layer, on rows of 8 tokens; opset 20."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.2, shape).astype(F)

    names = "float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[16, 32] w1"
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        t (float[1, 8, 16] x, {names}, float[32, 16] w2, float[16] g, float[16] b, float k)
          => (float[1, 8, 16] y)
        {{
            q = MatMul(x, wq)
            v = MatMul(x, wv)
            p = MatMul(x, wk)
            pt = Transpose<perm=[0,2,1]>(p)
            s = MatMul(q, pt)
            scaled = Mul(s, k)
            a = Softmax<axis=-1>(scaled)
            m = MatMul(a, v)
            r = Add(x, m)
            n = LayerNormalization(r, g, b)
            h1 = MatMul(n, w1)
            h2 = Gelu(h1)
            h3 = MatMul(h2, w2)
            y = Add(n, h3)
        }}
        """,
        wq=weight(16, 16),
        wk=weight(16, 16),
        wv=weight(16, 16),
        w1=weight(16, 32),
        w2=weight(32, 16),
        g=np.ones(16, F),
        b=np.zeros(16, F),
        k=np.array(0.25, F),
    )


def outputs(
    runtime: Runtime,
    model: Model,
    feeds: Mapping[str, np.ndarray],
    target: TargetProfile,
    folder: Path,
) -> dict[str, np.ndarray]:
    """What the runtime computes."""
    session = runtime.session(runtime.prepare(model, folder, target), target)
    try:
        return session.run(feeds)
    finally:
        session.close()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two tensors."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def assert_same(found: Mapping[str, np.ndarray], model: Model, feeds: Any, least: float) -> None:
    """Names, types and shapes of onnxruntime's outputs, and a cosine of at least ``least``."""
    expected = run(model, feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert cosine(found[name], array) > least
