"""Every operator in float: what LiteRT computes is what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.litert_writer import known_operators, translate
from tests.litert_writer.running import F, assert_equal, codes, normal, one_op

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

X4 = normal(1, 6, 8, 10)
I = np.int64  # noqa: E741


def positive(*shape: int) -> np.ndarray:
    return np.abs(normal(*shape)) + F(0.5)


CASES: dict[str, tuple[str, dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "Add": ("y = Add(x, z)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1)}, {}),
    "Add channels": ("y = Add(x, c)", {"x": X4}, {"c": normal(6, 1, 1)}),
    "Sub scalar": ("y = Sub(x, c)", {"x": X4}, {"c": np.array(0.5, F)}),
    "Mul broadcast": ("y = Mul(x, z)", {"x": X4, "z": normal(8, 1, seed=1)}, {}),
    "Div": ("y = Div(x, z)", {"x": X4, "z": positive(1, 6, 8, 10)}, {}),
    "Pow 2": ("y = Pow(x, c)", {"x": X4}, {"c": np.array(2, F)}),
    "Pow": ("y = Pow(x, c)", {"x": positive(3, 4)}, {"c": np.array(1.7, F)}),
    "Sum of three": ("y = Sum(x, x, z)", {"x": X4, "z": normal(6, 1, 1)}, {}),
    "Sum": ("y = Sum(x, z)", {"x": X4, "z": normal(6, 1, 1)}, {}),
    "Max": ("y = Max(x, z)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1)}, {}),
    "Min": ("y = Min(x, z)", {"x": X4, "z": normal(1, 6, 8, 10, seed=1)}, {}),
    "Where": (
        "b = Greater(x, z)  y = Where(b, x, z)",
        {"x": X4, "z": normal(1, 6, 8, 10, seed=1)},
        {},
    ),
    "Comparisons": (
        (
            "a = Less(x, z) b = LessOrEqual(x, z) c = Equal(x, z) d = GreaterOrEqual(x, z)"
            " e = Or(a, c) f = And(b, d) g = Not(f) h = And(e, g) y = Cast<to=1>(h)"
        ),
        {"x": X4, "z": normal(1, 6, 8, 10, seed=1)},
        {},
    ),
    "Cast": ("y = Cast<to=1>(x)", {"x": np.arange(6, dtype=I).reshape(2, 3)}, {}),
    "Relu": ("y = Relu(x)", {"x": X4}, {}),
    "Relu6": (
        "y = Clip(x, a, b)",
        {"x": X4 * 5},
        {"a": np.array(0, F), "b": np.array(6, F)},
    ),
    "Clip": ("y = Clip(x, a, b)", {"x": X4}, {"a": np.array(-0.3, F), "b": np.array(0.7, F)}),
    "Clip below": ("y = Clip(x, a)", {"x": X4}, {"a": np.array(-0.3, F)}),
    "Sigmoid": ("y = Sigmoid(x)", {"x": X4}, {}),
    "Tanh": ("y = Tanh(x)", {"x": X4}, {}),
    "HardSwish": ("y = HardSwish(x)", {"x": X4 * 4}, {}),
    "HardSigmoid": ("y = HardSigmoid<alpha=0.1666667, beta=0.5>(x)", {"x": X4 * 4}, {}),
    "Elu": ("y = Elu(x)", {"x": X4}, {}),
    "LeakyRelu": ("y = LeakyRelu<alpha=0.1>(x)", {"x": X4}, {}),
    "PRelu": ("y = PRelu(x, c)", {"x": X4}, {"c": normal(6, 1, 1)}),
    "Erf": ("y = Erf(x)", {"x": X4 * 2}, {}),
    "Gelu": ("y = Gelu(x)", {"x": X4}, {}),
    "Gelu tanh": ('y = Gelu<approximate="tanh">(x)', {"x": X4}, {}),
    "Softmax": ("y = Softmax(x)", {"x": X4}, {}),
    "Softmax channels": ("y = Softmax<axis=1>(x)", {"x": X4}, {}),
    "MaxPool": ("y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": X4}, {}),
    "MaxPool padded": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        {"x": X4 - 9},
        {},
    ),
    "MaxPool ceil": (
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)",
        {"x": X4 - 9},
        {},
    ),
    "AveragePool": ("y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)", {"x": X4}, {}),
    "AveragePool same": (
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)",
        {"x": X4},
        {},
    ),
    "AveragePool padding does not count": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)",
        {"x": X4},
        {},
    ),
    "AveragePool padding counts": (
        (
            "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1],"
            " count_include_pad=1>(x)"
        ),
        {"x": X4},
        {},
    ),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", {"x": X4}, {}),
    "GlobalMaxPool": ("y = GlobalMaxPool(x)", {"x": X4}, {}),
    "Reshape": ("y = Reshape(x, c)", {"x": X4}, {"c": np.array([2, -1])}),
    "Flatten": ("y = Flatten(x)", {"x": X4}, {}),
    "Squeeze": ("y = Squeeze(x, c)", {"x": X4}, {"c": np.array([0])}),
    "Unsqueeze": ("y = Unsqueeze(x, c)", {"x": normal(3, 4)}, {"c": np.array([1])}),
    "Transpose": ("y = Transpose<perm=[0,2,3,1]>(x)", {"x": X4}, {}),
    "Transpose any": ("y = Transpose<perm=[3,0,2,1]>(x)", {"x": X4}, {}),
    "Concat": ("y = Concat<axis=1>(x, x, z)", {"x": X4, "z": normal(1, 2, 8, 10)}, {}),
    "Slice": (
        "y = Slice(x, a, b, c, d)",
        {"x": X4},
        {
            "a": np.array([1, -1]),
            "b": np.array([6, -99]),
            "c": np.array([1, 3]),
            "d": np.array([2, -2]),
        },
    ),
    "Split": (
        "a, b = Split<axis=1>(x, c)  y = Concat<axis=1>(b, a)",
        {"x": X4},
        {"c": np.array([2, 4])},
    ),
    "Pad": (
        "y = Pad(x, c, v)",
        {"x": X4},
        {"c": np.array([0, 1, 2, 0, 0, 0, 1, 3]), "v": np.array(0.5, F)},
    ),
    "Pad reflect": (
        'y = Pad<mode="reflect">(x, c)',
        {"x": X4},
        {"c": np.array([0, 0, 2, 1, 0, 0, 1, 3])},
    ),
    "Gather": (
        "y = Gather<axis=1>(x, c)",
        {"x": X4},
        {"c": np.array([0, -1, 2])},
    ),
    "Gather rows": (
        "y = Gather(t, i)",
        {"i": np.array([[2, 0], [1, 1]])},
        {"t": normal(3, 5)},
    ),
    "GatherND": ("y = GatherND(x, c)", {"x": normal(3, 4, 5)}, {"c": np.array([[0, 1], [-1, 2]])}),
    "Expand": ("y = Expand(x, c)", {"x": normal(3, 1)}, {"c": np.array([2, 1, 4])}),
    "Tile": ("y = Tile(x, c)", {"x": normal(3, 2)}, {"c": np.array([2, 2])}),
    "DepthToSpace": ("y = DepthToSpace<blocksize=2>(x)", {"x": normal(1, 8, 3, 4)}, {}),
    "SpaceToDepth": ("y = SpaceToDepth<blocksize=2>(x)", {"x": X4}, {}),
    "ReduceMean": ("y = ReduceMean<keepdims=0>(x, c)", {"x": X4}, {"c": np.array([1, -1])}),
    "ReduceSum": ("y = ReduceSum(x, c)", {"x": X4}, {"c": np.array([1])}),
    "ReduceMax": ("y = ReduceMax(x, c)", {"x": X4}, {"c": np.array([2])}),
    "ReduceMin": ("y = ReduceMin(x, c)", {"x": X4}, {"c": np.array([2])}),
    "ReduceProd": ("y = ReduceProd(x, c)", {"x": normal(3, 4)}, {"c": np.array([1])}),
    "ReduceL2": ("y = ReduceL2(x, c)", {"x": X4}, {"c": np.array([1])}),
    "ReduceSumSquare": ("y = ReduceSumSquare(x, c)", {"x": X4}, {"c": np.array([1])}),
    "ReduceMean all": ("y = ReduceMean(x)", {"x": X4}, {}),
    "ArgMax": ("y = ArgMax<axis=1>(x)", {"x": X4}, {}),
    "LayerNormalization": (
        "y = LayerNormalization(x, s, b)",
        {"x": normal(2, 5, 16)},
        {"s": normal(16), "b": normal(16, seed=1)},
    ),
    "LayerNormalization over two axes": (
        "y = LayerNormalization<axis=1>(x, s)",
        {"x": normal(2, 5, 16)},
        {"s": normal(5, 16)},
    ),
    "BatchNormalization": (
        "r = Relu(x)  y = BatchNormalization(r, s, b, m, v)",
        {"x": X4},
        {"s": normal(6), "b": normal(6, seed=1), "m": normal(6, seed=2), "v": positive(6)},
    ),
    "Resize nearest": (
        (
            'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",'
            ' nearest_mode="floor">(x, , s)'
        ),
        {"x": X4},
        {"s": np.array([1, 1, 2, 3], F)},
    ),
    "Resize nearest, default": (
        'y = Resize<mode="nearest">(x, , s)',
        {"x": X4},
        {"s": np.array([1, 1, 3, 2], F)},
    ),
    "Resize linear": (
        'y = Resize<mode="linear">(x, , s)',
        {"x": X4},
        {"s": np.array([1, 1, 2, 2], F)},
    ),
    "Resize linear, corners": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , s)',
        {"x": X4},
        {"s": np.array([1, 1, 2, 1.5], F)},
    ),
    "MatMul": ("y = MatMul(x, c)", {"x": normal(2, 3, 8)}, {"c": normal(8, 5)}),
    "MatMul, bias and Relu": (
        "m = MatMul(x, c)  a = Add(b, m)  y = Relu(a)",
        {"x": normal(2, 3, 8)},
        {"c": normal(8, 5), "b": normal(5)},
    ),
    "MatMul of two": ("y = MatMul(x, z)", {"x": normal(2, 3, 8), "z": normal(2, 8, 4)}, {}),
    "MatMul of two, broadcast": (
        "y = MatMul(x, z)",
        {"x": normal(2, 3, 4, 8), "z": normal(3, 8, 4)},
        {},
    ),
    "Gemm": ("y = Gemm(x, c, b)", {"x": normal(2, 8)}, {"c": normal(8, 5), "b": normal(5)}),
    "Gemm transposed": (
        "y = Gemm<transB=1, beta=0.5>(x, c, b)",
        {"x": normal(2, 8)},
        {"c": normal(5, 8), "b": normal(5)},
    ),
    "Conv of one axis": (
        "y = Conv<pads=[1,1], strides=[2]>(x, w, b)",
        {"x": normal(2, 3, 9)},
        {"w": normal(4, 3, 3), "b": normal(4)},
    ),
    "Conv in groups": (
        "y = Conv<group=2, pads=[1,1,1,1]>(x, w)",
        {"x": X4},
        {"w": normal(4, 3, 3, 3)},
    ),
    "Conv, BatchNormalization, Relu": (
        "c = Conv(x, w)  n = BatchNormalization(c, s, b, m, v)  y = Relu(n)",
        {"x": X4},
        {
            "w": normal(4, 6, 1, 1),
            "s": normal(4),
            "b": normal(4, seed=1),
            "m": normal(4, seed=2),
            "v": positive(4),
        },
    ),
    "ConvTranspose": (
        "y = ConvTranspose<strides=[2,2]>(x, w, b)",
        {"x": X4},
        {"w": normal(6, 4, 2, 2), "b": normal(4)},
    ),
    "ConvTranspose padded": (
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w)",
        {"x": X4},
        {"w": normal(6, 4, 3, 3)},
    ),
    "Identity": ("y = Identity(x)", {"x": X4}, {}),
    **{
        op: (f"y = {op}(x)", {"x": positive(3, 4)}, {})
        for op in [
            "Abs",
            "Ceil",
            "Cos",
            "Exp",
            "Floor",
            "Log",
            "Neg",
            "Round",
            "Sin",
            "Sqrt",
            "Reciprocal",
        ]
    },
}


@pytest.mark.parametrize("case", CASES)
def test_equals_onnxruntime(case: str) -> None:
    node, inputs, constants = CASES[case]
    assert_equal(one_op(node, inputs, constants), inputs)


def test_every_operator_has_a_case() -> None:
    text = " ".join(node for node, _, _ in CASES.values())
    absent = {op for op in known_operators() if f"{op}(" not in text and f"{op}<" not in text}
    assert absent == {"Constant", "Upsample", "Dropout", "QuantizeLinear", "DequantizeLinear"}


def test_operators_of_old_models() -> None:
    node = 'd = Dropout(x)  u = Upsample<mode="nearest">(d, s)  y = Softmax<axis=3>(u)'
    model = one_op(node, {"x": X4}, {"s": np.array([1, 1, 2, 2], F)}, opset=9)
    assert_equal(model, {"x": X4})


@settings(max_examples=40)
@given(
    st.integers(5, 12),
    st.integers(5, 12),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 2]),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.sampled_from(["plain", "depthwise", "multiplied"]),
)
def test_convolutions(
    height: int,
    width: int,
    stride: int,
    kernel: int,
    dilation: int,
    pads: tuple[int, ...],
    kind: str,
) -> None:
    reach = (kernel - 1) * dilation + 1
    if min(height + pads[0] + pads[2], width + pads[1] + pads[3]) < reach:
        return
    groups = 1 if kind == "plain" else 4
    out = {"plain": 6, "depthwise": 4, "multiplied": 8}[kind]
    x = normal(1, 4, height, width)
    constants = {"w": normal(out, 4 // groups, kernel, kernel, seed=1), "b": normal(out, seed=2)}
    node = (
        f"y = Conv<group={groups}, strides=[{stride},{stride}], pads={list(pads)},"
        f" dilations=[{dilation},{dilation}]>(x, w, b)"
    )
    assert_equal(one_op(node, {"x": x}, constants), {"x": x})


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_padding(auto_pad: str, stride: int) -> None:
    node = f'y = Conv<auto_pad="{auto_pad}", strides=[{stride},{stride}]>(x, w)'
    assert_equal(one_op(node, {"x": X4}, {"w": normal(4, 6, 3, 3)}), {"x": X4})


def test_padding_that_tflite_has_costs_no_operator() -> None:
    same = one_op("y = Conv<pads=[1,1,1,1]>(x, w)", {"x": X4}, {"w": normal(4, 6, 3, 3)})
    assert "PAD" not in codes(same)
    other = one_op(
        "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)", {"x": X4}, {"w": normal(4, 6, 3, 3)}
    )
    assert "PAD" in codes(other)


def test_channels_stay_last_between_layers() -> None:
    model = one_op(
        "a = Conv(x, w)  b = Relu(a)  c = MaxPool<kernel_shape=[2,2]>(b)  d = Add(c, k)"
        "  e = Concat<axis=1>(d, c)  f = Softmax<axis=1>(e)  y = GlobalAveragePool(f)",
        {"x": X4},
        {"w": normal(4, 6, 3, 3), "k": normal(4, 1, 1)},
    )
    assert codes(model).count("TRANSPOSE") == 1  # of the input; the output has one place
    assert_equal(model, {"x": X4})


def test_shapes_of_different_rank_meet_in_channels_last() -> None:
    inputs = {"x": X4, "z": normal(6, 6, 8), "k": normal(8)}
    model = one_op(
        "a = Conv(x, w)  b = Add(a, z)  y = Mul(b, k)", inputs, {"w": normal(6, 6, 3, 3)}
    )
    assert_equal(model, inputs)


@pytest.mark.parametrize(
    "text",
    [
        "d = Div(x, r) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        "d = Mul(x, q) e = Erf(d) a = Add(one, e) h = Mul(x, half) y = Mul(h, a)",
        "d = Div(x, r) e = Erf(d) a = Add(e, one) m = Mul(half, a) y = Mul(x, m)",
    ],
)
def test_gelu_written_out_is_one_operator(text: str) -> None:
    numbers = {"r": 2**0.5, "q": 0.5**0.5, "one": 1.0, "half": 0.5}
    constants = {name: np.array(v, F) for name, v in numbers.items() if name in text}
    model = one_op(text, {"x": X4}, constants)
    assert codes(model) == ["GELU"]
    assert_equal(model, {"x": X4})


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("y = Acosh(x)", "Acosh is not written to TFLite files"),
        ("y = Conv(x, z)", "only constants are written"),
        ("y = Slice(x, i, i)", "depends on values of the inputs"),
        ("y = Gemm<transA=1>(m, k)", "transA"),
    ],
)
def test_refused(case: str, reason: str) -> None:
    arrays: dict[str, Any] = {
        "x": X4,
        "z": normal(4, 6, 3, 3),
        "i": np.array([0, 0, 0, 0]),
        "m": normal(8, 2),
    }
    inputs = {name: a for name, a in arrays.items() if f"({name}" in case or f", {name}" in case}
    constants = {"k": normal(8, 5)} if "k)" in case else {}
    found = translate(one_op(case, inputs, constants))
    assert found.data == b""
    assert any(reason in each.reason for each in found.refused)


def test_every_refusal_is_told_at_once() -> None:
    model = one_op("a = Asin(x)  b = Relu(a)  c = Atanh(b)  y = Conv(c, z)", {"x": X4, "z": X4})
    refused = translate(model).refused
    assert [each.op for each in refused] == ["Asin", "Atanh", "Conv"]
