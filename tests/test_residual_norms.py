"""Residual sums in front of normalizations, in the form that keeps fast kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text
from tests.running import X86, run

SPLIT = replace(X86, split_residual_norms=True)


def residual(body: str) -> Model:
    rng = np.random.default_rng(0)
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 3, 8] x, float[2, 3, 8] r, float[8, 8] w, float[8] s, float[8] b)
          => (float[2, 3, 8] y) {{ {body} }}""",
        w=rng.normal(size=(8, 8)).astype(np.float32),
        s=rng.normal(size=8).astype(np.float32),
        b=rng.normal(size=8).astype(np.float32),
    )


def cleaned(model: Model, constraints: object = SPLIT, **options: object) -> Applied:
    step = make_pass("cleanup", options)
    return run_pass(step, model, Context(constraints=constraints))  # type: ignore[arg-type]


BLOCK = "m = MatMul(x, w) a = Add(m, r) y = LayerNormalization(a, s, b)"


def test_the_sum_computes_the_same() -> None:
    model = residual(BLOCK)
    applied = cleaned(model)
    assert [n.op_type for n in applied.model.ir.graph] == ["MatMul", "Sum", "LayerNormalization"]
    assert any("became Sum" in change.what for change in applied.changed)
    rng = np.random.default_rng(1)
    feeds = {n: rng.normal(size=(2, 3, 8)).astype(np.float32) for n in ("x", "r")}
    expected, found = run(model, feeds)["y"], run(applied.model, feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "options", "constraints"),
    [
        (BLOCK, {}, replace(X86, split_residual_norms=False)),
        (BLOCK, {"ops": {"Add": False}}, SPLIT),
        ("m = MatMul(x, w) a = Add(m, b) y = LayerNormalization(a, s, b)", {}, SPLIT),
        ("m = MatMul(x, w) y = Add(m, r)", {}, SPLIT),
    ],
    ids=["target without the flaw", "left out", "bias", "no normalization"],
)
def test_left_alone(body: str, options: dict[str, object], constraints: object) -> None:
    model = cleaned(residual(body), constraints, **options).model
    assert "Sum" not in [n.op_type for n in model.ir.graph]
