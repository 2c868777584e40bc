"""Q/DQ graphs: operators on int8 with the scales of the graph, within a step of onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress import litert_writer
from edgecompress.litert_writer import translate
from edgecompress.model import Model
from tests.litert_writer.running import F, assert_equal, codes, litert, normal, one_op
from tests.models import from_text
from tests.running import run

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

X4 = normal(1, 6, 8, 10)
HELPERS = {"QUANTIZE", "DEQUANTIZE", "TRANSPOSE", "RESHAPE", "PAD", "PADV2"}


def ranges(array: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point that hold all values of an array, and 0."""
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    scale = F((high - low) / 255)
    lowest = 0 if kind == "uint8" else -128
    return np.array(scale, F), np.array(
        np.clip(round(-low / scale) + lowest, lowest, lowest + 255), kind
    )


def between_pairs(
    node: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    weight: str = "",
    axis: int | None = 0,
    kind: str = "uint8",
    last: str = "y",
) -> tuple[Model, float]:
    """The node between Q/DQ pairs at all inputs and its output, and the step of the output.

    ``weight`` names a constant that is stored as int8, per channel along ``axis``; ``b`` is a bias
    and stored as int32.
    """
    constants = dict(constants or {})
    plain = one_op(node, inputs, constants)
    made = run(plain, inputs)[last]
    lines, held, renamed = [], dict(constants), node
    for name, array in {**inputs, "y": made}.items():
        held[f"{name}_s"], held[f"{name}_z"] = ranges(array, kind)
    for name in inputs:
        lines.append(f"{name}_q = QuantizeLinear({name}, {name}_s, {name}_z)")
        lines.append(f"{name}_d = DequantizeLinear({name}_q, {name}_s, {name}_z)")
        renamed = _renamed(renamed, name, f"{name}_d")
    if weight:
        scale = _store_weight(held, weight, axis)
        rows = f"<axis={axis}>" if axis is not None else ""
        lines.append(f"{weight}_d = DequantizeLinear{rows}({weight}_i, {weight}_s, {weight}_z)")
        renamed = _renamed(renamed, weight, f"{weight}_d")
        if "b" in held:
            product = (held["x_s"] * scale).astype(F)
            held["b_i"] = np.round(held.pop("b") / product).astype(np.int32)
            held["b_s"], held["b_z"] = product, np.zeros(product.shape, np.int32)
            lines.append("b_d = DequantizeLinear<axis=0>(b_i, b_s, b_z)")
            renamed = _renamed(renamed, "b", "b_d")
    renamed = _renamed(renamed, "y", "y_f")
    lines += [renamed, "y_q = QuantizeLinear(y_f, y_s, y_z)", "y = DequantizeLinear(y_q, y_s, y_z)"]
    return one_op("  ".join(lines), inputs, held), float(held["y_s"])


def _store_weight(held: dict[str, np.ndarray], weight: str, axis: int | None) -> np.ndarray:
    array = held.pop(weight)
    others = None if axis is None else tuple(a for a in range(array.ndim) if a != axis)
    scale = np.asarray(np.abs(array).max(axis=others) / 127, F)
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    wide = scale.reshape(shape) if axis is not None else scale
    held[f"{weight}_i"] = np.round(array / wide).astype(np.int8)
    held[f"{weight}_s"], held[f"{weight}_z"] = scale, np.zeros(scale.shape, np.int8)
    return scale


def _renamed(text: str, name: str, new: str) -> str:
    import re

    return re.sub(rf"\b{name}\b", new, text)


def assert_within_a_step(
    model: Model, feeds: Mapping[str, np.ndarray], step: float, *, steps: float = 1.0
) -> None:
    """The same but for rounding; and everything but the edges of the file is int8."""
    found = translate(model)
    assert not found.refused
    assert all(each.integer for each in found.operators if each.code not in HELPERS)
    want, got = run(model, feeds)["y"], litert(model, feeds)["y"]
    assert np.abs(got - want).max() <= steps * step * 1.001
    assert np.ptp(want) > 10 * step  # it is not all the same number


CASES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "Add": ("y = Add(x, z)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1, scale=3)}, {}),
    "Sum": ("y = Sum(x, z)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1, scale=3)}, {}),
    "Add and Relu": ("a = Add(x, z)  y = Relu(a)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1)}, {}),
    "Sub": ("y = Sub(x, z)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1)}, {}),
    "Mul": ("y = Mul(x, z)", {"x": X4, "z": normal(1, 6, 1, 1, seed=1)}, {}),
    "Relu": ("y = Relu(x)", {"x": X4}, {}),
    "LeakyRelu": ("y = LeakyRelu<alpha=0.1>(x)", {"x": X4}, {}),
    "Sigmoid": ("y = Sigmoid(x)", {"x": X4 * 3}, {}),
    "Tanh": ("y = Tanh(x)", {"x": X4}, {}),
    "Gelu": ("y = Gelu(x)", {"x": X4}, {}),
    "Softmax": ("y = Softmax(x)", {"x": X4 * 3}, {}),
    "MaxPool": ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", {"x": X4}, {}),
    "AveragePool": ("y = AveragePool<kernel_shape=[2,2]>(x)", {"x": X4}, {}),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", {"x": X4 + normal(6, 1, 1)}, {}),
    "ReduceMean": ("y = ReduceMean(x, c)", {"x": X4}, {"c": np.array([1])}),
    "Concat": ("y = Concat<axis=1>(x, z)", {"x": X4, "z": normal(1, 2, 8, 10, scale=2)}, {}),
    "Pad": ("y = Pad(x, c)", {"x": X4}, {"c": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Reshape": ("y = Reshape(x, c)", {"x": X4}, {"c": np.array([6, -1])}),
    "Transpose": ("y = Transpose<perm=[0,2,3,1]>(x)", {"x": X4}, {}),
    "Slice": ("y = Slice(x, a, b)", {"x": X4}, {"a": np.array([0, 1]), "b": np.array([1, 5])}),
    "Resize": ('y = Resize<mode="nearest">(x, , s)', {"x": X4}, {"s": np.array([1, 1, 2, 2], F)}),
    "MatMul of two": ("y = MatMul(x, z)", {"x": normal(2, 3, 8), "z": normal(2, 8, 4)}, {}),
}


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("case", CASES)
def test_within_a_step(case: str, kind: str) -> None:
    node, inputs, constants = CASES[case]
    model, step = between_pairs(node, inputs, constants, kind=kind)
    # A fixed scale of the output, or one of the input, is another rounding on the way.
    twice = {"Softmax", "Sigmoid", "Tanh", "AveragePool", "Concat", "Gelu"}
    assert_within_a_step(model, inputs, step, steps=2 if case in twice else 1)


LAYERS: dict[str, tuple[str, np.ndarray, dict[str, np.ndarray], int]] = {
    "Conv": (
        "y = Conv<pads=[1,1,1,1]>(x, w, b)",
        X4,
        {"w": normal(4, 6, 3, 3, scale=0.2), "b": normal(4)},
        0,
    ),
    "Conv, Relu6": (
        "c = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w, b)  y = Clip(c, lo, hi)",
        X4,
        {
            "w": normal(4, 6, 3, 3, scale=0.2),
            "b": normal(4),
            "lo": np.array(0, F),
            "hi": np.array(6, F),
        },
        0,
    ),
    "depthwise Conv": (
        "y = Conv<group=6, pads=[1,1,1,1]>(x, w, b)",
        X4,
        {"w": normal(6, 1, 3, 3, scale=0.5), "b": normal(6)},
        0,
    ),
    "Conv without bias": ("y = Conv(x, w)", X4, {"w": normal(4, 6, 1, 1)}, 0),
    "Conv of one axis": ("y = Conv(x, w)", normal(1, 6, 20), {"w": normal(4, 6, 3)}, 0),
    "Gemm": (
        "y = Gemm<transB=1>(x, w, b)",
        normal(3, 16),
        {"w": normal(10, 16), "b": normal(10)},
        0,
    ),
    "MatMul": ("y = MatMul(x, w)", normal(2, 3, 16), {"w": normal(16, 10)}, 1),
    "MatMul, bias": (
        "m = MatMul(x, w)  y = Add(m, k)",
        normal(2, 3, 16),
        {"w": normal(16, 10), "k": normal(10)},
        1,
    ),
}


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", LAYERS)
def test_layers_within_a_step(case: str, per_channel: bool) -> None:
    node, x, constants, axis = LAYERS[case]
    if not per_channel:
        constants = {name: a for name, a in constants.items() if name != "b"}
        node = node.replace(", b)", ")")
    model, step = between_pairs(
        node, {"x": x}, constants, weight="w", axis=axis if per_channel else None
    )
    assert_within_a_step(model, {"x": x}, step)


@settings(max_examples=25)
@given(
    st.floats(1e-3, 10),
    st.integers(-128, 127),
    st.floats(1e-3, 10),
    st.integers(-128, 127),
    st.sampled_from(["uint8", "int8"]),
)
def test_scales_and_zero_points_are_those_of_the_graph(
    scale: float, zero: int, other: float, other_zero: int, kind: str
) -> None:
    shift = 128 if kind == "uint8" else 0
    held = {
        "a": np.array(scale, F),
        "b": np.array(zero + shift, kind),
        "c": np.array(other, F),
        "d": np.array(other_zero + shift, kind),
    }
    node = (
        "q = QuantizeLinear(x, a, b)  f = DequantizeLinear(q, a, b)"
        "  p = QuantizeLinear(f, c, d)  y = DequantizeLinear(p, c, d)"
    )
    x = normal(4, 50, scale=20 * scale)
    model = one_op(node, {"x": x}, held)
    want, got = run(model, {"x": x})["y"], litert(model, {"x": x})["y"]
    assert np.abs(want - got).max() <= other * 1.001


def test_a_value_that_floats_read_as_well_stays_float() -> None:
    inputs = {"x": X4}
    held = {
        "s": np.array(0.05, F),
        "z": np.array(128, np.uint8),
        "w_i": np.ones((4, 6, 1, 1), np.int8),
        "w_s": np.array(0.1, F),
        "w_z": np.array(0, np.int8),
    }
    model = one_op(
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
        "  w = DequantizeLinear(w_i, w_s, w_z)  c = Conv(d, w)  e = Exp(c)"
        "  p = QuantizeLinear(c, s, z)  f = DequantizeLinear(p, s, z)  y = Add(e, f)",
        inputs,
        held,
    )
    made = {each.code: each.integer for each in translate(model).operators}
    assert not made["CONV_2D"]
    assert_equal(model, inputs)


def test_layers_that_nothing_quantizes_behind_keep_small_weights() -> None:
    x = normal(4, 64)
    held = {
        "s": np.array(0.03, F),
        "z": np.array(128, np.uint8),
        "w_i": np.random.default_rng(0).integers(-127, 128, (64, 256)).astype(np.int8),
        "w_s": np.linspace(0.01, 0.02, 256).astype(F),
        "w_z": np.zeros(256, np.int8),
    }
    model = one_op(
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
        "  w = DequantizeLinear<axis=1>(w_i, w_s, w_z)  y = MatMul(d, w)",
        {"x": x},
        held,
    )
    found = translate(model)
    assert len(found.data) < 64 * 256 * 2
    assert any("compute in float on int8 weights" in note for note in found.notes)
    assert_equal(model, {"x": x})
    dynamic = translate(model, dynamic=True)
    assert any("while they run" in note for note in dynamic.notes)
    want, got = run(model, {"x": x})["y"], litert(model, {"x": x}, dynamic=True)["y"]
    assert np.corrcoef(want.ravel(), got.ravel())[0, 1] > 0.999


def test_weights_with_a_zero_point_become_floats() -> None:
    held = {"w": normal(4, 6, 1, 1)}
    model, step = between_pairs("y = Conv(x, w)", {"x": X4}, held, weight="w", axis=None)
    model.ir.graph.initializers["w_z"].const_value = ir.tensor(np.array(3, np.int8), name="w_z")
    found = translate(model)
    assert any("stayed float" in note for note in found.notes)
    want, got = run(model, {"x": X4})["y"], litert(model, {"x": X4})["y"]
    assert np.abs(want - got).max() <= step * 1.001


def test_weights_of_minus_128_are_noted() -> None:
    model, _ = between_pairs("y = Conv(x, w)", {"x": X4}, {"w": normal(4, 6, 1, 1)}, weight="w")
    lowest = np.full((4, 6, 1, 1), -128, np.int8)
    model.ir.graph.initializers["w_i"].const_value = ir.tensor(lowest, name="w_i")
    assert any("-128 became -127" in note for note in translate(model).notes)


def test_padding_of_integers_pads_with_the_zero_point() -> None:
    held = {"s": np.array(0.05, F), "z": np.array(100, np.uint8), "c": np.array([0, 1, 0, 2])}
    model = one_op(
        "q = QuantizeLinear(x, s, z)  p = Pad(q, c, z)  y = DequantizeLinear(p, s, z)",
        {"x": normal(3, 4)},
        held,
    )
    assert_equal(model, {"x": normal(3, 4)})
    assert codes(model) == ["QUANTIZE", "PAD", "DEQUANTIZE"]


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integers_at_the_edges_stay_what_they_are(kind: str) -> None:
    middle = 128 if kind == "uint8" else 0
    x = np.random.default_rng(0).integers(middle - 128, middle + 128, (3, 40)).astype(kind)
    held = {"s": np.array(0.05, F), "z": np.array(middle - 9, kind), "r": np.array(0.02, F)}
    text = "d = DequantizeLinear(x, s, z)  t = Tanh(d)  y = QuantizeLinear(t, r, z)"
    model = one_op(text, {"x": x}, held)
    assert model.signature.outputs[0].dtype == kind
    want, got = run(model, {"x": x})["y"], litert(model, {"x": x})["y"]
    assert got.dtype == want.dtype
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1


def test_tables_in_blocks_are_looked_up() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (7, 32)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.1, (7, 2)).astype(F)
    zeros = rng.integers(0, 256, (7, 2)).astype(np.uint8)
    text = """
        <ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (int64[2, 3] i, uint8[7, 32] t, float[7, 2] s{zero_in}) => (float[2, 3, 32] y)
        {{ y = com.microsoft.GatherBlockQuantized
            <bits=8, block_size=16, gather_axis=0, quantize_axis=1>(t, i, s{zero}) }}
    """
    feeds = {"i": np.array([[0, 6, 3], [3, 1, 2]])}
    for given_zeros in (True, False):
        more = {"z": zeros} if given_zeros else {}
        filled = text.format(zero=", z" if more else "", zero_in=", uint8[7, 2] z" if more else "")
        assert_equal(from_text(filled, t=table, s=scales, **more), feeds)


@pytest.mark.parametrize(
    ("node", "held", "reason"),
    [
        (
            "q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
            {"s": np.array(0.01, F), "z": np.array(0, np.int16)},
            "quantize activations to 8 bits",
        ),
        (
            "a, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(a, s, z)",
            {},
            "TFLite's integer kernels want ranges that are known",
        ),
        (
            "w = DequantizeLinear<axis=0, block_size=5>(i, s)  y = MatMul(x, w)",
            {"i": np.ones((10, 4), np.int8), "s": np.ones((2, 4), F)},
            "a scale per block",
        ),
    ],
)
def test_refused(node: str, held: dict[str, np.ndarray], reason: str) -> None:
    model = one_op(node, {"x": X4}, held, opset=21)
    refused = litert_writer.translate(model).refused
    assert reason in refused[0].reason
