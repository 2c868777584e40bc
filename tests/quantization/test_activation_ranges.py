"""Ranges of activations: the methods, and the choice among them by the error that they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text
from tests.running import X86, rows_of, run, sqnr_db

METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse")


def layer() -> Model:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 4, 1, 1)).astype(np.float32)
    weight[:, 3] = 0  # what the last channel holds does not matter behind the layer
    return from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4, 8, 8] x, float[6, 4, 1, 1] w) => (float[N, 6, 8, 8] y) { y = Conv(x, w) }""",
        w=weight,
    )


def rows(outlier: float) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(16, 4, 8, 8)).astype(np.float32)
    x[0, 3, 0, 0] = outlier
    return x


def scale_of(model: Model, value: str) -> float:
    quantize = next(
        n for n in model.ir.graph if n.op_type == "QuantizeLinear" and n.inputs[0].name == value
    )
    scale = quantize.inputs[1]
    assert isinstance(scale, ir.Value)
    return float(model.initializer(scale.name or ""))


def quantized(model: Model, x: np.ndarray, folder: Path, method: str) -> Model:
    context = Context(calibration=rows_of(folder, model, {"x": x}, batch_size=4), constraints=X86)
    options = {"method": method, "bias_correction": False}
    return run_pass(make_pass("quantize", options), model, context).model


def test_auto_takes_the_least_error_behind_the_layer(tmp_path: Path) -> None:
    model, x = layer(), rows(100.0)
    expected = run(model, {"x": x})["y"]
    found = {m: run(quantized(model, x, tmp_path, m), {"x": x})["y"] for m in (*METHODS, "auto")}
    quality = {method: sqnr_db(expected, y) for method, y in found.items()}
    # The outlier lies in a channel that the layer ignores: to clip it costs nothing.
    assert quality["auto"] > quality["minmax"] + 10
    assert quality["auto"] >= max(quality[m] for m in METHODS) - 0.5


def test_the_moving_average_is_that_of_the_batches(tmp_path: Path) -> None:
    model, x = layer(), rows(100.0)
    batches = x.reshape(4, -1)
    width = batches.max(1).astype(np.float64).mean() - batches.min(1).astype(np.float64).mean()
    found = scale_of(quantized(model, x, tmp_path, "moving_average"), "x")
    assert found == pytest.approx(width / 255, rel=1e-5)


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_range_without_width(constant: float, tmp_path: Path) -> None:
    model, x = layer(), np.full((4, 4, 8, 8), constant, np.float32)
    expected, y = (
        run(model, {"x": x})["y"],
        run(quantized(model, x, tmp_path, "auto"), {"x": x})["y"],
    )
    np.testing.assert_allclose(y, expected, rtol=0.02, atol=0.05)
