"""The quantize_dynamic pass: its graphs, their numbers, and what the runtime makes of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import target
from edgecompress.constraints import Constraints, Int8Format
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.numerics.affine import IntegerRange, weight_scales
from edgecompress.quantized_form import quantized_form
from edgecompress.runtimes import runtime_class
from edgecompress.torchgraph import to_torch
from tests.models import from_text, small_cnn
from tests.running import run, sqnr_db

F = np.float32
TARGET = Constraints(int8=Int8Format(), dynamic_int8=True)
PROFILE = target.load("cpu-x86-64")


def quantized(model: Model, constraints: Constraints = TARGET, **options: Any) -> Applied:
    return run_pass(make_pass("quantize_dynamic", options), model, Context(None, constraints))


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(F)


def attention(width: int = 64) -> Model:
    """Three products of one input, a product of two activations, and one with a bias."""
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, S, {width}] x, float[{width}, {width}] wq, float[{width}, {width}] wk,
           float[{width}, {width}] wv, float[{width}, {width}] wo, float[{width}] b)
          => (float[N, S, {width}] y)
        {{
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            t = Transpose<perm=[0, 2, 1]>(k)
            scores = MatMul(q, t)
            p = Softmax(scores)
            c = MatMul(p, v)
            o = MatMul(c, wo)
            y = Add(o, b)
        }}
        """,
        **{name: values(width, width, seed=i) / 8 for i, name in enumerate(("wq", "wk", "wv"))},
        wo=values(width, width, seed=3) / 8,
        b=values(width, seed=4),
    )


def gemm(attributes: str = "", bias: tuple[int, ...] | None = (96,)) -> Model:
    """One Gemm of 64 inputs and 96 outputs."""
    shape = (96, 64) if "transB=1" in attributes else (64, 96)
    declared = "" if bias is None else f", float[{', '.join(map(str, bias))}] b"
    given = {} if bias is None else {"b": values(*bias, seed=1)}
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 64] x, float[{shape[0]}, {shape[1]}] w{declared}) => (float[N, 96] y)
        {{ y = Gemm{attributes}(x, w{"" if bias is None else ", b"}) }}
        """,
        w=values(*shape) / 8,
        **given,
    )


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


def expected_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear and a product with rounded weights [inputs, channels] give."""
    integers = IntegerRange.of("int8", 8, symmetric=True)
    scales = weight_scales(torch.from_numpy(w.T.copy()), integers).numpy()
    whole = np.clip(np.round(w / scales), -127, 127)
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = F((high - low) / F(255))
    zero = np.round(np.clip(-low / step, 0, 255))
    rounded = np.clip(np.round(x / step) + zero, 0, 255) - zero
    found: np.ndarray = (rounded.astype(np.float64) @ whole) * step * scales
    return found


def test_the_numbers_are_those_of_the_definition() -> None:
    model = gemm(bias=None)
    x = values(5, 64, seed=7)
    expected = expected_product(x, model.initializer("w"))
    applied = quantized(model)
    np.testing.assert_allclose(run(applied.model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_one_quantizer_serves_all_layers_that_read_the_same_value() -> None:
    applied = quantized(attention())
    found = operators(applied.model)
    assert found["DynamicQuantizeLinear"] == 2
    assert found["MatMulInteger"] == 4
    assert found["MatMul"] == 2
    assert [c.node for c in applied.changed] == ["q", "k", "v", "o"]
    assert {s.node: s.reason for s in applied.skipped} == {
        "scores": "its weight is computed at run time",
        "c": "its weight is computed at run time",
    }
    assert applied.notes["layers"] == 4


def test_the_runtime_runs_them_on_integers() -> None:
    applied = quantized(attention())
    coverage = runtime_class("onnxruntime")().coverage(applied.model, applied.claimed, PROFILE)
    assert coverage.unfused == {}
    assert coverage.fused == 4
    nodes = runtime_class("onnxruntime")().optimized_nodes(applied.model, PROFILE)
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["MatMulIntegerToFloat"] + kinds["DynamicQuantizeMatMul"] == 4
    assert kinds["MatMulInteger"] == 0


def test_outputs_stay_close_and_sizes_fall() -> None:
    model = attention()
    applied = quantized(model)
    x = {"x": values(2, 7, 64, seed=9)}
    reference = run(model, x)["y"]
    for optimize in (False, True):
        assert sqnr_db(reference, run(applied.model, x, optimize=optimize)["y"]) > 30
    torch_y = to_torch(applied.model)({"x": torch.from_numpy(x["x"])})["y"]
    assert sqnr_db(reference, torch_y.detach().numpy()) > 30
    assert applied.model.weight_bytes < 0.3 * model.weight_bytes
    assert {(c.bytes_before, c.bytes_after) for c in applied.changed} == {(16384, 4096 + 256)}


@pytest.mark.parametrize(
    ("attributes", "bias"),
    [
        ("", (96,)),
        ("", None),
        ("<transB=1>", (96,)),
        ("<alpha=0.5>", (96,)),
        ("<beta=0.25>", (96,)),
        ("<alpha=2.0, beta=3.0, transB=1>", (1, 96)),
        ("", (1, 1)),
    ],
)
def test_gemm(attributes: str, bias: tuple[int, ...] | None) -> None:
    model = gemm(attributes, bias)
    x = {"x": values(6, 64, seed=3)}
    applied = quantized(model)
    assert operators(applied.model)["Gemm"] == 0
    assert sqnr_db(run(model, x)["y"], run(applied.model, x)["y"]) > 30
    left = applied.model.ir.graph.initializers
    assert "w" not in left
    assert ("b" in left) is (bias is not None and "beta" not in attributes)


def test_a_weight_of_two_layers_is_stored_once() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y)
        {
            h = MatMul(x, w)
            y = MatMul(h, w)
        }
        """,
        w=values(64, 64),
    )
    applied = quantized(model)
    names = [n for n in applied.model.ir.graph.initializers if "quantized" in n]
    assert names == ["w_quantized"]
    assert [c.bytes_before for c in applied.changed] == [16384, 0]


def test_a_weight_that_is_an_output_stays_beside_its_integers() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { y = MatMul(x, w) }
        """,
        w=values(64, 64),
    )
    model.ir.graph.outputs.append(model.ir.graph.initializers["w"])
    applied = quantized(model)
    assert {"w", "w_quantized"} <= applied.model.ir.graph.initializers.keys()
    np.testing.assert_array_equal(run(applied.model, {"x": values(2, 64)})["w"], values(64, 64))


def test_the_output_of_a_layer_may_be_an_output_of_the_model() -> None:
    applied = quantized(gemm())
    assert [o.name for o in applied.model.ir.graph.outputs] == ["y"]
    assert applied.claimed == ("y_integer",)


def body_model() -> Model:
    return from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (bool c, float[N, 64] x, float[64, 64] w, float[64, 64] v) => (float[N, 64] y)
        {
            h = MatMul(x, w)
            y = If (c) <
                then_branch = a () => (float[N, 64] p) { p = MatMul(h, w) },
                else_branch = b () => (float[N, 64] n) { n = MatMul(h, v) }
            >
        }
        """,
        w=values(64, 64) / 8,
        v=values(64, 64, seed=1) / 8,
    )


@pytest.mark.parametrize("branch", [True, False])
def test_layers_in_bodies_are_taken_and_not_claimed(branch: bool) -> None:
    model = body_model()
    applied = quantized(model)
    assert len(applied.changed) == 3
    assert applied.claimed == ("h_integer",)
    feeds = {"c": np.array(branch), "x": values(3, 64)}
    assert sqnr_db(run(model, feeds)["y"], run(applied.model, feeds, optimize=True)["y"]) > 25
    assert not {"w", "v"} & applied.model.ir.graph.initializers.keys()


def lstm(hidden: int, directions: int = 1, attributes: str = "") -> Model:
    rows = 4 * hidden
    direction = "bidirectional" if directions == 2 else "forward"
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[S, 1, {hidden}] x, float[{directions}, {rows}, {hidden}] w,
           float[{directions}, {rows}, {hidden}] r, float[{directions}, {2 * rows}] b)
          => (float y, float h)
        {{ y, h = LSTM<hidden_size={hidden}, direction="{direction}"{attributes}>(x, w, r, b) }}
        """,
        w=values(directions, rows, hidden) / hidden**0.5,
        r=values(directions, rows, hidden, seed=1) / hidden**0.5,
        b=values(directions, 2 * rows, seed=2) / 8,
    )


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("per_channel", [True, False])
def test_large_lstm(directions: int, per_channel: bool) -> None:
    model = lstm(192, directions)
    applied = quantized(model, per_channel=per_channel)
    assert operators(applied.model) == {"DynamicQuantizeLSTM": 1}
    x = {"x": values(9, 1, 192, seed=5)}
    reference, found = run(model, x), run(applied.model, x)
    assert sqnr_db(reference["y"], found["y"]) > 25
    assert sqnr_db(reference["h"], found["h"]) > 25
    assert str(quantized_form(applied.model)) == "dynamic (int8): 1 of 1 LSTM"


def one_node(text: str, **arrays: np.ndarray) -> Model:
    declared = "".join(
        f", float[{', '.join(map(str, a.shape))}] {name}" for name, a in arrays.items()
    )
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 64] x, float[64, 64] u{declared}) => (float[A, B] y) {{ {text} }}""",
        **arrays,
    )


W = {"w": values(64, 64)}


@pytest.mark.parametrize(
    ("model", "op", "reason"),
    [
        (one_node("y = MatMul(x, u)"), "MatMul", "its weight is an input of the model"),
        (one_node("y = MatMul(w, u)", **W), "MatMul", "its first input is constant"),
        (one_node("y = Gemm<transA=1>(u, w)", **W), "Gemm", "transA is 1, expected 0"),
        (
            one_node("s = Transpose(w)  y = MatMul(x, s)", **W),
            "MatMul",
            "its weight is computed at run time",
        ),
        (
            one_node("y = Gemm<beta=2.0>(x, w, u)", **W),
            "Gemm",
            "its bias is computed at run time, and beta is not 1",
        ),
        (one_node("y = MatMul(u, w)", w=values(64, 8)), "MatMul", "it is so small"),
        (one_node("y = MatMul(u, w)", w=values(2, 64, 64)), "MatMul", "has 3 dimensions"),
        (lstm(16), "LSTM", "it is so small"),
    ],
)
def test_what_is_left_alone(model: Model, op: str, reason: str) -> None:
    applied = quantized(model)
    assert applied.model is model
    assert [(s.op, reason in s.reason) for s in applied.skipped] == [(op, True)]


def test_convolutions_stay_in_float() -> None:
    applied = quantized(small_cnn(channels=64, classes=64))
    assert [s.reason for s in applied.skipped if s.op == "Conv"] == [
        "convolutions of activations quantized at run time are slower than float ones"
    ] * 3
    assert [c.op for c in applied.changed] == ["Gemm"]


def test_a_layer_that_the_recipe_leaves_out_stays() -> None:
    applied = quantized(attention(), nodes={"q": False})
    assert ("q", "left out by the recipe") in {(s.node, s.reason) for s in applied.skipped}
    assert [c.node for c in applied.changed] == ["k", "v", "o"]


def test_options_of_single_layers() -> None:
    applied = quantized(attention(), nodes={"o": {"per_channel": False}})
    arrays = applied.model.ir.graph.initializers
    assert arrays["wo_scale"].shape == ()
    assert arrays["wq_scale"].shape == (64,)


def test_seven_bits_where_the_kernels_saturate() -> None:
    narrow = replace(TARGET, int8=Int8Format(weight_bits=7))
    applied = quantized(gemm(), narrow)
    assert np.abs(applied.model.initializer("w_quantized")).max() <= 63
    assert np.abs(quantized(gemm()).model.initializer("w_quantized")).max() > 63


@pytest.mark.parametrize(
    ("weight", "x"),
    [
        (np.zeros((64, 64), F), values(2, 64)),
        (values(64, 64), np.zeros((2, 64), F)),
        (values(64, 64) * F(1e-38), values(2, 64)),
        (np.where(np.arange(64) < 3, 0, values(64, 64)).astype(F), values(1, 64)),
    ],
    ids=["zero weight", "zero input", "tiny weight", "dead channels"],
)
def test_degenerate_numbers(weight: np.ndarray, x: np.ndarray) -> None:
    model = one_node("y = MatMul(x, w)", w=weight)
    found = run(quantized(model).model, {"x": x, "u": values(64, 64)})["y"]
    assert np.isfinite(found).all()
    assert np.abs(found - run(model, {"x": x, "u": values(64, 64)})["y"]).max() < 1.5


def test_targets_without_such_kernels_refuse() -> None:
    with pytest.raises(PassError, match="no integer kernels for activations quantized at run"):
        quantized(gemm(), replace(TARGET, dynamic_int8=False))


def test_old_operator_sets_are_refused() -> None:
    model = gemm()
    model.ir.opset_imports[""] = 9
    with pytest.raises(PassError, match="needs opset 11"):
        quantized(model)


def test_quantized_models_are_refused() -> None:
    applied = quantized(gemm())
    with pytest.raises(PassError, match=r"quantized already: dynamic \(int8\): 1 of 1 MatMul"):
        quantized(applied.model)


def test_half_done_models_are_finished() -> None:
    first = quantized(attention(), nodes={"q": False})
    second = quantized(first.model)
    assert [c.node for c in second.changed] == ["q"]
    assert (
        sqnr_db(*(run(m, {"x": values(1, 4, 64)})["y"] for m in (attention(), second.model))) > 30
    )


def test_the_float_model_is_left_alone_and_results_repeat() -> None:
    model = attention()
    before = model.to_bytes()
    assert quantized(model).model.to_bytes() == quantized(model).model.to_bytes()
    assert model.to_bytes() == before


@given(
    rows=st.integers(1, 5),
    outputs=st.integers(64, 80),
    seed=st.integers(0, 100),
    spread=st.floats(1e-3, 1e3),
)
def test_the_error_is_bounded_by_both_roundings(
    rows: int, outputs: int, seed: int, spread: float
) -> None:
    w, x = values(64, outputs, seed=seed), values(rows, 64, seed=seed + 1) * F(spread)
    model = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 64] x, float[64, {outputs}] w) => (float[N, {outputs}] y)
        {{ y = MatMul(x, w) }}""",
        w=w,
    )
    applied = quantized(model, weight_method="minmax")
    found = run(applied.model, {"x": x})["y"]
    step_w = np.abs(w).max(0) / 127
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    # half a step of one factor times the sum of the other, and of both
    bound = (
        np.abs(x).sum(1)[:, None] * step_w / 2
        + step_x * np.abs(w).sum(0)  # the zero point is rounded, too: up to one step
        + 64 * step_x * step_w
    )
    assert (np.abs(found - x @ w) <= bound * 1.001 + 1e-6).all()


def test_types_are_written() -> None:
    applied = quantized(gemm())
    kinds = {v.name: v.dtype for n in applied.model.ir.graph for v in n.outputs}
    assert kinds["x_quantized"] == ir.DataType.UINT8
    assert kinds["y_integer"] == ir.DataType.INT32
    assert kinds["y"] == ir.DataType.FLOAT
