"""The quantize pass: what its graphs hold and compute, and what the runtime makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgecompress import target
from edgecompress.constraints import Constraints, Int8Format
from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.errors import PassError, RecipeError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.runtimes import runtime_class
from edgecompress.torchgraph import to_torch
from tests.models import from_text, small_cnn
from tests.running import ARM, X86, rows_of, run, sqnr_db, with_outputs

Shared = Callable[[str], Path]
F = np.float32
LAYERS = ("Conv", "Gemm", "MatMul")
SYMMETRIC = replace(X86, int8=Int8Format("int8", activation_symmetric=True))
RUNTIME = runtime_class("onnxruntime")()


def images(rows: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 3, 16, 16)).astype(F)


def quantized(
    model: Model, data: CalibrationSet, constraints: Constraints = X86, **options: Any
) -> Applied:
    return run_pass(make_pass("quantize", options), model, Context(data, constraints))


def quantized_cnn(folder: Path, constraints: Constraints = X86, **options: Any) -> Applied:
    model = small_cnn()
    return quantized(model, rows_of(folder, model, {"x": images()}), constraints, **options)


def producer(value: ir.Value | None, op: str) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    assert node.op_type == op
    return node


def constant(node: ir.Node, position: int) -> np.ndarray:
    value = node.inputs[position]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def layers(model: Model) -> dict[str, ir.Node]:
    return {n.outputs[0].name or "": n for n in model.ir.graph if n.op_type in LAYERS}


def assert_integer_layer(node: ir.Node, activation: str, per_channel: bool = True) -> None:
    """Input behind a pair, int8 weight, int32 bias in steps of input scale x weight scale."""
    x, weight = (producer(v, "DequantizeLinear") for v in node.inputs[:2])
    assert constant(x, 2).dtype == activation
    whole, scales = constant(weight, 0), constant(weight, 1)
    assert whole.dtype == np.int8
    assert whole.min() >= -127
    assert not constant(weight, 2).any()
    axis = weight.attributes["axis"].value if per_channel else None
    assert scales.shape == ((whole.shape[axis],) if axis is not None else ())
    if len(node.inputs) > 2:
        bias = producer(node.inputs[2], "DequantizeLinear")
        assert constant(bias, 0).dtype == np.int32
        # rounded once to float32
        np.testing.assert_allclose(constant(bias, 1), constant(x, 1) * scales, rtol=1e-6)


# ---------------------------------------------------------------- a small network


@pytest.mark.parametrize(
    ("constraints", "name"), [(X86, "cpu-x86-64"), (ARM, "cpu-arm64")], ids=["x86", "arm"]
)
def test_every_layer_runs_on_integers(tmp_path: Path, constraints: Constraints, name: str) -> None:
    applied = quantized_cnn(tmp_path, constraints)
    assert constraints.int8 is not None
    assert len(applied.claimed) == 4
    for node in layers(applied.model).values():
        assert_integer_layer(node, constraints.int8.activation)
    coverage = RUNTIME.coverage(applied.model, applied.claimed, target.load(name))
    assert coverage.unfused == {}
    assert coverage.fused == 4


def test_the_result_is_described(tmp_path: Path) -> None:
    model = small_cnn()
    applied = quantized_cnn(tmp_path)
    assert applied.model.signature == model.signature
    assert applied.model.steps == ("quantize",)
    applied.model.check()
    assert [(c.node, c.op) for c in applied.changed] == [
        ("c1", "Conv"),
        ("c2", "Conv"),
        ("c3", "Conv"),
        ("s", "Add"),
        ("y", "Gemm"),
    ]
    weights = {"c1": "w1", "c2": "w2", "c3": "w3", "y": "w4"}
    for change in applied.changed:
        if change.node in weights:
            before = model.initializer(weights[change.node])
            channels = len(before)
            assert change.bytes_before == before.nbytes + 4 * channels
            assert change.bytes_after == before.size + 4 * channels + (4 + 4) * channels
    assert applied.notes["format"] == "uint8 activations, int8 weights per channel"
    assert applied.notes["layers"] == 4


def test_the_float_model_is_left_alone(tmp_path: Path) -> None:
    model = small_cnn()
    before = model.to_bytes()
    quantized(model, rows_of(tmp_path, model, {"x": images()}))
    assert model.to_bytes() == before


def test_no_float_weights_are_left(tmp_path: Path) -> None:
    applied = quantized_cnn(tmp_path)
    left = applied.model.ir.graph.initializers
    assert not {"w1", "w2", "w3", "w4", "b1", "b2", "b3", "b4"} & left.keys()
    floats = [v.const_value for v in left.values() if v.dtype == ir.DataType.FLOAT]
    assert max(t.size for t in floats if t is not None) == 10  # scales


@pytest.mark.parametrize("constraints", [X86, ARM, SYMMETRIC], ids=["x86", "arm", "symmetric"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_it_computes_nearly_the_same(tmp_path: Path, method: str, constraints: Constraints) -> None:
    applied = quantized_cnn(tmp_path, constraints, method=method)
    unseen = {"x": images(64, seed=1)}
    expected = run(small_cnn(), unseen)["y"]
    assert sqnr_db(expected, run(applied.model, unseen)["y"]) > 15


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weight_method", ["mse", "minmax"])
def test_weight_options(tmp_path: Path, weight_method: str, per_channel: bool) -> None:
    applied = quantized_cnn(tmp_path, weight_method=weight_method, per_channel=per_channel)
    for node in layers(applied.model).values():
        assert_integer_layer(node, "uint8", per_channel)
    x = {"x": images(16)}
    assert sqnr_db(run(small_cnn(), x)["y"], run(applied.model, x)["y"]) > 15


def test_seven_bits_where_the_kernels_saturate(tmp_path: Path) -> None:
    applied = quantized_cnn(tmp_path, replace(X86, int8=Int8Format(weight_bits=7)))
    for node in layers(applied.model).values():
        whole = constant(producer(node.inputs[1], "DequantizeLinear"), 0)
        assert np.abs(whole).max() == 63


def test_symmetric_activations_have_their_zero_in_the_middle(tmp_path: Path) -> None:
    applied = quantized_cnn(tmp_path, SYMMETRIC)
    quantizers = [n for n in applied.model.ir.graph if n.op_type == "QuantizeLinear"]
    assert {int(constant(n, 2)) for n in quantizers} == {0}
    assert {n.inputs[0].name for n in quantizers} >= {"c1", "r1", "c2", "r2"}


@pytest.mark.parametrize("constraints", [X86, ARM], ids=["x86", "arm"])
def test_torch_and_onnxruntime_agree_within_a_step(
    tmp_path: Path, constraints: Constraints
) -> None:
    applied = quantized_cnn(tmp_path, constraints)
    pairs = {
        n.outputs[0].name: float(constant(n, 1))
        for n in applied.model.ir.graph
        if n.op_type == "DequantizeLinear" and n.inputs[0].producer() is not None
    }
    assert len(pairs) >= 5
    x = images(8, seed=2)
    ours: dict[str, np.ndarray] = {}

    def observe(name: str, values: torch.Tensor) -> None:
        ours[name] = values.numpy().copy()

    with torch.inference_mode():
        graph = to_torch(applied.model)
        graph({"x": torch.from_numpy(x)}, observe=observe, watch=[*pairs, "y"], outputs=())
    shown = with_outputs(applied.model, list(pairs))
    theirs = run(shown, {"x": x})
    for name, step in pairs.items():
        assert np.abs(ours[name] - theirs[name]).max() <= step * 1.001
    # Integer kernels round once more, at the end of each layer.
    fused = run(applied.model, {"x": x}, optimize=True, s8=constraints is ARM)
    assert sqnr_db(ours["y"], fused["y"]) > 30


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (quantized_cnn(tmp_path).model.to_bytes() for _ in range(2))
    assert first == second


def test_the_graph_output_keeps_its_name(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3, 16, 16] x, float[2, 3, 1, 1] w) => (float[N, 2, 16, 16] y) {
            y = Conv(x, w)
        }""",
        w=np.random.default_rng(0).normal(0, 1, (2, 3, 1, 1)).astype(F),
    )
    applied = quantized(model, rows_of(tmp_path, model, {"x": images(4)}))
    assert applied.model.signature == model.signature
    assert producer(applied.model.ir.graph.outputs[0], "DequantizeLinear")
    x = {"x": images(4)}
    assert sqnr_db(run(model, x)["y"], run(applied.model, x)["y"]) > 30
    coverage = RUNTIME.coverage(applied.model, applied.claimed, target.load("cpu-x86-64"))
    assert coverage.fused == 1


# ---------------------------------------------------------------- what the recipe leaves out


def test_a_node_left_out_stays_float(tmp_path: Path) -> None:
    applied = quantized_cnn(tmp_path, nodes={"c3": False})
    node = layers(applied.model)["c3"]
    assert node.inputs[1].name == "w3"
    # Its bias is fine integers, so that onnxruntime does not round the weight after all.
    assert constant(producer(node.inputs[2], "DequantizeLinear"), 0).dtype == np.int32
    x = images(4)
    plain, optimized = (run(applied.model, {"x": x}, optimize=o)["y"] for o in (False, True))
    assert sqnr_db(plain, optimized) > 25
    assert ("c3", "left out by the recipe") in [(s.node, s.reason) for s in applied.skipped]
    coverage = RUNTIME.coverage(applied.model, applied.claimed, target.load("cpu-x86-64"))
    assert (coverage.claimed, coverage.fused, coverage.unfused) == (3, 3, {})


def test_an_operator_left_out_stays_float(tmp_path: Path) -> None:
    applied = quantized_cnn(tmp_path, ops={"Conv": False})
    assert [c.op for c in applied.changed] == ["Gemm"]
    assert len([s for s in applied.skipped if s.op == "Conv"]) == 3


def test_options_of_one_node(tmp_path: Path) -> None:
    applied = quantized_cnn(
        tmp_path, nodes={"c2": {"per_channel": False, "bias_correction": False}}
    )
    assert_integer_layer(layers(applied.model)["c2"], "uint8", per_channel=False)
    assert_integer_layer(layers(applied.model)["c3"], "uint8", per_channel=True)
    assert not corrected(applied.model, "c2", "b2")
    assert corrected(applied.model, "c3", "b3")
    alone = quantized_cnn(tmp_path, bias_correction=False, nodes={"c3": {"bias_correction": True}})
    assert not corrected(alone.model, "c2", "b2")
    assert corrected(alone.model, "c3", "b3")


def corrected(model: Model, layer: str, bias: str) -> bool:
    node = producer(layers(model)[layer].inputs[2], "DequantizeLinear")
    plain = np.rint(small_cnn().initializer(bias).astype(np.float64) / constant(node, 1))
    return not np.array_equal(constant(node, 0), plain)


def test_a_pattern_without_a_match(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the pattern 'conv\*' matches no node"):
        quantized_cnn(tmp_path, nodes={"conv*": False})


# ---------------------------------------------------------------- bias correction


def channel_means(model: Model, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    found = run(with_outputs(model, names), {"x": x})
    axes = {name: (0, 2, 3) if found[name].ndim == 4 else 0 for name in names}
    return {name: found[name].astype(np.float64).mean(axes[name]) for name in names}


def test_bias_correction_moves_the_means_back(tmp_path: Path) -> None:
    x, names = images(64), ["r1", "r2", "c3", "y"]  # behind the activations, where it counts
    coarse = replace(X86, int8=Int8Format(weight_bits=7))
    model = small_cnn()
    data = rows_of(tmp_path, model, {"x": x})
    shifts: dict[bool, np.ndarray] = {}
    for correct in (False, True):
        applied = quantized(
            model, data, coarse, bias_correction=correct, bias_rows=64, per_channel=False
        )
        means = channel_means(applied.model, names, x)
        expected = channel_means(model, names, x)
        shifts[correct] = np.concatenate([np.abs(means[n] - expected[n]) for n in names])
    assert shifts[True].mean() < 0.25 * shifts[False].mean()
    # Shifts that were small to begin with may grow by the rounding of the bias and the rest.
    assert np.mean(shifts[True] <= shifts[False]) > 0.8


def test_layers_without_bias_get_one_only_for_correction(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3, 16, 16] x, float[2, 3, 1, 1] w, float[2] y_bias) => (float[N, 2, 16, 16] y)
        {
            c = Conv(x, w)
            y = Conv(c, v, y_bias)
        }""".replace(
            "float[2] y_bias)", "float[2] y_bias, float[2, 2, 1, 1] v, float[2] c_bias)"
        ).replace("c = Conv(x, w)", "e = Abs(c_bias) c = Conv(x, w)"),
        w=np.random.default_rng(0).normal(0, 1, (2, 3, 1, 1)).astype(F),
        v=np.random.default_rng(1).normal(0, 1, (2, 2, 1, 1)).astype(F),
        y_bias=np.ones(2, F),
        c_bias=np.ones(2, F),
    )
    data = rows_of(tmp_path, model, {"x": images(8)})
    plain = layers(quantized(model, data, bias_correction=False).model)
    assert len(plain["c"].inputs) == 2
    applied = quantized(model, data)
    node = layers(applied.model)["c"]
    assert_integer_layer(node, "uint8")
    # The name that it would have had is taken by something else.
    np.testing.assert_array_equal(applied.model.initializer("c_bias"), np.ones(2))
    assert "c_bias_2_quantized" in applied.model.ir.graph.initializers


# ---------------------------------------------------------------- hard weights and rows


def test_a_dead_channel_stays_at_its_bias(tmp_path: Path) -> None:
    model = small_cnn()
    weight = np.array(model.initializer("w1"))
    weight[3] = 0
    model.set_initializer("w1", weight)
    applied = quantized(model, rows_of(tmp_path, model, {"x": images()}))
    x = images(4, seed=3)
    found = run(with_outputs(applied.model, ["c1"]), {"x": x})["c1"][:, 3]
    np.testing.assert_allclose(found, model.initializer("b1")[3], atol=1e-6)


def test_tiny_weights_do_not_let_the_bias_overflow(tmp_path: Path) -> None:
    model = small_cnn()
    weight, bias = np.array(model.initializer("w1")), np.array(model.initializer("b1"))
    weight[2] *= 1e-12
    weight[4] *= 1e-38
    bias[[2, 4]] = 0.7, -0.5
    model.set_initializer("w1", weight)
    model.set_initializer("b1", bias)
    applied = quantized(model, rows_of(tmp_path, model, {"x": images()}))
    stored = producer(layers(applied.model)["c1"].inputs[2], "DequantizeLinear")
    assert np.abs(constant(stored, 0).astype(np.int64)).max() <= 2**30
    x = images(4, seed=3)
    found = run(with_outputs(applied.model, ["c1"]), {"x": x})["c1"]
    for channel, expected in ((2, 0.7), (4, -0.5)):
        np.testing.assert_allclose(found[:, channel], expected, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-25, -3.0])
def test_constant_rows(tmp_path: Path, value: float) -> None:
    model = small_cnn()
    x = np.full((4, 3, 16, 16), value, F)
    applied = quantized(model, rows_of(tmp_path, model, {"x": x}))
    assert all(np.isfinite(v.const_value.numpy()).all() for v in constants(applied.model))
    expected = run(model, {"x": x})["y"]
    np.testing.assert_allclose(
        run(applied.model, {"x": x})["y"], expected, atol=0.03 * np.abs(expected).max()
    )
    coverage = RUNTIME.coverage(applied.model, applied.claimed, target.load("cpu-x86-64"))
    assert coverage.unfused == {}


def constants(model: Model) -> list[Any]:
    return [v for v in model.ir.graph.initializers.values() if v.const_value is not None]


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_very_small_and_very_large_activations(tmp_path: Path, scale: float) -> None:
    model = small_cnn()
    for name in ("b1", "b2", "b3", "b4"):
        model.set_initializer(name, model.initializer(name) * F(scale))
    model.set_initializer("six", np.array(6 * scale, F))
    x = images(8) * F(scale)
    applied = quantized(model, rows_of(tmp_path, model, {"x": x}))
    expected = run(model, {"x": x})["y"]
    assert sqnr_db(expected / F(scale), run(applied.model, {"x": x})["y"] / F(scale)) > 15


def test_layers_that_share_a_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3, 16, 16] x, float[3, 3, 1, 1] w, float[3] b) => (float[N, 3, 16, 16] y) {
            c = Conv(x, w, b)
            r = Relu(c)
            d = Conv(r, w, b)
            y = Conv(d, w)
        }""",
        w=rng.normal(0, 1, (3, 3, 1, 1)).astype(F),
        b=rng.normal(0, 1, 3).astype(F),
    )
    data = rows_of(tmp_path, model, {"x": images(8)})
    applied = quantized(model, data)
    found = layers(applied.model)
    stored = {n.inputs[1].producer().inputs[0].name for n in found.values()}
    assert len(stored) == 1
    for node in found.values():
        assert_integer_layer(node, "uint8")
    x = {"x": images(8)}
    assert sqnr_db(run(model, x)["y"], run(applied.model, x)["y"]) > 25
    # The weight is counted once, each bias for itself.
    sizes = [c.bytes_before for c in applied.changed]
    assert sizes == [9 * 4 + 3 * 4, 3 * 4, 3 * 4]
    partly = quantized(model, data, nodes={"y": False})
    assert "w" in partly.model.ir.graph.initializers
    assert len(partly.claimed) == 2


# ---------------------------------------------------------------- refusals


def test_an_old_opset_names_the_cure(tmp_path: Path) -> None:
    model = small_cnn()
    model.ir.opset_imports[""] = 11
    data = rows_of(tmp_path, model, {"x": images(2)})
    with pytest.raises(PassError, match=r"opset 13 or newer .*has 11\n.*'cleanup' in front"):
        quantized(model, data)


def test_a_target_without_integer_kernels(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="no int8 kernels"):
        quantized_cnn(tmp_path, Constraints(int8=None))


def test_data_are_needed() -> None:
    with pytest.raises(RecipeError, match="needs calibration data"):
        run_pass(make_pass("quantize", {}), small_cnn(), Context(constraints=X86))


def test_a_quantized_model_is_left_alone(tmp_path: Path) -> None:
    once = quantized_cnn(tmp_path).model
    data = rows_of(tmp_path, once, {"x": images(4)})
    with pytest.raises(PassError, match=r"quantized already: static QDQ \(int8\): 3 of 3 Conv"):
        quantized(once, data)


# ---------------------------------------------------------------- real models


def cifar(shared: Shared, folder: Path) -> tuple[Model, CalibrationSet]:
    model = Model.load(shared("resnet20_cifar10.onnx"))
    with np.load(shared("cifar10.npz")) as stored:
        pixels = stored["train_x"][:16]
    mean, std = F([0.485, 0.456, 0.406]), F([0.229, 0.224, 0.225])
    x = ((pixels / F(255) - mean) / std).transpose(0, 3, 1, 2).astype(F)
    return model, rows_of(folder, model, {"input": np.ascontiguousarray(x)})


def imagenet(shared: Shared, folder: Path) -> tuple[Model, CalibrationSet]:
    model = Model.load(shared("mobilenet_v1_075_224.onnx"))
    table = {"path": str(shared("imagenet/calib")), "rows": 16}
    spec = DataSpec(calibration=table, preprocess={"scale": 1 / 127.5, "offset": -1})
    return model, CalibrationSet.open(spec, model.signature, base=folder)


@pytest.mark.parametrize(
    ("make", "constraints", "name"),
    [
        (cifar, X86, "cpu-x86-64"),
        (cifar, ARM, "cpu-arm64"),
        (imagenet, X86, "cpu-x86-64"),
        (imagenet, ARM, "cpu-arm64"),
    ],
    ids=["resnet20-x86", "resnet20-arm", "mobilenet-x86", "mobilenet-arm"],
)
def test_real_models(
    shared: Shared, tmp_path: Path, make: Any, constraints: Constraints, name: str
) -> None:
    model, data = make(shared, tmp_path)
    applied = quantized(model, data, constraints)
    assert constraints.int8 is not None
    float_layers = [n for n in model.ir.graph if n.op_type in LAYERS]
    assert len(applied.claimed) == len(float_layers)
    for node in layers(applied.model).values():
        assert_integer_layer(node, constraints.int8.activation)
    coverage = RUNTIME.coverage(applied.model, applied.claimed, target.load(name))
    assert coverage.unfused == {}
    feeds = data.sample(8)
    (expected,) = run(model, feeds, optimize=True).values()
    (found,) = run(applied.model, feeds, optimize=True, s8=constraints is ARM).values()
    assert sqnr_db(expected, found) > 12
    assert np.mean(expected.argmax(1) == found.argmax(1)) >= 0.75
    if make is imagenet:
        assert applied.model.size_bytes <= 0.30 * model.size_bytes
