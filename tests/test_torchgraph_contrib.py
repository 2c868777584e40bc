"""Operators that onnxruntime's optimizer writes, each in many forms against onnxruntime itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.torchgraph import to_torch

Array = np.ndarray
Inputs = list[Array | None]
_ORT = "com.microsoft"


def rand(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(low: int, high: int, shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def single(
    op_type: str, inputs: Inputs, outputs: int, domain: str, version: int = 21, **attributes: Any
) -> onnx.ModelProto:
    """One node; the first input is fed, the others are weights."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    node = helper.make_node(
        op_type, names, [f"y{i}" for i in range(outputs)], domain=domain, **attributes
    )
    first = inputs[0]
    assert first is not None
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(
                "x0", helper.np_dtype_to_tensor_dtype(first.dtype), first.shape
            )
        ],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(a, f"x{i}") for i, a in enumerate(inputs) if i and a is not None],
    )
    opsets = [helper.make_opsetid("", version), helper.make_opsetid(_ORT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def both(
    op_type: str, inputs: Inputs, outputs: int = 1, *, domain: str = _ORT, **attributes: Any
) -> tuple[list[Array], list[Array]]:
    """Results of torch and of onnxruntime."""
    proto = single(op_type, inputs, outputs, domain, **attributes)
    expected = session(proto).run(None, {"x0": inputs[0]})
    with torch.no_grad():
        results = to_torch(Model(ir.from_proto(proto)))({"x0": torch.from_numpy(inputs[0])})
    return [tensor.numpy() for tensor in results.values()], expected


def compare(
    op_type: str,
    inputs: Inputs,
    outputs: int = 1,
    *,
    domain: str = _ORT,
    rtol: float = 1e-5,
    atol: float = 2e-6,
    steps: int = 0,
    **attributes: Any,
) -> None:
    """Floats to the rounding of float32; integers exactly, or to a number of steps."""
    results = both(op_type, inputs, outputs, domain=domain, **attributes)
    for array, want in zip(*results, strict=True):
        assert array.dtype == want.dtype
        assert array.shape == want.shape
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, want, rtol=rtol, atol=atol)
        else:
            assert np.abs(array.astype(np.int64) - want).max() <= steps


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("batch", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(trans_a: int, trans_b: int, batch: tuple[int, int]) -> None:
    def operand(rows: int, columns: int, swap: int, move: int, seed: int) -> Array:
        x = rand(2, 3, rows, columns, seed=seed)
        x = np.swapaxes(x, -1, -2) if swap else x
        return np.ascontiguousarray(np.moveaxis(x, -2, 0) if move else x)

    a, b = operand(4, 5, trans_a, batch[0], 0), operand(5, 6, trans_b, batch[1], 1)
    options = {"transA": trans_a, "transB": trans_b, "alpha": 0.7}
    options |= {"transBatchA": batch[0], "transBatchB": batch[1]}
    compare("FusedMatMul", [a, b], **options)


@pytest.mark.parametrize("op_type", ["Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Inverse"])
def test_functions_of_one_tensor(op_type: str) -> None:
    bias = [rand(4, seed=1)] if op_type == "BiasGelu" else []
    compare(op_type, [rand(3, 4, 4), *bias], rtol=1e-4)


def test_gelu_options() -> None:
    compare("FastGelu", [rand(3, 4), rand(4, seed=1)])
    compare("QuickGelu", [rand(3, 4)], alpha=2.0)


@pytest.mark.parametrize("skip", [(2, 3, 8), (1, 3, 8), (3, 8)])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_skip_layer_normalization(skip: tuple[int, ...], beta: bool, bias: bool) -> None:
    inputs: Inputs = [rand(2, 3, 8), rand(*skip, seed=1), rand(8, seed=2)]
    shift = rand(8, seed=3) if bias else None
    compare("SkipLayerNormalization", [*inputs, rand(8, seed=4) if beta else None, shift])
    compare("SkipSimplifiedLayerNormalization", [*inputs, shift], epsilon=1e-3)


def test_the_sum_of_a_skip_is_an_output() -> None:
    for op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
        proto = single(op_type, [rand(2, 3, 8), rand(2, 3, 8, seed=1), rand(8, seed=2)], 4, _ORT)
        proto.graph.node[0].output[1] = proto.graph.node[0].output[2] = ""
        del proto.graph.output[1:3]
        x = {"x0": rand(2, 3, 8)}
        (_, expected) = session(proto).run(None, x)
        got = to_torch(Model(ir.from_proto(proto)))({"x0": torch.from_numpy(x["x0"])})["y3"]
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("op_type", ["LayerNormalization", "SimplifiedLayerNormalization"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_normalizations_in_the_standard_domain(op_type: str, axis: int) -> None:
    scale = rand(8, seed=1) if axis == -1 else rand(3, 8, seed=1)
    compare(op_type, [rand(2, 3, 8), scale], domain="", axis=axis, epsilon=1e-4)


_EMBEDDINGS: Inputs = [rand(11, 8), rand(9, 8, seed=1), rand(2, 8, seed=2), rand(8), rand(8)]


@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("positions", [None, 1, 2])
def test_embed_layer_normalization(segments: bool, mask: bool, positions: int | None) -> None:
    word, position, segment, gamma, beta = _EMBEDDINGS
    inputs: Inputs = [
        integers(0, 11, (2, 5), "int32"),
        integers(0, 2, (2, 5), "int32") if segments else None,
        word,
        position,
        segment if segments else None,
        gamma,
        beta,
    ]
    if mask or positions:
        inputs.append(np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32) if mask else None)
    if positions:
        inputs.append(integers(0, 9, (positions, 5), "int32"))
    compare("EmbedLayerNormalization", inputs, 2, mask_index_type=int(mask), epsilon=1e-3)


_LENGTHS = np.array([2, 5], np.int32)
_MASKS: dict[str, Array | None] = {
    "none": None,
    "ends": _LENGTHS,
    "ends and starts": np.array([4, 5, 1, 0], np.int32),
    "keys": np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], np.int32),
    "queries and keys": integers(0, 2, (2, 5, 5), "int32", seed=3),
    "nothing": np.zeros((2, 5), np.int32),
}


@pytest.mark.parametrize("mask", _MASKS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_attention(mask: str, causal: int, scale: float) -> None:
    inputs = [rand(2, 5, 6), rand(6, 24, seed=1), rand(24, seed=2), _MASKS[mask]]
    options: dict[str, Any] = {"scale": scale} if scale else {}
    compare("Attention", inputs, num_heads=4, unidirectional=causal, **options)


def test_attention_forms() -> None:
    x, weight = rand(2, 5, 6), rand(6, 24, seed=1)
    bias = rand(2, 4, 5, 5, seed=5)
    compare("Attention", [x, weight, rand(24), None, None, bias], num_heads=4)
    compare("Attention", [x, weight, rand(24), None, None, bias[:1, :1]], num_heads=4)
    compare("Attention", [x, weight, rand(24)], num_heads=4, qkv_hidden_sizes=[8, 8, 8])
    wide = rand(6, 8 + 8 + 12, seed=4)
    compare("Attention", [x, wide, rand(28)], num_heads=4, qkv_hidden_sizes=[8, 8, 12])
    low = {"num_heads": 2, "mask_filter_value": -3.0}
    compare("Attention", [x, weight, rand(24), _MASKS["keys"]], **low)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_a_past(causal: int, masked: bool) -> None:
    past = rand(2, 2, 4, 3, 2, seed=6)
    mask = integers(0, 2, (2, 8), "int32", seed=1) if masked else None
    inputs = [rand(2, 5, 6), rand(6, 24, seed=1), rand(24, seed=2), mask, past]
    compare("Attention", inputs, 2, num_heads=4, unidirectional=causal)


@pytest.mark.parametrize("mask", ["none", "ends", "keys", "queries and keys"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention(mask: str, causal: int, bias: bool) -> None:
    parts = [rand(2, 5, 8, seed=i) for i in range(3)]
    shift = rand(24, seed=4) if bias else None
    compare("MultiHeadAttention", [*parts, shift, _MASKS[mask]], num_heads=4, unidirectional=causal)


def test_multi_head_attention_forms() -> None:
    q, k, v = rand(2, 3, 8), rand(2, 5, 8, seed=1), rand(2, 5, 12, seed=2)
    added = rand(1, 4, 3, 5, seed=3)
    compare("MultiHeadAttention", [q, k, v, None, None, added], num_heads=4, scale=0.2)
    compare("MultiHeadAttention", [q, k, v, rand(28)], num_heads=4)
    past = [rand(2, 4, 2, 2, seed=4), rand(2, 4, 2, 2, seed=5)]
    compare("MultiHeadAttention", [q, k, k, None, None, None, *past], 3, num_heads=4)
    split = [rand(2, 4, 5, 2, seed=6), rand(2, 4, 5, 2, seed=7)]
    compare("MultiHeadAttention", [q, *split], num_heads=4)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("offset", [True, False])
def test_rotary_embedding(interleaved: int, rank: int, offset: bool) -> None:
    x = rand(2, 5, 24) if rank == 3 else rand(2, 3, 5, 8)
    places = np.array([2]) if offset else integers(0, 9, (2, 5), "int64")
    caches = [rand(9, 4, seed=1), rand(9, 4, seed=2)]
    compare("RotaryEmbedding", [x, places, *caches], interleaved=interleaved)


def test_partial_rotary_embedding() -> None:
    places, caches = integers(0, 9, (2, 5), "int64"), [rand(9, 2, seed=1), rand(9, 2, seed=2)]
    part = {"rotary_embedding_dim": 4, "num_heads": 3}
    compare("RotaryEmbedding", [rand(2, 5, 24), places, *caches], **part)
    compare("RotaryEmbedding", [rand(2, 3, 5, 8), places, *caches], **part)


@pytest.mark.parametrize("rotary", [None, 0, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("past", [0, 4])
def test_group_query_attention(rotary: int | None, packed: bool, window: int, past: int) -> None:
    batch, length = (2, 5) if not past else (2, 1) if packed else (1, 2)
    q = rand(batch, length, 64)
    k, v = (rand(batch, length, 32, seed=n) for n in (1, 2))
    heads: Inputs = [np.concatenate([q, k, v], 2), None, None] if packed else [q, k, v]
    cache = [rand(batch, 2, past, 16, seed=5), rand(batch, 2, past, 16, seed=6)]
    ends = np.full(batch, past + length - 1, np.int32)
    inputs = [*heads, *cache, ends, np.array(past + length, np.int32)]
    if rotary is not None:
        inputs += [rand(16, 8, seed=7), rand(16, 8, seed=8)]
    compare(
        "GroupQueryAttention",
        inputs,
        3,
        num_heads=4,
        kv_num_heads=2,
        local_window_size=window,
        do_rotary=int(rotary is not None),
        rotary_interleaved=rotary or 0,
        softcap=5.0 if packed else 0.0,
    )


def test_group_query_attention_of_samples_of_unequal_length() -> None:
    q, k, v = rand(2, 1, 32), rand(2, 1, 16, seed=1), rand(2, 1, 16, seed=2)
    cache = [rand(2, 2, 6, 8, seed=5), rand(2, 2, 6, 8, seed=6)]
    ends, total = np.array([3, 6], np.int32), np.array(7, np.int32)
    inputs = [q, k, v, *cache, ends, total]
    results, expected = both("GroupQueryAttention", inputs, 3, num_heads=4, kv_num_heads=2)
    np.testing.assert_allclose(results[0], expected[0], rtol=1e-5, atol=2e-6)
    for state, want in zip(results[1:], expected[1:], strict=True):  # behind the end: left open
        np.testing.assert_array_equal(state[0, :, :4], want[0, :, :4])
        np.testing.assert_array_equal(state[1], want[1])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("zero", ["none", "packed", "float"])
def test_matmul_nbits(bits: int, block_size: int, zero: str) -> None:
    if bits == 8 and zero == "float":
        pytest.skip("onnxruntime has no kernel for float zero points of 8 bits")
    k, n = 80, 6
    blocks = -(-k // block_size)
    weight = integers(0, 256, (n, blocks, block_size * bits // 8), "uint8")
    zero_points = {
        "none": None,
        "packed": integers(0, 256, (n, -(-blocks * bits // 8)), "uint8", seed=1),
        "float": rand(n, blocks, seed=2),
    }[zero]
    inputs = [rand(2, 3, k), weight, rand(n, blocks, seed=3), zero_points, None, rand(n, seed=4)]
    compare("MatMulNBits", inputs, K=k, N=n, bits=bits, block_size=block_size, rtol=1e-4, atol=1e-3)


def test_matmul_nbits_refuses_a_group_index() -> None:
    weight, index = integers(0, 256, (4, 1, 16), "uint8"), np.zeros(32, np.int32)
    proto = single(
        "MatMulNBits",
        [rand(2, 32), weight, rand(4, 1), None, index],
        1,
        _ORT,
        K=32,
        N=4,
        bits=4,
        block_size=32,
    )
    with pytest.raises(ModelError, match="g_idx"):
        to_torch(Model(ir.from_proto(proto)))({"x0": torch.zeros(2, 32)})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero", [False, True])
def test_gather_block_quantized(bits: int, zero: bool) -> None:
    data = integers(0, 256, (7, 32 * bits // 8), "uint8")
    zeros = integers(0, 256, (7, 2 * bits // 8), "uint8", seed=1) if zero else None
    scales, rows = rand(7, 2, seed=2), integers(0, 7, (2, 3), "int64")
    # The rows are fed here: onnxruntime wants the packed weight to be an input of known type.
    compare(
        "GatherBlockQuantized",
        [data, rows, scales, zeros],
        bits=bits,
        block_size=16,
        quantize_axis=1,
    )


_SCALE = {name: np.array(value, np.float32) for name, value in
          {"x": 0.043, "w": 0.017, "y": 0.31, "z": 0.09}.items()}  # fmt: skip


def byte(value: int, dtype: str) -> Array:
    return np.array(value, dtype)


@pytest.mark.parametrize(
    ("x_type", "w_type"), [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")]
)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("options", [{}, {"strides": [2, 2], "pads": [1, 0, 1, 1]}, {"group": 2}])
def test_qlinear_conv(x_type: str, w_type: str, per_channel: bool, options: Any) -> None:
    info, weights = np.iinfo(x_type), np.iinfo(w_type)
    out, group = 4, options.get("group", 1)
    w = integers(weights.min, weights.max, (out, 4 // group, 3, 3), w_type, seed=1)
    w_zero = byte(0 if w_type == "int8" else 121, w_type)
    scale = _SCALE["w"]
    if per_channel:
        scale, w_zero = scale * np.arange(1, out + 1, dtype=np.float32), np.full(out, w_zero)
    inputs = [
        integers(info.min, info.max, (2, 4, 7, 8), x_type),
        _SCALE["x"],
        byte(info.max - 100, x_type),
        w,
        scale,
        w_zero,
        np.float32(4.3) * np.array(1, np.float32),
        byte(info.max - 130, x_type),
        integers(-9000, 9000, (out,), "int32"),
    ]
    compare("QLinearConv", inputs, domain="", **options)


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("rank", [2, 3])
def test_qlinear_products(x_type: str, per_column: bool, rank: int) -> None:
    info = np.iinfo(x_type)
    a = integers(info.min, info.max, (2, 5, 7)[3 - rank :], x_type)
    b = integers(-128, 127, (7, 6), "int8", seed=1)
    scale, zero = _SCALE["w"], byte(0, "int8")
    if per_column:
        scale, zero = scale * np.arange(1, 7, dtype=np.float32), np.full(6, zero)
    x_zero = byte(info.max - 100, x_type)
    y = [np.array(3.1, np.float32), byte(info.max - 128, x_type)]
    compare("QLinearMatMul", [a, _SCALE["x"], x_zero, b, scale, zero, *y], domain="")
    bias = rand(6, seed=2)
    compare("MatMulIntegerToFloat", [a, b, _SCALE["x"], scale, x_zero, zero, bias])
    compare("DynamicQuantizeMatMul", [rand(*a.shape), b, scale, zero, bias])
    if rank == 2:
        c = integers(-999, 999, (6,), "int32")
        compare("QGemm", [a, _SCALE["x"], x_zero, b, scale, zero, c, *y])
        compare("QGemm", [a, _SCALE["x"], x_zero, b, scale, zero, c])
        turned = np.ascontiguousarray(b.T)
        compare("QGemm", [a, _SCALE["x"], x_zero, turned, scale, zero, c, *y], transB=1, alpha=0.5)


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
def test_quantized_sums_and_products(x_type: str) -> None:
    """Scales of which each is a multiple of another make many ties."""
    info = np.iinfo(x_type)
    a = integers(info.min, info.max, (3, 50), x_type)
    for b in (integers(info.min, info.max, (3, 50), x_type, 1), byte(info.max - 7, x_type)):
        zeros = [byte(info.max - n, x_type) for n in (100, 140, 120)]
        for scales in ((0.043, 0.09, 0.31), (0.1, 0.1, 0.2), (0.5, 0.25, 0.5)):
            s = [np.array(scale, np.float32) for scale in scales]
            inputs = [a, s[0], zeros[0], b, s[1], zeros[1], s[2], zeros[2]]
            compare("QLinearAdd", inputs)
            compare("QLinearMul", inputs)


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
def test_quantized_functions(x_type: str) -> None:
    info = np.iinfo(x_type)
    x = integers(info.min, info.max, (2, 3, 6, 7), x_type)
    before = [_SCALE["x"], byte(info.max - 110, x_type)]
    after = [_SCALE["z"], byte(info.max - 99, x_type)]
    unit = [np.array(1 / 256, np.float32), byte(info.min, x_type)]
    compare("QLinearLeakyRelu", [x, *before, *after], alpha=0.2)
    compare("QLinearSigmoid", [x, *before, *unit])
    compare("QLinearSoftmax", [x, *before, *unit], axis=-1, opset=13, steps=1)
    compare("QLinearSoftmax", [x, *before, *unit], axis=1, opset=11, steps=1)
    compare("QLinearGlobalAveragePool", [x, *before, *after], channels_last=0)
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
    compare("QLinearAveragePool", [x, *before, *after], **window)
    compare("QLinearAveragePool", [x, *before, *after], count_include_pad=1, **window)


@pytest.mark.parametrize("x_type", ["uint8", "int8"])
def test_quantized_joins(x_type: str) -> None:
    info = np.iinfo(x_type)
    a, b = (integers(info.min, info.max, (2, 5), x_type, seed) for seed in (0, 1))
    zeros = [byte(info.max - n, x_type) for n in (100, 140, 120)]
    z = [_SCALE["z"], zeros[2]]
    triples = [a, _SCALE["x"], zeros[0], b, _SCALE["y"], zeros[1]]
    condition = integers(0, 2, (2, 5), "bool")
    compare("QLinearWhere", [condition, *triples, *z])
    compare("QLinearConcat", [*z, *triples], axis=1)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [
        ("Relu", []),
        ("Tanh", []),
        ("Sigmoid", []),
        ("LeakyRelu", [0.2]),
        ("Clip", [-0.5, 0.7]),
        ("HardSigmoid", [0.3, 0.4]),
    ],
)
def test_fused_activations(activation: str, parameters: list[float]) -> None:
    conv = [rand(1, 2, 5, 6), rand(3, 2, 3, 3, seed=1), rand(3, seed=2)]
    options: dict[str, Any] = {"activation": activation}
    if parameters:
        options["activation_params"] = parameters
    compare("FusedConv", conv, pads=[1, 1, 1, 1], **options)
    compare("FusedConv", [*conv, rand(1, 3, 5, 6, seed=3)], pads=[1, 1, 1, 1], **options)
    if activation != "Clip":
        options = {"activation": activation}
        options |= dict(zip(("activation_alpha", "activation_beta"), parameters, strict=False))
        compare("FusedGemm", [rand(3, 4), rand(5, 4, seed=1), rand(5)], transB=1, **options)


@pytest.mark.parametrize("causal", [0, 1])
def test_quantized_attention(causal: int) -> None:
    x, weight = integers(0, 255, (2, 5, 6), "uint8"), integers(-127, 127, (6, 24), "int8")
    rest = [rand(24), _SCALE["x"], _SCALE["w"], _MASKS["keys"], byte(128, "uint8")]
    compare("QAttention", [x, weight, *rest, byte(0, "int8")], num_heads=4, unidirectional=causal)
