"""Float layers between quantized values stay float in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.quantization.float_guard import guard_float_layers
from edgecompress.quantization.static import StaticSettings, quantize_static
from tests.models import from_text, small_cnn
from tests.running import X86, rows_of, run

F = np.float32


def lopsided(bias: bool = True) -> Model:
    """A depthwise convolution between two others, whose channels differ a thousandfold."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(0.01, 10, 8).astype(F).reshape(8, 1, 1, 1)
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3, 8, 8] x, float[8, 3, 1, 1] w1, float[8] b1, float[8, 1, 3, 3] w2,
           float[8] b2, float[4, 8, 1, 1] w3, float[4] b3) => (float[N, 4, 8, 8] y)
        {{
            c1 = Conv(x, w1, b1)
            r1 = Relu(c1)
            c2 = Conv<pads = [1, 1, 1, 1], group = 8>(r1, w2{", b2" if bias else ""})
            r2 = Relu(c2)
            y = Conv(r2, w3, b3)
        }}""",
        w1=rng.normal(0, 0.5, (8, 3, 1, 1)).astype(F),
        b1=rng.normal(0, 0.1, 8).astype(F),
        w2=(rng.normal(0, 0.5, (8, 1, 3, 3)) * scales).astype(F),
        b2=(rng.normal(0, 0.1, 8) * scales.reshape(8)).astype(F),
        w3=(rng.normal(0, 0.5, (4, 8, 1, 1)) / scales.reshape(1, 8, 1, 1)).astype(F),
        b3=rng.normal(0, 0.1, 4).astype(F),
    )


def x(rows: int = 8) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (rows, 3, 8, 8)).astype(F)


def partly_quantized(folder: Path, model: Model) -> Model:
    context = Context(rows_of(folder, model, {"x": x()}), X86)
    return quantize_static(
        model, context, lambda n: None if n.outputs[0].name == "c2" else StaticSettings()
    ).model


@pytest.mark.parametrize("bias", [True, False])
def test_the_runtime_leaves_the_layer_float(tmp_path: Path, bias: bool) -> None:
    model = lopsided(bias)
    quantized = partly_quantized(tmp_path, model)
    guard_float_layers(quantized)
    plain, fused = (run(quantized, {"x": x()}, optimize=o)["y"] for o in (False, True))
    # Integer kernels may round a tie to the other side: one step of the output, here and there.
    step = np.abs(plain - fused).max()
    assert step <= 1.01 * (plain.max() - plain.min()) / 100
    assert (plain != fused).mean() < 0.01


def test_numbers_stay_the_same(tmp_path: Path) -> None:
    quantized = partly_quantized(tmp_path, lopsided())
    guarded = quantized.clone()
    assert guard_float_layers(guarded) in (["c2"], [])  # none where the quantizer did it already
    guarded.check()
    a, b = (run(m, {"x": x()})["y"] for m in (quantized, guarded))
    np.testing.assert_array_equal(a, b)


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    quantized = partly_quantized(tmp_path, lopsided())
    guard_float_layers(quantized)
    before = quantized.digest
    assert guard_float_layers(quantized) == []
    assert quantized.digest == before


def test_float_graphs_are_left_alone() -> None:
    model = small_cnn()
    before = model.digest
    assert guard_float_layers(model) == []
    assert model.digest == before
