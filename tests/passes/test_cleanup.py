from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_tensor

from edgecompress.constraints import Constraints
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text, small_cnn

SHARED_MODELS = [
    "mobilenet_v1_075_224.onnx",
    "mobilenet_v2_cifar10_224.onnx",
    "resnet20_cifar10.onnx",
    "ultraface_version-RFB-320.onnx",
    "silero_vad.onnx",
    "nms_yolov8_head.onnx",
]
# Sizes and values where the signature leaves them open.
FEEDS = {
    "silero_vad.onnx": {"input": (1, 512), "state": (2, 1, 128), "sr": np.array(16000)},
    "nms_yolov8_head.onnx": {
        "detection": (1, 84, 200),
        "config": np.array([10, 0.5, 0.1], np.float32),
    },
}
F = np.float32


def clean(model: Model, **options: object) -> Applied:
    return run_pass(make_pass("cleanup", options), model, Context())


def outputs(model: Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    data = model.to_bytes()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_for(model: Model, known: dict[str, object] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in model.signature.inputs:
        value = (known or {}).get(spec.name)
        if value is None:
            value = tuple(d if isinstance(d, int) else 2 for d in spec.shape or ())
        if isinstance(value, tuple):
            value = rng.normal(0, 1, value).astype(spec.dtype)
        feeds[spec.name] = value
    return feeds


def assert_equal(a: Model, b: Model, feeds: dict[str, np.ndarray], relative: float) -> None:
    for want, got in zip(outputs(a, feeds), outputs(b, feeds), strict=True):
        assert want.shape == got.shape
        assert want.dtype == got.dtype
        scale = np.abs(want).max(initial=0) or 1
        assert np.abs(want - got).max(initial=0) <= relative * scale


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_real_models(shared: Callable[[str], Path], name: str) -> None:
    model = Model.load(shared(name))
    before = model.to_bytes()
    applied = clean(model)
    assert model.to_bytes() == before
    assert applied.model.signature == model.signature
    assert applied.model.steps == ("cleanup",)
    assert applied.notes["nodes_after"] <= applied.notes["nodes_before"]
    assert applied.model.size_bytes <= model.size_bytes + 1024  # shapes of all values
    # Folded scales are rounded to float32 once more: some 1e-7 in each of up to 50 layers.
    assert_equal(model, applied.model, feeds_for(model, FEEDS.get(name)), 1e-5)
    again = clean(applied.model)
    assert again.model is applied.model
    assert again.changed == ()
    assert clean(Model.load(shared(name))).model.to_bytes() == applied.model.to_bytes()


def test_old_exports_are_brought_up_to_date(shared: Callable[[str], Path]) -> None:
    model = Model.load(shared("ultraface_version-RFB-320.onnx"))
    applied = clean(model)
    assert (model.opset, applied.model.opset) == (9, 18)
    assert applied.model.ir.ir_version >= 8
    assert [v.name for v in applied.model.ir.graph.inputs] == ["input"]
    assert not {"BatchNormalization", "Constant", "Shape"} & ops(applied.model).keys()
    assert applied.notes == {"nodes_before": 242, "nodes_after": 127}
    said = [change.what for change in applied.changed]
    assert "operator set raised from 9 to 18" in said
    assert "244 weights are no graph inputs any more" in said
    assert said.count("BatchNormalization folded into the node before it") == 35
    assert all(v.shape is not None for node in applied.model.ir.graph for v in node.outputs)
    assert applied.skipped == ()


def test_control_flow_is_folded(shared: Callable[[str], Path]) -> None:
    model = Model.load(shared("silero_vad.onnx"))
    applied = clean(model)
    assert applied.notes["nodes_after"] < 0.25 * applied.notes["nodes_before"]
    for rate, length in [(8000, 256), (16000, 512)]:
        known = {"input": (3, length), "state": (2, 3, 128), "sr": np.array(rate)}
        assert_equal(model, applied.model, feeds_for(model, known), 1e-5)


def test_exporters_leave_no_trace(shared: Callable[[str], Path]) -> None:
    model = Model.load(shared("resnet20_cifar10.onnx"))
    assert b"pkg.torch" in model.to_bytes()
    data = clean(model).model.to_bytes()
    assert b"pkg." not in data
    assert b"File " not in data


def conv_bn(kind: str = "Conv", attributes: str = "", channels: int = 4) -> Model:
    rng = np.random.default_rng(0)
    weights = {
        "Conv": (channels, 6, 3, 3),
        "ConvTranspose": (6, channels, 3, 3),
        "Gemm": (6, channels),
    }
    shape = weights[kind]
    dims = "6" if kind == "Gemm" else "6, 9, 9"
    out = str(channels) if kind == "Gemm" else f"{channels}, H, W"
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, {dims}] x, float[{", ".join(map(str, shape))}] w, float[{channels}] b,
           float[{channels}] gamma, float[{channels}] beta, float[{channels}] mean,
           float[{channels}] var) => (float[N, {out}] y)
        {{
            c = {kind}(x, w, b)
            y = BatchNormalization{attributes}(c, gamma, beta, mean, var)
        }}
        """,
        w=rng.normal(0, 1, shape).astype(F),
        b=rng.normal(0, 1, channels).astype(F),
        gamma=rng.normal(1, 0.5, channels).astype(F),
        beta=rng.normal(0, 1, channels).astype(F),
        mean=rng.normal(0, 1, channels).astype(F),
        var=rng.uniform(0.1, 2, channels).astype(F),
    )


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("attributes", ["", "<epsilon=0.01>"])
def test_batch_norm_is_folded(kind: str, attributes: str) -> None:
    model = conv_bn(kind, attributes)
    model.ir.graph[0].name = "layer"
    applied = clean(model)
    assert ops(applied.model) == {kind: 1}
    assert applied.model.ir.graph[0].name == "layer"
    change = next(c for c in applied.changed if c.op == "BatchNormalization")
    assert (change.node, change.what) == (
        "layer",
        "BatchNormalization folded into the node before it",
    )
    assert_equal(model, applied.model, feeds_for(model), 1e-6)


def two_users(model: Model) -> None:
    graph = model.ir.graph
    graph.outputs.append(graph[0].outputs[0])
    graph[0].outputs[0].dtype = ir.DataType.FLOAT
    graph[0].outputs[0].shape = ir.Shape(["N", 4, "H", "W"])


@pytest.mark.parametrize(
    ("attributes", "options", "edit", "reason"),
    [
        ("", {"fold_batch_norm": False}, None, "fold_batch_norm is off"),
        ("", {"ops": {"BatchNormalization": False}}, None, "left out by the recipe"),
        ("", {"nodes": {"c": False}}, None, "weights of its own feeds it alone"),
        ("", {}, two_users, "weights of its own feeds it alone"),
    ],
)
def test_batch_norm_that_stays(
    attributes: str, options: dict[str, object], edit: Callable[[Model], None] | None, reason: str
) -> None:
    model = conv_bn(attributes=attributes)
    if edit:
        edit(model)
    applied = clean(model, **options)
    assert ops(applied.model) == {"Conv": 1, "BatchNormalization": 1}
    assert [skip.op for skip in applied.skipped] == ["BatchNormalization"]
    assert reason in applied.skipped[0].reason


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    ("axes", "keepdims", "expected"),
    [
        ("2, 3", 1, {"GlobalAveragePool": 1}),
        ("-1, -2", 1, {"GlobalAveragePool": 1}),
        ("2, 3", 0, {"GlobalAveragePool": 1, "Reshape": 1}),
        ("1, 2", 1, {"ReduceMean": 1}),
        ("1, 2, 3", 1, {"ReduceMean": 1}),
    ],
)
def test_mean_over_space(opset: int, axes: str, keepdims: int, expected: dict[str, int]) -> None:
    count = len(axes.split(","))
    shape = ["N", "3", "5", "7"]
    reduced = [int(a) % 4 for a in axes.split(",")]
    out = ", ".join(
        "1" if i in reduced else d for i, d in enumerate(shape) if keepdims or i not in reduced
    )
    attribute = f", axes=[{axes}]" if opset < 18 else ""
    argument = "" if opset < 18 else ", axes"
    extra = "" if opset < 18 else f", int64[{count}] axes"
    values = {} if opset < 18 else {"axes": np.array([int(a) for a in axes.split(",")])}
    model = from_text(
        f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 3, 5, 7] x{extra}) => (float[{out}] y)
        {{ y = ReduceMean<keepdims={keepdims}{attribute}>(x{argument}) }}
        """,
        **values,
    )
    applied = clean(model)
    assert ops(applied.model) == expected
    assert_equal(model, applied.model, feeds_for(model), 1e-6)
    assert clean(applied.model).model is applied.model


@pytest.mark.parametrize(
    ("x", "bias", "expected"),
    [
        ("N, 4", (3,), {"Gemm": 1}),
        ("N, 4", (1,), {"Gemm": 1}),
        ("2, N, 4", (3,), {"MatMul": 1, "Add": 1}),
        ("1, 4", (5, 3), {"MatMul": 1, "Add": 1}),
    ],
)
def test_matmul_and_bias_become_gemm(
    x: str, bias: tuple[int, ...], expected: dict[str, int]
) -> None:
    rng = np.random.default_rng(0)
    rank = len(x.split(","))
    out = ", ".join("P" for _ in range(rank - 1))
    model = from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[{x}] x, float[4, 3] w, float[{", ".join(map(str, bias))}] b)
            => (float[{out}, 3] y)
        {{ m = MatMul(x, w)
           y = Add(m, b) }}
        """,
        w=rng.normal(0, 1, (4, 3)).astype(F),
        b=rng.normal(0, 1, bias).astype(F),
    )
    applied = clean(model)
    assert ops(applied.model) == expected
    assert_equal(model, applied.model, feeds_for(model), 1e-6)


def test_dilated_same_padding_is_left_as_it_is() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 1, 9, 9] x, float[2, 1, 3, 3] w) => (float[1, 2, 9, 9] y)
        { y = Conv<auto_pad="SAME_UPPER", dilations=[2, 2]>(x, w) }
        """,
        w=np.random.default_rng(0).normal(0, 1, (2, 1, 3, 3)).astype(F),
    )
    # onnxruntime runs no such node, so there is nothing to compare with.
    node = clean(model).model.ir.graph[0]
    assert node.attributes["auto_pad"].as_string() == "SAME_UPPER"
    assert "pads" not in node.attributes


def test_constants_are_folded_up_to_the_limit() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[64, 64] x, float[1, 64] row, int64[2] small, int64[2] large)
            => (float[64, 64] y, float[2, 64] z)
        { a = Expand(row, large)
          y = Add(x, a)
          b = Expand(row, small)
          z = Neg(b) }
        """,
        row=np.ones((1, 64), F),
        small=np.array([2, 64]),
        large=np.array([64, 64]),
    )
    applied = clean(model)
    assert ops(applied.model) == {"Expand": 1, "Add": 1}
    assert_equal(model, applied.model, feeds_for(model), 0)
    assert ops(clean(model, max_constant_bytes=2**16).model) == {"Add": 1}
    assert ops(clean(model, fold_constants=False).model) == {"Expand": 2, "Add": 1, "Neg": 1}


def test_casts_that_widen_weights_stay() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 128] x, float16[128, 128] w) => (float[N, 128] y)
        { wide = Cast<to=1>(w)
          y = MatMul(x, wide) }
        """,
        w=np.ones((128, 128), np.float16),
    )
    applied = clean(model)
    assert ops(applied.model) == {"Cast": 1, "MatMul": 1}
    assert applied.model.weight_bytes == model.weight_bytes


def test_functions_repeats_and_dead_nodes_go() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y)
        { a = local.twice(x)
          b = Relu(a)
          c = Relu(a)
          dead = Exp(x)
          i = Identity(c)
          y = Mul(b, i) }
        <domain: "local", opset_import: ["" : 20]>
        twice (x) => (y) { y = Add(x, x) }
        """
    )
    applied = clean(model)
    assert ops(applied.model) == {"Add": 1, "Relu": 1, "Mul": 1}
    assert list(applied.model.ir.opset_imports) == [""]
    assert not applied.model.ir.functions
    assert_equal(model, applied.model, feeds_for(model), 0)


def test_constants_of_any_type_leave_the_input_alone() -> None:
    strings = ir.from_proto(make_tensor("old", TensorProto.STRING, [2], [b"a", b"b"]))
    numbers = ir.from_proto(make_tensor("old", TensorProto.INT64, [3], [1, 2, 3]))
    text, whole = (
        ir.Node("", "Constant", [], [ir.AttrTensor("value", held)]) for held in (strings, numbers)
    )
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (int64[3] x) => (int64[3] y, string[2] s)
        { c = Neg(x)
          y = Add(x, c)
          t = Cast<to=8>(x)
          s = Identity(t) }
        """
    )
    graph = model.ir.graph
    graph.insert_before(graph[0], [text, whole])
    graph[2].replace_input_with(0, whole.outputs[0])
    graph[5].replace_input_with(0, text.outputs[0])
    before = model.to_bytes()
    applied = clean(model)
    assert model.to_bytes() == before
    assert ops(applied.model) == {"Constant": 1, "Add": 1}
    assert [o.tolist() for o in outputs(applied.model, {"x": np.array([1, 1, 1])})] == [
        [0, -1, -2],
        ["a", "b"],
    ]
    assert clean(applied.model).model is applied.model


def test_outputs_keep_their_names() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N] x) => (float[N] same, float[N] y, float[N] again)
        { same = Identity(x)
          y = Relu(x)
          again = Identity(y) }
        """
    )
    applied = clean(model)
    assert_equal(model, applied.model, feeds_for(model), 0)


def test_small_model_is_clean_after_one_run() -> None:
    model = small_cnn()
    applied = clean(model)
    assert ops(applied.model) == ops(model) - Counter(ReduceMean=1) + Counter(GlobalAveragePool=1)
    assert_equal(model, applied.model, feeds_for(model), 1e-6)
    assert clean(applied.model).model is applied.model


@pytest.mark.parametrize(
    ("opset", "constraints", "expected"),
    [
        (None, Constraints(), 20),
        (21, Constraints(), 21),
        (None, Constraints(opset_min=22), 22),
    ],
)
def test_opset(opset: int | None, constraints: Constraints, expected: int) -> None:
    model = small_cnn()
    applied = run_pass(
        make_pass("cleanup", {"opset": opset}), model, Context(constraints=constraints)
    )
    assert applied.model.opset == expected
    assert_equal(model, applied.model, feeds_for(model), 1e-6)


@pytest.mark.parametrize("opset", [13, 99])
def test_opsets_that_cannot_be_had(opset: int) -> None:
    with pytest.raises(PassError, match=str(opset)):
        clean(small_cnn(), opset=opset)


UNARY = ["Relu", "Identity", "Neg", "Abs", "Sigmoid"]
BINARY = ["Add", "Mul", "Sub", "Max"]


@st.composite
def graphs(draw: st.DrawFn) -> Model:
    """Graphs of elementwise operators on one input and small constants, with repeats and no-ops."""
    constants = {"zero": 0.0, "one": 1.0, "half": 0.5}
    names = ["x", *constants]
    lines = []
    for i in range(draw(st.integers(1, 8))):
        op = draw(st.sampled_from(UNARY + BINARY))
        count = 1 if op in UNARY else 2
        args = [draw(st.sampled_from(names)) for _ in range(count)]
        lines.append(f"v{i} = {op}({', '.join(args)})")
        names.append(f"v{i}")
    outs = draw(st.lists(st.sampled_from(names[4:]), min_size=1, max_size=3, unique=True))
    lines += [f"y{i} = Add(x, {name})" for i, name in enumerate(outs)]
    signature = ", ".join(f"float[N, 3] y{i}" for i in range(len(outs)))
    inputs = ", ".join(f"float {name}" for name in constants)
    return from_text(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3] x, {inputs}) => ({signature})'
        "{" + "\n".join(lines) + "}",
        **{name: np.array(value, F) for name, value in constants.items()},
    )


@settings(max_examples=40)
@given(model=graphs())
def test_any_graph_computes_the_same_and_a_second_run_changes_nothing(model: Model) -> None:
    applied = clean(model)
    assert_equal(model, applied.model, feeds_for(model), 1e-6)
    assert applied.notes["nodes_after"] <= applied.notes["nodes_before"]
    assert clean(applied.model).model is applied.model


@pytest.mark.parametrize(
    ("first", "second", "slices"),
    [
        pytest.param((0, 99, 2, 2), (1, 6, -1, 1), 1, id="other axes"),
        pytest.param((4, -99, 2, -1), (0, 99, 3, 3), 1, id="backwards"),
        pytest.param((0, 99, 2, 2), (0, 2, 2, 1), 2, id="the same axis"),
        pytest.param((0, 99, 3, 2), (0, 2, -1, 1), 2, id="the same axis, from the end"),
    ],
)
def test_slices_over_different_axes_become_one(
    first: tuple[int, int, int, int], second: tuple[int, int, int, int], slices: int
) -> None:
    bounds = {
        f"{name}{place}": np.array([value])
        for place, values in enumerate((first, second))
        for name, value in zip(("start", "end", "axis", "step"), values, strict=True)
    }
    arguments = ", ".join(f"int64[1] {name}" for name in bounds)
    model = from_text(
        f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 3, 5, 7] x, {arguments}) => (float[N, 3, a, b] y)
        {{ part = Slice(x, start0, end0, axis0, step0)
           y = Slice(part, start1, end1, axis1, step1) }}
        """,
        **bounds,
    )
    applied = clean(model)
    assert ops(applied.model) == {"Slice": slices}
    assert_equal(model, applied.model, feeds_for(model), 0)
