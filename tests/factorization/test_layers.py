"""Which layers are found in a graph, with which figures, and why others are left alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.factorization.layers import find_layers, sharing
from edgecompress.factorization.parts import Layer
from edgecompress.graph_pass import Context, Skip, make_pass
from edgecompress.model import Model
from tests.models import from_text, small_cnn

ROWS = "float[N, 12] x"


def graph(
    body: str, inputs: str = ROWS, output: str = "float[N, K] y", **weights: tuple[int, ...]
) -> Model:
    """A graph with random constants; those whose names begin with ``i_`` are whole numbers."""
    rng = np.random.default_rng(0)
    arrays = {
        name: np.zeros(shape, np.int64) if name[0] == "i" else rng.random(shape, np.float32)
        for name, shape in weights.items()
    }
    declared = [
        f"{'int64' if a.dtype == np.int64 else 'float'}[{','.join(map(str, a.shape))}] {name}"
        for name, a in arrays.items()
    ]
    head = '<ir_version: 10, opset_import: ["" : 20]>'
    text = f"{head} g ({', '.join([inputs, *declared])}) => ({output}) {{ {body} }}"
    return from_text(text, **arrays)


def found(model: Model, *left_out: str) -> tuple[list[Layer], list[Skip]]:
    return find_layers(model, lambda node: node.outputs[0].name not in left_out)


def only(model: Model) -> Layer:
    layers, skipped = found(model)
    assert not skipped
    (layer,) = layers
    return layer


def test_a_network() -> None:
    layers, skipped = found(small_cnn())
    assert [(x.node, x.op, x.input, x.output, x.weight, x.bias) for x in layers] == [
        ("c1", "Conv", "x", "c1", "w1", True),
        ("c3", "Conv", "r2", "c3", "w3", True),
        ("y", "Gemm", "v", "y", "w4", True),
    ]
    assert [(s.node, s.op, s.reason) for s in skipped] == [
        ("c2", "Conv", "one input channel in a group: nothing to factorize")
    ]
    first, second, last = layers
    assert (first.rows, first.columns, first.kernel, first.groups) == (8, 27, (3, 3), 1)
    assert first.lengths == ((16, 16), (8, 8))
    assert [x.macs for x in layers] == [8 * 8 * 8 * 27, 8 * 8 * 8 * 8, 10 * 8]
    assert second.parameters == 64
    assert last.lengths == ((), ())
    assert not last.form.transposed


W = {"w": (12, 10)}
BIASES: dict[str, tuple[str, bool, dict[str, tuple[int, ...]]]] = {
    "none": ("y = MatMul(x, w)", False, W),
    "behind": ("a = MatMul(x, w) y = Add(a, b)", True, {**W, "b": (10,)}),
    "behind, in front of the sum": ("a = MatMul(x, w) y = Add(b, a)", True, {**W, "b": (1, 10)}),
    "one number": ("a = MatMul(x, w) y = Add(a, b)", False, {**W, "b": (1,)}),
    "no vector": ("a = MatMul(x, w) y = Add(a, b)", False, {**W, "b": (3, 10)}),
    "computed": ("a = MatMul(x, w) b = Neg(a) y = Add(a, b)", False, W),
    "read twice": ("a = MatMul(x, w) c = Add(a, b) y = Mul(c, a)", False, {**W, "b": (10,)}),
    "Gemm without": ("y = Gemm(x, w)", False, W),
    "Gemm": ("y = Gemm(x, w, b)", True, {**W, "b": (10,)}),
    "Gemm, one number": ("y = Gemm(x, w, b)", True, {**W, "b": (1,)}),
    "Gemm, one for each row": ("y = Gemm(x, w, b)", False, {**W, "b": (3, 1)}),
    "Gemm, not used": ("y = Gemm<beta=0.0>(x, w, b)", False, {**W, "b": (10,)}),
    "Gemm, computed": ("c = Neg(x) y = Gemm(x, w, c)", False, {"w": (12, 12)}),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name: str) -> None:
    body, bias, weights = BIASES[name]
    assert only(graph(body, **weights)).bias is bias


def test_an_output_of_the_model_has_no_bias_behind_it() -> None:
    body = "a = MatMul(x, w) y = Add(a, b)"
    model = graph(body, output="float[N, K] y, float[N, 10] a", w=(12, 10), b=(10,))
    assert not only(model).bias


SKIPPED: dict[str, tuple[Model, str]] = {
    "left out": (
        graph("left = MatMul(x, w) y = Relu(left)", w=(12, 10)),
        "left out by the recipe",
    ),
    "transA": (
        graph("y = Gemm<transA=1>(x, w)", "float[12, N] x", w=(12, 10)),
        "it has transA: its input comes transposed",
    ),
    "alpha": (
        graph("y = Gemm<alpha=0.0>(x, w)", w=(12, 10)),
        "its alpha is 0: it uses nothing of its weight",
    ),
    "in front": (
        graph("y = MatMul(w, x)", "float[12, N] x", w=(10, 12)),
        "its weight comes first (W @ x); only weights behind the activation are factorized",
    ),
    "an input as weight": (
        graph("y = MatMul(x, z)", f"{ROWS}, float[12, K] z"),
        "its second input is an input of the model, not a constant weight",
    ),
    "two activations": (
        graph("t = Transpose(x) y = MatMul(x, t)"),
        "its second input is computed by Transpose, not a constant weight",
    ),
    "quantized": (
        graph(
            "w = DequantizeLinear(q, s) y = MatMul(x, w)",
            f"{ROWS}, int8[12, 10] q, float s",
        ),
        "its weight is quantized already",
    ),
    "Constant": (
        graph("w = Constant<value=float[2, 1] {1, 2}>() y = MatMul(x, w)", "float[N, 2] x"),
        "its weight is a Constant node; put the pass 'cleanup' in front",
    ),
    "Transpose": (
        graph("t = Transpose(w) y = MatMul(x, t)", w=(10, 12)),
        "its weight comes through a Transpose; put the pass 'cleanup' in front",
    ),
    "constant input": (
        graph("a = MatMul(c, w) y = Add(x, a)", c=(12, 12), w=(12, 12)),
        "its input is constant; put the pass 'cleanup' in front",
    ),
    "whole numbers": (
        graph("y = MatMul(x, i_w)", "int64[N, 12] x", "int64[N, K] y", i_w=(12, 10)),
        "its weight is int64; factors are float32, float16 or double",
    ),
    "several matrices": (
        graph("y = MatMul(x, w)", "float[3, N, 12] x", "float[3, N, K] y", w=(3, 12, 10)),
        "its weight has 3 axes; expected a matrix",
    ),
    "output": (
        graph("y = MatMul(x, w)", output="float[N, K] y, float[12, 10] w", w=(12, 10)),
        "its weight is an output of the model, too",
    ),
    "depthwise": (
        graph(
            "y = Conv<group=4>(x, w)", "float[N, 4, H, W] x", "float[N, 8, P, Q] y", w=(8, 1, 3, 3)
        ),
        "one input channel in a group: nothing to factorize",
    ),
    "thin": (
        graph("y = MatMul(x, w)", w=(12, 1)),
        "its weight of 12 numbers is so small that factors of rank 1 would save nothing",
    ),
    "small groups": (
        graph("y = Conv<group=2>(x, w)", "float[N, 4, L] x", "float[N, 4, L] y", w=(4, 2, 1)),
        "its weight of 8 numbers is so small that factors of rank 1 would save nothing",
    ),
    "tied": (
        graph("e = Gather(w, i) y = Gemm<transB=1>(e, w)", "int64[N] i", w=(30, 12)),
        "its weight is the table 'w', which is looked up, too: it has to stay whole",
    ),
    "tied through a Transpose": (
        graph("e = Gather(w, i) t = Transpose(w) y = MatMul(e, t)", "int64[N] i", w=(30, 12)),
        "its weight is the table 'w', which is looked up, too: it has to stay whole",
    ),
    "read by something else": (
        graph("a = MatMul(x, w) m = ReduceSum<keepdims=1>(w) y = Add(a, m)", w=(12, 10)),
        "its weight is read by 'm' (ReduceSum), too, which stays as it is",
    ),
    "read by a layer that stays": (
        graph("a = MatMul(x, w) left = MatMul(x, w) y = Add(a, left)", w=(12, 10)),
        "its weight is read by 'left' (MatMul), too, which stays as it is",
    ),
    "in another form": (
        graph("a = MatMul(x, w) b = Gemm<transB=1>(x, w) y = Add(a, b)", w=(12, 12)),
        "its weight is read by 'b' (Gemm), too, in another form",
    ),
    "two kernels": (
        graph(
            "a = Conv(x, w) b = Conv<strides=[2]>(x, w) c = ReduceMean(b) y = Add(a, c)",
            "float[N, 4, L] x",
            "float[N, 8, P] y",
            w=(8, 4, 3),
        ),
        "its weight is read by 'b' (Conv), too, in another form",
    ),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_reasons(name: str) -> None:
    model, reason = SKIPPED[name]
    layers, skipped = found(model, "left")
    assert not layers
    assert reason in [skip.reason for skip in skipped]


def test_initializers_that_are_inputs_stay() -> None:
    model = graph("y = MatMul(x, w)", w=(12, 10))
    model.ir.graph.inputs.append(model.ir.graph.initializers["w"])
    (skip,) = found(model)[1]
    assert (
        skip.reason == "its weight is an input of the model, too; put the pass 'cleanup' in front"
    )


def test_layers_inside_of_bodies_stay() -> None:
    body = """
        y = If (c) <
            then_branch = yes () => (float[N, 10] a) { a = MatMul(x, w) },
            else_branch = no () => (float[N, 10] b) { b = MatMul(x, w) }
        >
    """
    layers, skipped = found(graph(body, f"{ROWS}, bool c", w=(12, 10)))
    assert not layers
    assert [(s.node, s.reason) for s in skipped] == [
        (node, "it lies inside the body of an If or a loop") for node in ("a", "b")
    ]


def test_a_weight_that_a_body_reads_stays() -> None:
    body = """
        m = MatMul(x, w)
        r = If (c) <
            then_branch = yes () => (float[N, 10] a) { a = MatMul(x, w) },
            else_branch = no () => (float[N, 10] b) { b = Identity(m) }
        >
        y = Add(m, r)
    """
    layers, skipped = found(graph(body, f"{ROWS}, bool c", w=(12, 10)))
    assert not layers
    assert skipped[0] == Skip(
        "m", "MatMul", "its weight is read by 'a' (MatMul), too, which stays as it is"
    )


def test_layers_that_share_a_weight() -> None:
    body = "a = MatMul(x, w) b = Gemm(a, w) c = MatMul(b, v) y = MatMul(c, w)"
    layers, skipped = found(graph(body, w=(12, 12), v=(12, 12)))
    assert not skipped
    shared = sharing(layers)
    assert {w: [x.output for x in several] for w, several in shared.items()} == {
        "w": ["a", "b", "y"]
    }


def test_a_layer_twice_over_the_same_input_shares_it() -> None:
    layers, _ = found(
        graph("a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)", w=(12, 10), v=(12, 10))
    )
    assert [x.input for x in layers] == ["x", "x"]


SIZES = {
    "free": ("float[N, S, 12] x", "float[N, S, K] y", 1),
    "known": ("float[N, 7, 12] x", "float[N, 7, K] y", 7),
    "all known": ("float[2, 7, 12] x", "float[2, 7, K] y", 7),
    "unknown rank": ("float[N, 12] x", "float[N, K] y", 1),
}


@pytest.mark.parametrize("name", SIZES)
def test_cost_of_products(name: str) -> None:
    inputs, output, places = SIZES[name]
    assert only(graph("y = MatMul(x, w)", inputs, output, w=(12, 10))).macs == places * 120


def test_cost_of_rows_that_were_flattened() -> None:
    body = "r = Reshape<allowzero=0>(x, s) y = MatMul(r, w)"
    model = graph(body, "float[2, 7, 12] x", "float[14, 10] y", s=(0,), w=(12, 10))
    model.ir.graph.initializers["s"].const_value = ir.tensor(np.array([14, 12]), name="s")
    model.ir.graph.initializers["s"].dtype = ir.DataType.INT64
    model.ir.graph.initializers["s"].shape = ir.Shape([2])
    assert only(model).macs == 7 * 120


@pytest.mark.parametrize(
    ("space", "lengths", "places"),
    [
        ("9, 8", ((9, 8), (5, 8)), 40),
        ("H, 8", ((), ()), 8),
        ("H, W", ((), ()), 1),
    ],
)
def test_cost_and_lengths_of_convolutions(
    space: str, lengths: tuple[tuple[int, ...], tuple[int, ...]], places: int
) -> None:
    body = "r = Relu(x) c = Conv<pads=[1,1,1,1], strides=[2,1]>(r, w) y = Relu(c)"
    layer = only(graph(body, f"float[N, 4, {space}] x", "float[N, 6, P, Q] y", w=(6, 4, 3, 3)))
    assert layer.lengths == lengths
    assert layer.macs == places * 6 * 4 * 9


def test_inferring_shapes_leaves_the_model_alone() -> None:
    model = graph("r = Relu(x) y = MatMul(r, w)", w=(12, 10))
    before = model.to_bytes()
    found(model)
    assert model.to_bytes() == before


DEPTHWISE = "one input channel in a group: nothing to factorize"
BODY = "it lies inside the body of an If or a loop"
GIVEN = "its weight is an input of the model, too; put the pass 'cleanup' in front"
# Layers and reasons: of the file, and behind the pass 'cleanup'.
REAL: dict[str, tuple[tuple[dict[str, int], dict[str, int]], ...]] = {
    "resnet20_cifar10.onnx": (({"Conv": 19, "Gemm": 1}, {}), ({"Conv": 19, "Gemm": 1}, {})),
    "mobilenet_v1_075_224.onnx": (({"Conv": 15}, {DEPTHWISE: 13}), ({"Conv": 15}, {DEPTHWISE: 13})),
    "ultraface_version-RFB-320.onnx": (({}, {GIVEN: 52}), ({"Conv": 34}, {DEPTHWISE: 18})),
    "silero_vad.onnx": (({}, {BODY: 12}), ({}, {BODY: 12})),
}


@pytest.mark.parametrize("cleaned", [False, True], ids=["", "cleaned"])
@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str, cleaned: bool, shared: Callable[[str], Path]) -> None:
    model = Model.load(shared(name)).inlined()
    if cleaned:
        model = make_pass("cleanup", {}).run(model, Context()).model
    layers, skipped = found(model)
    assert (Counter(x.op for x in layers), Counter(s.reason for s in skipped)) == REAL[name][
        cleaned
    ]
    # What is known of a convolution's lengths tells how often its weight is used.
    for layer in (layer for layer in layers if layer.op == "Conv"):
        assert layer.macs == layer.parameters * math.prod(layer.lengths[1])
