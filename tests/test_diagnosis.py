"""Where errors are made, ranges that do not fit, dead channels, nodes worth keeping in float."""

from __future__ import annotations

import fnmatch
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx.utils import Extractor

from edgecompress.cli import main
from edgecompress.comparison import ChannelUse, Findings, NodeError, RangeUse, diagnose
from edgecompress.comparison.side_by_side import Setting
from edgecompress.diagnosis import worth_keeping
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text, small_cnn
from tests.running import X86, rows_of, run, sqnr_db, with_outputs

F = np.float32
HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(F)


def images(rows: int = 8) -> np.ndarray:
    return rand(rows, 3, 16, 16)


def perturbed(model: Model, name: str, factor: float = 1.2) -> Model:
    other = model.clone()
    other.set_initializer(name, np.asarray(other.initializer(name)) * F(factor))
    return other


def quantized(model: Model, folder: Path) -> Model:
    data = rows_of(folder, model, {"x": images()})
    return run_pass(make_pass("quantize", {}), model, Context(data, X86)).model


def look(
    original: Model, compressed: Model, folder: Path, arrays: Mapping[str, np.ndarray], **how: Any
) -> Findings:
    data = rows_of(folder, original, arrays)
    return diagnose(original, compressed, data, Setting(**how))


def by_value(found: Findings) -> dict[str, NodeError]:
    return {error.value: error for error in found.nodes}


# own errors


@pytest.mark.parametrize(("weight", "output"), [("w1", "c1"), ("w3", "c3"), ("w4", "y")])
def test_an_error_is_made_where_the_weights_changed(
    tmp_path: Path, weight: str, output: str
) -> None:
    model = small_cnn()
    other = perturbed(model, weight)
    errors = by_value(look(model, other, tmp_path, {"x": images()}))
    for value, error in errors.items():
        assert error.own_db == math.inf if value != output else error.own_db < 40
    a = run(with_outputs(model, [output]), {"x": images()})[output]
    b = run(with_outputs(other, [output]), {"x": images()})[output]
    assert errors[output].own_db == pytest.approx(sqnr_db(a, b), abs=0.01)


@pytest.mark.parametrize(("start", "output"), [("x", "c1"), ("r1", "c2"), ("r2", "c3")])
def test_own_errors_are_those_of_onnxruntime(tmp_path: Path, start: str, output: str) -> None:
    model = small_cnn()
    other = quantized(model, tmp_path)
    x = images()
    found = by_value(look(model, other, tmp_path, {"x": x}))[output]
    given = x if start == "x" else run(with_outputs(model, [start]), {"x": x})[start]
    whole = with_outputs(other, [start, output]) if start != "x" else with_outputs(other, [output])
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(whole.to_bytes()))
    part = Extractor(proto).extract_model([start], [output])
    expected = run(with_outputs(model, [output]), {"x": x})[output]
    session = _session(part)
    (got,) = session.run([output], {start: given})
    assert found.own_db == pytest.approx(sqnr_db(expected, got), abs=0.05)
    assert found.own_db > found.sqnr_db or start == "x"


def _session(proto: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def test_own_errors_do_not_depend_on_blocks(tmp_path: Path) -> None:
    model = small_cnn(channels=32)
    other = quantized(model, tmp_path)
    whole = by_value(look(model, other, tmp_path, {"x": images()}))
    parts = by_value(look(model, other, tmp_path, {"x": images()}, memory=2000))
    assert whole.keys() == parts.keys()
    for value, error in parts.items():
        assert error.own_noise == pytest.approx(whole[value].own_noise, rel=1e-6)
        assert error.noise == pytest.approx(whole[value].noise, rel=1e-6)
        assert error.gain is None  # no backward pass: the graph does not fit
        assert whole[value].gain is not None


def test_pairs_that_a_neighbour_needs_are_no_reason_to_keep_a_node(tmp_path: Path) -> None:
    model = small_cnn()
    errors = by_value(look(model, quantized(model, tmp_path), tmp_path, {"x": images()}))
    # The pair of the input goes with c1; that of r1 stays for c1; the sum has no weights.
    assert errors["c1"].avoidable_noise == errors["c1"].own_noise
    assert 0 < errors["c2"].avoidable_noise < errors["c2"].own_noise
    assert errors["s"].avoidable_noise == 0 < errors["s"].own_noise


def weight_only() -> tuple[Model, Model, float]:
    """MatMulNBits of ones that lie on its grid, but for one column that is off by a step."""
    text = "(float[N, 32] x, {}) => (float[N, 4] y)"
    levels = np.random.default_rng(0).integers(0, 16, (4, 32)).astype(np.uint8)
    packed = (levels[:, ::2] | (levels[:, 1::2] << 4)).reshape(4, 1, 16)
    weight = ((levels.astype(F) - 8) * F(0.1)).T.copy()
    changed = weight.copy()
    changed[:, 0] += F(0.1)
    compressed = from_text(
        f"{HEADER} g {text.format('uint8[4, 1, 16] q, float[4, 1] s')} "
        "{ y = com.microsoft.MatMulNBits<K=32, N=4, bits=4, block_size=32>(x, q, s) }",
        q=packed,
        s=np.full((4, 1), 0.1, F),
    )
    original = from_text(
        f"{HEADER} g {text.format('float[32, 4] w')} {{ y = MatMul(x, w) }}", w=changed
    )
    x = rand(9, 32)
    return original, compressed, sqnr_db(x @ changed, x @ weight)


def dynamic() -> tuple[Model, Model, float]:
    weight = np.random.default_rng(1).integers(-127, 128, (32, 4)).astype(np.int8)
    text = "(float[N, 32] x, {}) => (float[N, 4] y)"
    compressed = from_text(
        f"{HEADER} g {text.format('int8[32, 4] w, float s')} {{"
        "q, qs, qz = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, qz) "
        "f = Cast<to=1>(i) t = Mul(qs, s) y = Mul(f, t) }",
        w=weight,
        s=np.array(0.01, F),
    )
    original = from_text(
        f"{HEADER} g {text.format('float[32, 4] w')} {{ y = MatMul(x, w) }}",
        w=weight * F(0.01),
    )
    x = rand(9, 32)
    want, got = [], []
    for part in (x[:4], x[4:8], x[8:]):  # as the rows come
        low, high = min(part.min(), 0), max(part.max(), 0)
        step = (high - low) / 255
        zero = np.round(-low / step)
        level = np.clip(np.round(part / step) + zero, 0, 255)
        want.append(part @ (weight * F(0.01)))
        got.append((level - zero) * step @ (weight * F(0.01)))
    return original, compressed, sqnr_db(np.concatenate(want), np.concatenate(got))


def half() -> tuple[Model, Model, float]:
    weight = rand(32, 4, seed=2)
    text = "(float[N, 32] x, {} w) => (float[N, 4] y)"
    compressed = from_text(
        f"{HEADER} g {text.format('float16[32, 4]')} "
        "{ h = Cast<to=10>(x) a = MatMul(h, w) y = Cast<to=1>(a) }",
        w=weight.astype(np.float16),
    )
    original = from_text(
        f"{HEADER} g {text.format('float[32, 4]')} {{ y = MatMul(x, w) }}", w=weight
    )
    x = rand(9, 32)
    got = (x.astype(np.float16).astype(F) @ weight.astype(np.float16).astype(F)).astype(np.float16)
    return original, compressed, sqnr_db(x @ weight, got)


@pytest.mark.parametrize("form", [weight_only, dynamic, half])
def test_every_form_of_a_layer(
    form: Callable[[], tuple[Model, Model, float]], tmp_path: Path
) -> None:
    original, compressed, expected = form()
    found = look(original, compressed, tmp_path, {"x": rand(9, 32)})
    (error,) = found.nodes
    assert found.unmatched == 0
    assert error.own_db == pytest.approx(expected, abs=0.5)
    assert error.own_db == pytest.approx(error.sqnr_db, abs=0.01)  # there is nothing to inherit
    assert error.gain == pytest.approx(9 * error.noise / error.signal, rel=1.5)


def test_values_of_half_precision_are_fed_as_such(tmp_path: Path) -> None:
    text = "(float[N, 8] x, {0} w) => (float[N, 8] y)"
    original = from_text(
        f"{HEADER} g {text.format('float[8, 8]')} "
        "{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }",
        w=rand(8, 8),
    )
    compressed = from_text(
        f"{HEADER} g {text.format('float16[8, 8]')} {{ h = Cast<to=10>(x) a = MatMul(h, w) "
        "b = Relu(a) c = MatMul(b, w) y = Cast<to=1>(c) }",
        w=rand(8, 8).astype(np.float16),
    )
    errors = by_value(look(original, compressed, tmp_path, {"x": rand(6, 8)}))
    assert errors.keys() == {"a", "b", "y"}
    assert all(50 < e.own_db < 100 for e in errors.values())


BRANCHES = """
g (bool[1] c, float[N, 4] x, float[4, 4] w) => (float[N, 4] y) {
  f = Squeeze(c)
  h = Relu(x)
  i = If (f) <
    then_branch = t () => (float[N, 4] a) { m = MatMul(h, w) a = MatMul(m, w) },
    else_branch = e () => (float[N, 4] b) { b = MatMul(h, w) }
  >
  y = Neg(i)
}
"""


def test_a_branch_is_one_node(tmp_path: Path) -> None:
    model = from_text(HEADER + BRANCHES, w=rand(4, 4))
    found = look(
        model,
        perturbed(model, "w"),
        tmp_path,
        {"c": np.ones((5, 1), bool), "x": rand(5, 4)},
        rows=5,
    )
    errors = by_value(found)
    assert errors["h"].own_db == errors["y"].own_db == math.inf
    assert errors["i"].own_db == pytest.approx(errors["y"].sqnr_db)
    assert errors["i"].own_db < 20
    (keep,) = worth_keeping(model, perturbed(model, "w"), found)
    assert (keep.op, keep.share) == ("If", 1.0)


def test_without_a_gradient_the_power_at_the_node_counts(tmp_path: Path) -> None:
    model = from_text(
        f"""{HEADER} g (float[N, 4] x, float[4, 4] w, float[3, 4] other) => (float[N, 3] y) {{
            a = MatMul(x, w)
            y = com.microsoft.CDist<metric="euclidean">(a, other)
        }}""",
        w=rand(4, 4),
        other=rand(3, 4, seed=1),
    )
    other = perturbed(model, "w")
    found = look(model, other, tmp_path, {"x": rand(6, 4)})
    error = by_value(found)["a"]
    assert error.gain is None
    assert error.own_db == pytest.approx(10 * math.log10(1 / 0.2**2), abs=0.01)
    (keep,) = worth_keeping(model, other, found)
    assert (keep.basis, keep.share, keep.op) == ("node", 1.0, "MatMul")


def test_infinite_values_are_the_worst(tmp_path: Path) -> None:
    text = "(float[N, 4] x, {0} k) => (float[N, 4] y)"
    original = from_text(
        f"{HEADER} g {text.format('float')} {{ a = Mul(x, k) b = Neg(x) y = Sub(a, b) }}",
        k=np.array(1000, F),
    )
    compressed = from_text(
        f"{HEADER} g {text.format('float16')} {{ h = Cast<to=10>(x) a = Mul(h, k) b = Neg(h) "
        "c = Sub(a, b) y = Cast<to=1>(c) }",
        k=np.array(1000, np.float16),
    )
    found = look(original, compressed, tmp_path, {"x": np.full((3, 4), 100, F)})
    errors = by_value(found)
    assert errors["a"].sqnr_db == errors["a"].own_db == errors["y"].sqnr_db == -math.inf
    assert errors["b"].sqnr_db == math.inf
    kept = worth_keeping(original, compressed, found)
    assert {keep.node: keep.share for keep in kept} == {"a": 0.5, "y": 0.5}


def test_masks_of_infinity_are_no_error(tmp_path: Path) -> None:
    model = from_text(
        f"""{HEADER} g (float[N, 4] x, float[4, 4] w, float[4] far) => (float[N, 4] y) {{
            a = MatMul(x, w) m = Add(a, far) y = Softmax(m) }}""",
        w=rand(4, 4),
        far=np.array([0, 0, 0, -np.inf], F),
    )
    other = perturbed(model, "w", 1.1)
    found = look(model, other, tmp_path, {"x": rand(6, 4)})
    errors = by_value(found)
    assert errors["m"].own_db == math.inf
    assert 15 < errors["m"].sqnr_db < 25
    (keep,) = worth_keeping(model, other, found)
    assert (keep.node, keep.basis, keep.share) == ("a", "output", 1.0)


def test_a_batch_without_signal_counts_for_nothing(tmp_path: Path) -> None:
    model = small_cnn()
    for name in ("b1", "b2", "b3", "b4"):
        model.set_initializer(name, np.zeros_like(np.asarray(model.initializer(name))))
    x = images()
    x[:4] = 0
    found = by_value(look(model, perturbed(model, "w1"), tmp_path, {"x": x}))
    alone = by_value(look(model, perturbed(model, "w1"), tmp_path, {"x": x[4:]}))
    assert found["c1"].gain is not None
    assert found["c1"].gain > 0
    assert found["c1"].noise == pytest.approx(alone["c1"].noise)


# what reaches the output


def test_the_gain_is_the_error_at_a_single_output(tmp_path: Path) -> None:
    """Of a linear model the first order is all there is, and one output needs no random signs."""
    model = from_text(
        f"""{HEADER} g (float[N, 6] x, float[6, 5] w, float[5, 1] v) => (float[N, 1] y) {{
            a = MatMul(x, w) b = Neg(a) y = MatMul(b, v) }}""",
        w=rand(6, 5),
        v=rand(5, 1, seed=1),
    )
    x = rand(4, 6)
    errors = by_value(look(model, perturbed(model, "w"), tmp_path, {"x": x}))
    y = errors["y"]
    assert errors["a"].gain == pytest.approx(len(x) * y.noise / y.signal, rel=1e-4)
    assert errors["b"].gain == y.gain == 0


def test_gains_add_up_to_the_error_at_the_output(tmp_path: Path) -> None:
    model = small_cnn(seed=3, channels=16)
    x = images(64)
    found = by_value(look(model, quantized(model, tmp_path), tmp_path, {"x": x}))
    y = found["y"]
    told = sum(error.gain or 0 for error in found.values()) / len(x)
    assert told == pytest.approx(y.noise / y.signal, rel=0.6)


# worth keeping


def test_the_layer_that_hurts_most_comes_first(tmp_path: Path) -> None:
    model = small_cnn()
    for number, node in enumerate(model.ir.graph):
        node.name = f"node[{number}]"
    other = perturbed(perturbed(model, "w1", 1.01), "w3", 1.3)
    found = look(model, other, tmp_path, {"x": images()})
    best, *rest = worth_keeping(model, other, found)
    assert (best.node, best.op, best.basis) == ("node[4]", "Conv", "output")
    assert best.share > 0.9
    assert best.macs == 8 * 8 * 8 * 8
    assert all(keep.share < best.share for keep in rest)
    (pattern,) = tomllib.loads(best.line)
    assert fnmatch.fnmatchcase("node[4]", pattern)
    step = make_pass("quantize", {"nodes": tomllib.loads(best.line)})
    step.check_scopes(model.ir.graph)
    assert step.for_node(list(model.ir.graph)[4]) is None


def test_leaving_the_best_in_float_is_worth_what_was_told(tmp_path: Path) -> None:
    model = small_cnn(seed=1, channels=16)
    data = rows_of(tmp_path, model, {"x": images(32)})

    def at_output(nodes: dict[str, Any]) -> tuple[Findings, Model, float]:
        step = make_pass("quantize", {"nodes": nodes})
        other = run_pass(step, model, Context(data, X86)).model
        found = diagnose(model, other, data)
        y = by_value(found)["y"]
        return found, other, y.noise / y.signal

    found, other, before = at_output({})
    best = worth_keeping(model, other, found)[0]
    assert best.extra_bytes > 0
    *_, after = at_output(tomllib.loads(best.line))
    assert 1 - after / before == pytest.approx(best.share, abs=0.3)


def test_cheap_nodes_win_and_at_most_five_are_named(tmp_path: Path) -> None:
    width = 16
    layers = "".join(f"a{n + 1} = MatMul(a{n}, w{n}) " for n in range(7))
    arguments = ", ".join(f"float[{width}, {width}] w{n}" for n in range(7))
    weights = {f"w{n}": np.linalg.qr(rand(width, width, seed=n))[0] for n in range(7)}
    model = from_text(
        f"{HEADER} g (float[N, {width}] x, {arguments}) => (float[N, {width}] a7) "
        f"{{ a0 = Neg(x) {layers} }}",
        **weights,
    )
    other = model
    for n in range(7):
        other = perturbed(other, f"w{n}", 1 + 0.01 * (n + 1))
    kept = worth_keeping(model, other, look(model, other, tmp_path, {"x": rand(40, width)}))
    assert [keep.node for keep in kept] == ["a7", "a6", "a5", "a4", "a3"]
    assert kept[0].share == pytest.approx(49 / 140, abs=0.02)  # orthogonal: nothing is amplified


def test_a_layer_that_was_fused_has_the_name_of_the_compressed_graph(tmp_path: Path) -> None:
    text = "g (float[N, 3, 8, 8] x, float[4, 3, 1, 1] w, {}) => (float[N, 4, 8, 8] y)"
    factor = np.array([1, 2, 3, 4], F)
    model = from_text(
        f"{HEADER} {text.format('float[4, 1, 1] k')} "
        "{ [conv] c = Conv(x, w) [scale] y = Mul(c, k) }",
        w=rand(4, 3, 1, 1),
        k=factor.reshape(4, 1, 1),
    )
    fused = from_text(
        f"{HEADER} {text.format('float[4] b')} {{ [conv] y = Conv(x, w, b) }}",
        w=rand(4, 3, 1, 1) * factor.reshape(4, 1, 1, 1) * F(1.01),
        b=np.zeros(4, F),
    )
    found = look(model, fused, tmp_path, {"x": rand(6, 3, 8, 8)})
    assert found.unmatched == 1
    assert [error.node for error in found.nodes] == ["scale"]
    (keep,) = worth_keeping(model, fused, found)
    assert (keep.node, keep.op, keep.line) == ("conv", "Conv", '"conv" = false')


def test_nothing_is_worth_it_where_nothing_is_lost(tmp_path: Path) -> None:
    model = small_cnn()
    found = look(model, model.clone(), tmp_path, {"x": images()})
    assert worth_keeping(model, model.clone(), found) == []
    assert found.ranges == []
    assert {error.own_db for error in found.nodes} == {math.inf}


# ranges


def with_range(scale: float, zero: int, relu: bool = False) -> tuple[Model, Model]:
    original = from_text(
        f"{HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ h = {'Relu' if relu else 'Identity'}(x) "
        "y = Neg(h) }"
    )
    compressed = from_text(
        f"{HEADER} g (float[N, 4] x, float s, uint8 z) => (float[N, 4] y) {{ h = Identity(x) "
        "q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) y = Neg(d) }",
        s=np.array(scale, F),
        z=np.array(zero, np.uint8),
    )
    return original, compressed


@pytest.mark.parametrize(
    ("scale", "zero", "low", "high", "unused", "fault"),
    [
        (2 / 255, 128, 0, 0, 0.0, None),
        (1 / 255, 128, 0.25, 0.25, 0.0, "clips"),
        (1 / 255, 0, 0.5, 0, 0.0, "clips"),
        (10 / 255, 128, 0, 0, 0.8, "too wide"),
        (0.0, 128, 0.5, 0.5, 0.0, "no width"),
    ],
)
def test_ranges(
    tmp_path: Path, scale: float, zero: int, low: float, high: float, unused: float, fault: str
) -> None:
    x = np.linspace(-1, 1, 4000, dtype=F).reshape(1000, 4)[::20]
    found = look(*with_range(scale, zero), tmp_path, {"x": x})
    (use,) = found.ranges
    assert use.value == "h"
    assert use.low == pytest.approx(-zero * scale)
    assert use.high == pytest.approx((255 - zero) * scale)
    assert use.clipped_low / use.count == pytest.approx(low, abs=0.02)
    assert use.clipped_high / use.count == pytest.approx(high, abs=0.02)
    assert use.unused == pytest.approx(unused, abs=0.05)
    assert use.fault == fault


def test_a_quantizer_that_stands_for_a_relu_clips_nothing(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 400, dtype=F).reshape(100, 4)
    (use,) = look(*with_range(1 / 255, 0, relu=True), tmp_path, {"x": x}, rows=100).ranges
    assert (use.clipped_low, use.clipped_high, use.fault) == (0, 0, None)


def test_a_few_outliers_are_no_fault() -> None:
    few = RangeUse("v", 0, 1, 255, count=10_000, clipped_high=9, excess=1e6, first=0, last=255)
    slight = RangeUse("v", 0, 1, 255, count=100, clipped_high=9, excess=8, first=0, last=255)
    assert few.fault is slight.fault is None
    assert RangeUse("v", 0, 1, 255).unused is None


def test_a_constant_activation_uses_nothing_of_its_range(tmp_path: Path) -> None:
    (use,) = look(*with_range(2 / 255, 128), tmp_path, {"x": np.full((9, 4), 0.3, F)}).ranges
    assert (use.unused, use.fault) == (1.0, "too wide")


def test_ranges_per_channel_and_of_many_types(tmp_path: Path) -> None:
    original = from_text(f"{HEADER} g (float[N, 2] x) => (float[N, 2] y) {{ y = Neg(x) }}")
    compressed = from_text(
        f"{HEADER} g (float[N, 2] x, float[2] s, int16[2] z) => (float[N, 2] y) {{ "
        "q = QuantizeLinear<axis=1>(x, s, z) d = DequantizeLinear<axis=1>(q, s, z) y = Neg(d) }",
        s=np.array([1 / 32768, 0.1 / 32768], F),
        z=np.zeros(2, np.int16),
    )
    x = np.tile(np.linspace(-0.9, 0.9, 40, dtype=F)[:, None], 2)
    (use,) = look(original, compressed, tmp_path, {"x": x}, rows=40).ranges
    assert (use.clipped_low + use.clipped_high) / use.count == pytest.approx(0.5 * 8 / 9, abs=0.03)
    assert use.low == pytest.approx(-1)


# dead channels


def test_dead_channels(tmp_path: Path) -> None:
    model = small_cnn()
    bias = np.asarray(model.initializer("b1")).copy()
    bias[2] = -100
    model.set_initializer("b1", bias)
    other = model.clone()
    bias = bias.copy()
    bias[5] = -100
    other.set_initializer("b1", bias)
    weight = np.asarray(model.initializer("w4")).copy()
    weight[7] = 0
    other.set_initializer("w4", weight)
    found = look(model, other, tmp_path, {"x": images()})
    assert found.channels == [
        ChannelUse("c1", "Conv", 8, dead=(5,), dead_in_both=(2,)),
        ChannelUse("c2", "Conv", 8, dead=(5,), dead_in_both=(2,)),
        ChannelUse("y", "Gemm", 10, dead=(7,), dead_in_both=()),
    ]


def test_one_number_tells_nothing(tmp_path: Path) -> None:
    model = from_text(
        f"{HEADER} g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) {{ y = MatMul(x, w) }}",
        w=rand(4, 4),
    )
    assert look(model, model.clone(), tmp_path, {"x": rand(1, 4)}).channels == []


# the command


@pytest.fixture
def two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    model = small_cnn()
    model.save("a.onnx")
    other = quantized(model, tmp_path)
    other.set_initializer("r1_scale", np.asarray(other.initializer("r1_scale")) / F(8))
    other.save("b.onnx")
    np.savez("rows.npz", x=images(32))
    return tmp_path


def compare(*options: str) -> str:
    done = CliRunner().invoke(main, ["compare", "a.onnx", "b.onnx", "--data", "rows.npz", *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_text_names_faults_and_the_cure(two_files: Path) -> None:
    text = compare()
    assert max(map(len, text.splitlines())) <= 80
    assert "made here" in text
    assert "arrives" in text
    lines = text.splitlines()
    (fault,) = [line for line in lines if line.endswith("clips")]
    assert fault.startswith("r1 ")
    start = lines.index("[pass.nodes]")
    table = tomllib.loads("\n".join(lines[start:-3]).replace("[pass.nodes]", "[nodes]"))
    assert 1 <= len(table["nodes"]) <= 5
    assert set(table["nodes"].values()) == {False}
    assert "have no counterpart in B" in lines[-1]


def test_json_has_all_of_it(two_files: Path) -> None:
    found = json.loads(compare("--json"))
    fault, *_ = [fit for fit in found["ranges"] if fit["fault"]]
    assert fault["value"] == "r1"
    assert fault["clipped_high"] > 0.01
    assert all(float(node["own_db"]) > 0 for node in found["nodes"])
    assert found["dead_channels"] == [] or found["dead_channels"][0]["channels"] > 0
    assert found["keep_float"][0]["line"].endswith("= false")
    assert {node["basis"] for node in found["keep_float"]} == {"output"}
