"""Forms of operators that ONNX's node tests leave out, each against onnxruntime.

The node tests only know the newest opset; older files carry the older forms.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.torchgraph import to_torch
from tests.models import from_text

Arrays = dict[str, np.ndarray]
_TYPES = {"float32": "float", "float64": "double"}


def rand(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run_both(
    body: str, arrays: Arrays, opset: int = 20, outputs: int = 1, imports: str = ""
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs y0, y1, ... of torch and of onnxruntime without graph optimizations."""
    inputs = ", ".join(
        f"{_TYPES.get(a.dtype.name, a.dtype.name)}[{', '.join(map(str, a.shape))}] {name}"
        for name, a in arrays.items()
    )
    names = [f"y{i}" for i in range(outputs)]
    text = f"""<ir_version: 8, opset_import: ["" : {opset}{imports}]>
        g ({inputs}) => ({", ".join(f"float {n}" for n in names)}) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    for output in proto.graph.output:
        output.type.Clear()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    expected = session.run(names, arrays)
    with torch.no_grad():
        results = to_torch(Model(ir.from_proto(proto)))(
            {name: torch.from_numpy(a) for name, a in arrays.items()}
        )
    return [results[name].numpy() for name in names], expected


def assert_same(
    body: str, arrays: Arrays, opset: int = 20, outputs: int = 1, imports: str = ""
) -> None:
    """float32 rounding: 1e-5 relative; integers and booleans exactly."""
    for got, expected in zip(*run_both(body, arrays, opset, outputs, imports), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        if got.dtype.kind == "f":
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)
        else:
            np.testing.assert_array_equal(got, expected)


_OLD_FORMS: dict[str, tuple[int, str, Arrays]] = {
    "Clip-6": (7, "y0 = Clip<min=-0.5, max=0.25>(x)", {"x": rand(3, 4)}),
    "Clip-6 one bound": (10, "y0 = Clip<max=0.25>(x)", {"x": rand(3, 4)}),
    "Slice-1": (9, "y0 = Slice<starts=[1,-2], ends=[3,1000], axes=[0,2]>(x)", {"x": rand(4, 2, 5)}),
    "Slice-1 no axes": (7, "y0 = Slice<starts=[0,1], ends=[-1,9]>(x)", {"x": rand(4, 2, 5)}),
    "Squeeze-1": (9, "y0 = Squeeze<axes=[0,2]>(x)", {"x": rand(1, 2, 1, 3)}),
    "Squeeze-11": (11, "y0 = Squeeze<axes=[-2]>(x)", {"x": rand(1, 2, 1, 3)}),
    "Unsqueeze-11": (11, "y0 = Unsqueeze<axes=[-1,0]>(x)", {"x": rand(2, 3)}),
    "Pad-2": (9, "y0 = Pad<pads=[0,1,2,0], value=1.5>(x)", {"x": rand(2, 3)}),
    "Pad-2 reflect": (9, 'y0 = Pad<mode="reflect", pads=[0,1,0,2]>(x)', {"x": rand(2, 3)}),
    "Pad-2 edge": (9, 'y0 = Pad<mode="edge", pads=[1,2,3,4]>(x)', {"x": rand(2, 3)}),
    "Pad-2 crop": (9, "y0 = Pad<pads=[0,-1,0,1]>(x)", {"x": rand(2, 3)}),
    "Upsample-7": (8, "y0 = Upsample<scales=[1.0,1.0,2.0,3.0]>(x)", {"x": rand(1, 2, 2, 3)}),
    "Upsample-7 linear": (
        8,
        'y0 = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(x)',
        {"x": rand(1, 2, 3, 4)},
    ),
    "Upsample-9": (
        9,
        "s = Constant<value = float[4] {1.0, 1.0, 2.5, 1.5}>()  y0 = Upsample(x, s)",
        {"x": rand(1, 2, 2, 3)},
    ),
    "Resize-10": (
        10,
        "s = Constant<value = float[4] {1.0, 1.0, 0.6, 1.5}>()  y0 = Resize(x, s)",
        {"x": rand(1, 2, 5, 4)},
    ),
    "Dropout-7": (9, "y0 = Dropout<ratio=0.3>(x)", {"x": rand(2, 3)}),
    "Dropout-12": (12, "y0 = Dropout(x)", {"x": rand(2, 3)}),
    "Softmax-1": (9, "y0 = Softmax(x)", {"x": rand(2, 3, 4)}),
    "Softmax-11": (12, "y0 = Softmax<axis=-2>(x)", {"x": rand(2, 3, 4)}),
    "Softmax-13": (13, "y0 = Softmax(x)", {"x": rand(2, 3, 4)}),
    "LogSoftmax-11": (11, "y0 = LogSoftmax<axis=0>(x)", {"x": rand(2, 3, 4)}),
    "Hardmax-11": (11, "y0 = Hardmax<axis=1>(x)", {"x": rand(2, 3, 4)}),
    "ReduceSum-11": (11, "y0 = ReduceSum<axes=[-1], keepdims=0>(x)", {"x": rand(2, 3)}),
    "ReduceMean-13": (13, "y0 = ReduceMean<axes=[0,2]>(x)", {"x": rand(2, 3, 4)}),
    "ReduceMax-1": (9, "y0 = ReduceMax(x)", {"x": rand(2, 3)}),
    "TopK-10": (
        10,
        "k = Constant<value = int64[1] {2}>()  y0, y1 = TopK<axis=0>(x, k)",
        {"x": rand(4, 3)},
    ),
    "Flatten-1": (7, "y0 = Flatten<axis=2>(x)", {"x": rand(2, 3, 4, 5)}),
    "Gemm-7": (8, "y0 = Gemm<alpha=0.5, beta=2.0, transA=1>(a, b, c)",
               {"a": rand(3, 2), "b": rand(3, 4, seed=1), "c": rand(2, 1, seed=2)}),
    "Gather negative": (11, "y0 = Gather<axis=1>(x, i)",
                        {"x": rand(2, 4, 3), "i": np.array([[0, -1], [2, -4]])}),
    "AveragePool-7": (
        9,
        "y0 = AveragePool<kernel_shape=[3,2], pads=[1,0,2,1], strides=[2,1]>(x)",
        {"x": rand(1, 2, 6, 5)},
    ),
    "Min-8": (8, "y0 = Min(a, b, a)", {"a": rand(2, 3), "b": rand(3, seed=1)}),
    "GroupNormalization-18": (
        18,
        "y0 = GroupNormalization<num_groups=2>(x, s, b)",
        {"x": rand(2, 4, 3), "s": rand(2, seed=1), "b": rand(2, seed=2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", _OLD_FORMS)
def test_old_forms(form: str) -> None:
    opset, body, arrays = _OLD_FORMS[form]
    assert_same(body, arrays, opset, outputs=2 if "y1" in body else 1)


def test_splits_of_every_age() -> None:
    x = {"x": rand(2, 7)}
    assert_same("y0, y1 = Split<axis=1, split=[3,4]>(x)", x, 9, 2)
    assert_same("y0, y1 = Split(x)", x, 11, 2)
    assert_same(
        "s = Constant<value_ints=[2,5]>()  y0, y1 = Split<axis=-1>(x, s)", x, outputs=2, opset=13
    )
    assert_same("y0, y1, y2 = Split<axis=1, num_outputs=3>(x)", x, 18, 3)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization_of_every_age(opset: int) -> None:
    arrays = {"x": rand(2, 3, 4, 5), "s": rand(3), "b": rand(3), "m": rand(3)}
    arrays["v"] = np.abs(rand(3, seed=4)) + 0.5
    assert_same("y0 = BatchNormalization<epsilon=0.01>(x, s, b, m, v)", arrays, opset)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_automatic_padding(auto_pad: str, stride: int) -> None:
    options = f'auto_pad="{auto_pad}", strides=[{stride},{stride}]'
    arrays = {"x": rand(1, 2, 7, 8), "w": rand(2, 2, 3, 4)}
    assert_same(f"y0 = Conv<{options}>(x, w)", arrays)
    assert_same(f"y0 = MaxPool<kernel_shape=[3,4], {options}>(x)", {"x": arrays["x"]})
    assert_same(f"y0 = AveragePool<kernel_shape=[3,4], {options}>(x)", {"x": arrays["x"]})


@settings(max_examples=60)
@given(
    st.integers(4, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2),
    st.integers(0, 2), st.integers(0, 2), st.booleans(),
)  # fmt: skip
def test_max_pool_windows(
    length: int, kernel: int, stride: int, dilation: int, before: int, after: int, ceil: bool
) -> None:
    reach = (kernel - 1) * dilation + 1
    if max(before, after) >= kernel or length + before + after < reach:
        return
    # A window over nothing but padding: onnxruntime and the specification leave its value open.
    if dilation > 1 and (before or after):
        return
    body = (
        f"y0, y1 = MaxPool<kernel_shape=[{kernel}], strides=[{stride}], dilations=[{dilation}], "
        f"pads=[{before},{after}], ceil_mode={int(ceil)}>(x)"
    )
    assert_same(body, {"x": rand(2, 3, length, seed=length)}, outputs=2)


@settings(max_examples=60)
@given(
    st.integers(3, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2),
    st.integers(0, 2), st.booleans(), st.booleans(),
)  # fmt: skip
def test_average_pool_windows(
    length: int, kernel: int, stride: int, before: int, after: int, include: bool, ceil: bool
) -> None:
    if max(before, after) >= kernel or length + before + after < kernel:
        return
    body = (
        f"y0 = AveragePool<kernel_shape=[{kernel}], strides=[{stride}], pads=[{before},{after}], "
        f"count_include_pad={int(include)}, ceil_mode={int(ceil)}>(x)"
    )
    assert_same(body, {"x": rand(2, 3, length, seed=length)})


@pytest.mark.parametrize(
    "options",
    [
        "strides=[2,3]",
        "strides=[2,2], pads=[1,1,1,1]",
        "strides=[2,2], pads=[0,1,2,1], output_padding=[1,1]",
        "strides=[3,2], output_shape=[9,8]",
        "strides=[3,2], dilations=[2,1], group=2",
        'strides=[2,2], auto_pad="SAME_UPPER"',
        'strides=[2,2], auto_pad="SAME_LOWER"',
    ],
)
def test_transposed_convolution(options: str) -> None:
    out = 3 if "group" in options else 4
    arrays = {"x": rand(2, 4, 3, 4), "w": rand(4, out, 3, 3, seed=1)}
    arrays["b"] = rand(out * (2 if "group" in options else 1), seed=2)
    assert_same(f"y0 = ConvTranspose<{options}>(x, w, b)", arrays)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates",
    ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"],
)
@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.6, 1.7), (1.0, 0.5), (0.7, 1.3)])
def test_resize(mode: str, coordinates: str, scales: tuple[float, float]) -> None:
    options = f'mode="{mode}", coordinate_transformation_mode="{coordinates}"'
    body = f"""s = Constant<value_floats=[1.0, 1.0, {scales[0]}, {scales[1]}]>()
        y0 = Resize<{options}>(x, , s)"""
    if coordinates == "align_corners" and scales[0] in (0.6, 0.7):
        with pytest.raises(ModelError, match="the specification and onnxruntime differ"):
            assert_same(body, {"x": rand(1, 2, 10, 6)}, 19)
    else:
        assert_same(body, {"x": rand(1, 2, 10, 6)}, 19)


@pytest.mark.parametrize("nearest", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_resize_to_sizes(nearest: str) -> None:
    body = f"""s = Constant<value_ints=[1, 2, 7, 3]>()
        y0 = Resize<nearest_mode="{nearest}">(x, , , s)"""
    assert_same(body, {"x": rand(1, 2, 5, 6)}, 19)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantize_and_dequantize(dtype: str, axis: int | None) -> None:
    x = rand(4, 3, 5) * 40
    x[0, 0] = [0.5, 1.5, 2.5, -0.5, -1.5]  # halves go to even
    info = np.iinfo(dtype)
    shape = () if axis is None else (x.shape[axis],)
    scale = np.full(shape, 1.0, np.float32) * (1 if axis is None else np.arange(1, shape[0] + 1))
    zero = np.full(shape, (int(info.max) + int(info.min) + 1) // 2, dtype)
    option = "" if axis is None else f"<axis={axis}>"
    body = f"y0 = QuantizeLinear{option}(x, s, z)  y1 = DequantizeLinear{option}(y0, s, z)"
    arrays = {"x": x, "s": np.asarray(scale, np.float32), "z": zero}
    assert_same(body, arrays, 21, outputs=2)


def test_int32_biases_dequantize() -> None:
    arrays = {"x": np.array([-70000, 3, 2**24 + 1], np.int32), "s": np.array(0.25, np.float32)}
    assert_same("y0 = DequantizeLinear(x, s)", arrays)


def test_blocked_int4_weights_dequantize() -> None:
    import ml_dtypes

    values = np.random.default_rng(0).integers(-8, 8, (6, 4))
    scales = np.abs(rand(2, 4)) + 0.1
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 6] x, int4[6, 4] w, float[2, 4] s) => (float[N, 4] y)
        { d = DequantizeLinear<axis=0, block_size=3>(w, s)  y = MatMul(x, d) }""",
        w=values.astype(ml_dtypes.int4),
        s=scales,
    )
    got = to_torch(model)({"x": torch.eye(6)})["y"].detach().numpy()
    np.testing.assert_allclose(got, values * scales.repeat(3, 0), rtol=1e-6)


def test_ties_of_top_k_go_to_the_lower_index() -> None:
    x = {"x": np.array([[1, 3, 3, 0, 3, 1]], np.float32)}
    assert_same("k = Constant<value_ints=[4]>()  y0, y1 = TopK(x, k)", x, outputs=2)
    assert_same("k = Constant<value_ints=[4]>()  y0, y1 = TopK<largest=0>(x, k)", x, outputs=2)


@pytest.mark.parametrize(
    ("body", "arrays"),
    [
        ("y0 = ms.Gelu(x)", {"x": rand(2, 3)}),
        ("y0 = ms.FastGelu(x, b)", {"x": rand(2, 3), "b": rand(3)}),
        ("y0 = ms.QuickGelu(x)", {"x": rand(2, 3)}),
        ("y0 = ms.BiasGelu(x, b)", {"x": rand(2, 3), "b": rand(3)}),
        (
            "y0 = ms.FusedMatMul<transB=1, alpha=0.5>(a, b)",
            {"a": rand(2, 3, 4), "b": rand(2, 5, 4)},
        ),
        (
            "y0, , , y1 = ms.SkipLayerNormalization<epsilon=0.00001>(x, k, g, b)",
            {"x": rand(1, 2, 4), "k": rand(1, 2, 4, seed=1), "g": rand(4), "b": rand(4, seed=2)},
        ),
        (
            "y0, , , y1 = ms.SkipSimplifiedLayerNormalization<epsilon=0.00001>(x, k, g)",
            {"x": rand(1, 2, 4), "k": rand(1, 2, 4, seed=1), "g": rand(4)},
        ),
    ],
)
def test_operators_of_onnxruntime(body: str, arrays: Arrays) -> None:
    body = body.replace("ms.", "com.microsoft.")
    assert_same(body, arrays, outputs=2 if "y1" in body else 1, imports=', "com.microsoft" : 1')


def test_a_squeeze_of_a_longer_axis_is_refused() -> None:
    model = from_text(
        """<ir_version: 8, opset_import: ["" : 11]>
        g (float[A, B] x) => (float[B] y) { y = Squeeze<axes=[0]>(x) }"""
    )
    with pytest.raises(ModelError, match="expected length 1"):
        to_torch(model)({"x": torch.zeros(2, 3)})
