"""The equalize pass: what it changes, what it leaves alone and why, and what int8 gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.constraints import Constraints
from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.errors import PassError, RecipeError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text, small_cnn
from tests.running import X86, rows_of, run, sqnr_db

Shared = Callable[[str], Path]
F = np.float32
assert X86.int8 is not None
PER_TENSOR = replace(X86, int8=replace(X86.int8, per_channel=False))


def transformer(seed: int = 0) -> Model:
    """Norm with outliers, heads, residual, Gelu; post-norm at the end."""
    rng = np.random.default_rng(seed)
    gamma = np.ones(16)
    gamma[[3, 8]] = 40, 25
    shapes = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "wo": (16, 16), "w1": (16, 32)}
    weights = {n: (rng.normal(0, 0.25, s)).astype(F) for n, s in shapes.items()}
    return from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, S, 16] x, float[16] gamma, float[16] beta, float[16, 16] wq, float[16, 16] wk,
           float[16, 16] wv, float[16] bv, float[16, 16] wo, float[16, 32] w1, float[32, 16] w2,
           int64[4] heads, int64[3] joined) => (float[N, S, 16] y) {
            n = LayerNormalization(x, gamma, beta)
            q = MatMul(n, wq)
            k = MatMul(n, wk)
            v0 = MatMul(n, wv)
            v = Add(v0, bv)
            qh = Reshape(q, heads)
            kh = Reshape(k, heads)
            vh = Reshape(v, heads)
            qt = Transpose<perm=[0,2,1,3]>(qh)
            kt = Transpose<perm=[0,2,3,1]>(kh)
            vt = Transpose<perm=[0,2,1,3]>(vh)
            s = MatMul(qt, kt)
            p = Softmax(s)
            o = MatMul(p, vt)
            ot = Transpose<perm=[0,2,1,3]>(o)
            oj = Reshape(ot, joined)
            a = MatMul(oj, wo)
            r = Add(a, x)
            f = MatMul(r, w1)
            g1 = Gelu(f)
            y = MatMul(g1, w2)
        }""",
        gamma=gamma.astype(F),
        beta=rng.normal(0, 1, 16).astype(F),
        bv=rng.normal(0, 1, 16).astype(F),
        w2=rng.normal(0, 0.25, (32, 16)).astype(F),
        heads=np.array([0, 0, 4, 4]),
        joined=np.array([0, 0, 16]),
        **weights,
    )


def tokens(rows: int = 16, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, 1, (rows, 6, 16)).astype(F)
    x[..., 5] *= 30
    return x


def equalized(
    model: Model, data: CalibrationSet, constraints: Constraints = X86, **options: Any
) -> Applied:
    return run_pass(make_pass("equalize", options), model, Context(data, constraints))


def quantized(model: Model, data: CalibrationSet) -> Model:
    return run_pass(make_pass("quantize", {}), model, Context(data, X86)).model


def reasons(applied: Applied) -> dict[str, str]:
    return {skip.node: skip.reason for skip in applied.skipped}


def changes(applied: Applied) -> dict[str, str]:
    return {change.node: change.what for change in applied.changed}


def test_layers_behind_a_norm_are_smoothed(tmp_path: Path) -> None:
    model = transformer()
    before = model.to_bytes()
    data = rows_of(tmp_path, model, {"x": tokens()})
    applied = equalized(model, data)
    assert model.to_bytes() == before
    assert applied.model.steps == ("equalize",)
    found = changes(applied)
    assert {"q", "k", "v0"} <= found.keys()
    assert found["q"] == found["k"] == found["v0"]
    assert found["q"].startswith("equalized, alpha 0.") or found["q"] == "equalized, alpha 1"
    x = {"x": tokens(8, 1)}
    np.testing.assert_array_equal(run(applied.model, x)["y"], run(model, x)["y"])
    assert len(list(applied.model.ir.graph)) == len(list(model.ir.graph))
    told = reasons(applied)
    assert told["f"] == "its input comes from Add 'r', and no scales can be folded in there"
    assert told["y"] == "its input comes from Gelu 'g1', and no scales can be folded in there"


def test_int8_gains(tmp_path: Path) -> None:
    model = transformer()
    data = rows_of(tmp_path, model, {"x": tokens(32)})
    x = {"x": tokens(16, 1)}
    expected = run(model, x)["y"]
    plain = sqnr_db(expected, run(quantized(model, data), x)["y"])
    smooth = equalized(model, data).model
    products = equalized(model, data, allow_mul=True).model
    folded = sqnr_db(expected, run(quantized(smooth, data), x)["y"])
    inserted = sqnr_db(expected, run(quantized(products, data), x)["y"])
    assert plain < folded < inserted


def test_products_are_inserted_only_where_asked_and_where_they_gain(tmp_path: Path) -> None:
    model = transformer()
    data = rows_of(tmp_path, model, {"x": tokens()})
    applied = equalized(model, data, allow_mul=True)
    inserted = [c.node for c in applied.changed if c.what == "inserted"]
    assert inserted == ["r_scaled", "g1_scaled"]
    assert changes(applied)["f"].startswith("equalized")
    assert changes(applied)["y"].startswith("equalized")
    assert len(list(applied.model.ir.graph)) == len(list(model.ir.graph)) + len(inserted)
    x = {"x": tokens(8, 1)}
    np.testing.assert_array_equal(run(applied.model, x)["y"], run(model, x)["y"])


def test_a_product_that_gains_nothing_is_taken_out(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 8] x, float[8, 4] w) => (float[N, 4] y) { s = Sigmoid(x) y = MatMul(s, w) }""",
        w=np.random.default_rng(0).choice([-1, 1], (8, 4)).astype(F),
    )
    x = np.random.default_rng(1).normal(0, 1, (64, 8)).astype(F)
    applied = equalized(model, rows_of(tmp_path, model, {"x": x}), allow_mul=True)
    assert applied.model is model
    assert reasons(applied) == {"y": "scales do not lower the error of its int8 output enough"}


def test_a_fixed_strength(tmp_path: Path) -> None:
    model = transformer()
    applied = equalized(model, rows_of(tmp_path, model, {"x": tokens()}), alpha=0.5)
    assert changes(applied)["q"] == "equalized, alpha 0.5"


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "half"])
def test_a_strength_that_is_none(alpha: Any) -> None:
    with pytest.raises(RecipeError, match="alpha"):
        make_pass("equalize", {"alpha": alpha})


def test_a_node_left_out_keeps_its_group(tmp_path: Path) -> None:
    model = transformer()
    data = rows_of(tmp_path, model, {"x": tokens()})
    applied = equalized(model, data, nodes={"k": False})
    assert not {"q", "k", "v0"} & changes(applied).keys()
    assert "'k' is left out by the recipe" in reasons(applied)["q"]


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    model = transformer()
    data = rows_of(tmp_path, model, {"x": tokens()})
    first, second = (equalized(model, data).model.to_bytes() for _ in range(2))
    assert first == second


def test_a_model_without_gain_stays_itself(tmp_path: Path) -> None:
    model = small_cnn()
    x = np.random.default_rng(0).normal(0, 1, (16, 3, 16, 16)).astype(F)
    applied = equalized(model, rows_of(tmp_path, model, {"x": x}))
    assert applied.model is model
    assert not applied.changed
    told = reasons(applied)
    assert told["c2"] == "its input comes from Conv 'c1', and it reaches the residual Add 's'"
    assert "Clip 'r2' cuts at a number that scales do not move" in told["c3"]
    assert told["c1"] == "its input is an input of the model"


def test_relu6_becomes_relu_only_where_asked(tmp_path: Path) -> None:
    model = small_cnn()
    x = np.random.default_rng(0).normal(0, 0.1, (16, 3, 16, 16)).astype(F)
    data = rows_of(tmp_path, model, {"x": x})
    applied = equalized(model, data, relu6="relu")
    assert changes(applied)["r2"] == "Clip became Relu"
    assert "Clip" not in {n.op_type for n in applied.model.ir.graph}
    # No value of this network reaches 6.
    np.testing.assert_array_equal(run(applied.model, {"x": x})["y"], run(model, {"x": x})["y"])


def uneven_chain() -> Model:
    rng = np.random.default_rng(0)
    uneven = np.exp(rng.normal(0, 2, 8)).reshape(8, 1, 1, 1)
    return from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3, 8, 8] x, float[8, 3, 1, 1] w, float[8, 1, 3, 3] d, float[4, 8, 1, 1] v)
            => (float[N, 4, 6, 6] y) {
            a = Conv(x, w)
            r = Relu(a)
            e = Conv<group=8>(r, d)
            q = Relu(e)
            y = Conv(q, v)
        }""",
        w=(rng.normal(0, 1, (8, 3, 1, 1)) * uneven).astype(F),
        d=(rng.normal(0, 1, (8, 1, 3, 3)) / uneven[::-1]).astype(F),
        v=(rng.normal(0, 1, (4, 8, 1, 1)) * uneven[::-1].reshape(1, 8, 1, 1)).astype(F),
    )


def test_targets_with_one_scale_for_a_weight_get_chains(tmp_path: Path) -> None:
    model = uneven_chain()
    x = np.random.default_rng(1).normal(0, 1, (16, 3, 8, 8)).astype(F)
    data = rows_of(tmp_path, model, {"x": x})
    applied = equalized(model, data, PER_TENSOR)
    assert changes(applied) == {"e": "equalized with 'a'", "y": "equalized with 'e'"}
    np.testing.assert_array_equal(run(applied.model, {"x": x})["y"], run(model, {"x": x})["y"])
    context = Context(data, PER_TENSOR)
    step = make_pass("quantize", {"per_channel": False})
    plain, even = (run_pass(step, m, context).model for m in (model, applied.model))
    expected = run(model, {"x": x})["y"]
    gains = [sqnr_db(expected, run(found, {"x": x})["y"]) for found in (plain, even)]
    assert gains[1] > gains[0] + 3


def test_smoothing_spares_layers_with_one_scale(tmp_path: Path) -> None:
    model = uneven_chain()
    x = np.random.default_rng(1).normal(0, 1, (16, 3, 8, 8)).astype(F)
    data = rows_of(tmp_path, model, {"x": x})
    applied = equalized(model, data, PER_TENSOR, method="smooth")
    assert not applied.changed
    assert "whose weight has one scale" in reasons(applied)["e"]


def test_layers_inside_a_subgraph_are_told(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x, float[4, 4] w, float[4, 4] v) => (float[N, 4] y) {
            a = MatMul(x, w)
            s = ReduceSum<keepdims=0>(a)
            b = Cast<to=9>(s)
            y = If(b) <
                then_branch = t () => (float[N, 4] p) { p = MatMul(a, v) },
                else_branch = e () => (float[N, 4] q) { q = Neg(a) }
            >
        }""",
        w=np.ones((4, 4), F),
        v=np.ones((4, 4), F),
    )
    data = rows_of(tmp_path, model, {"x": np.ones((4, 4), F)})
    assert reasons(equalized(model, data))["p"] == "it lies inside a subgraph (If, Loop or Scan)"


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = transformer()
    data = rows_of(tmp_path, model, {"x": tokens()})
    with pytest.raises(PassError, match="quantized already: static QDQ"):
        equalized(quantized(model, data), data)


def test_a_target_without_integer_kernels(tmp_path: Path) -> None:
    model = transformer()
    data = rows_of(tmp_path, model, {"x": tokens(2)})
    with pytest.raises(PassError, match="no int8 kernels"):
        equalized(model, data, Constraints(int8=None))


def test_a_real_model(shared: Shared, tmp_path: Path) -> None:
    model = Model.load(shared("resnet20_cifar10.onnx"))
    with np.load(shared("cifar10.npz")) as stored:
        x = stored["train_x"][:8].transpose(0, 3, 1, 2).astype(F) / F(64) - F(2)
    np.savez(tmp_path / "rows.npz", input=x)
    spec = DataSpec(path="rows.npz", validation_share=0.0)
    data = CalibrationSet.open(spec, model.signature, base=tmp_path)
    applied = equalized(model, data)
    feeds = data.sample(4)
    for name, expected in run(model, feeds).items():
        np.testing.assert_array_equal(run(applied.model, feeds)[name], expected)
    layers = [n for n in model.ir.graph if n.op_type in ("Conv", "Gemm")]
    assert len(applied.changed) + len(applied.skipped) == len(layers)
