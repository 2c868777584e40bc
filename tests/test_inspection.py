from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.inspection import inspect_model, macs
from edgecompress.model import Model
from edgecompress.torchgraph import supported_operators
from tests.models import from_text, small_cnn

F = np.float32


def head(signature: str, body: str, opset: int = 20, extra: str = "") -> str:
    return f'<ir_version: 10, opset_import: ["" : {opset}{extra}]> g {signature} {{ {body} }}'


# Multiply-accumulates at batch 1, worked out by hand.
COUNTED = {
    "Conv, groups, strides, pads": (
        head(
            "(float[N, 4, 9, 9] x, float[6, 2, 3, 3] w) => (float[N, 6, a, b] y)",
            "y = Conv<group=2, strides=[2, 2], pads=[1, 1, 1, 1]>(x, w)",
        ),
        {"w": np.zeros((6, 2, 3, 3), F)},
        6 * 5 * 5 * 2 * 3 * 3,
    ),
    "Conv over one axis": (
        head("(float[N, 2, 8] x, float[3, 2, 3] w) => (float[N, 3, a] y)", "y = Conv(x, w)"),
        {"w": np.zeros((3, 2, 3), F)},
        3 * 6 * 2 * 3,
    ),
    "ConvTranspose": (
        head(
            "(float[N, 4, 5, 5] x, float[4, 3, 2, 2] w) => (float[N, 3, a, b] y)",
            "y = ConvTranspose<strides=[2, 2]>(x, w)",
        ),
        {"w": np.zeros((4, 3, 2, 2), F)},
        4 * 5 * 5 * 3 * 2 * 2,
    ),
    "Gemm": (
        head("(float[N, 7] x, float[5, 7] w) => (float[N, 5] y)", "y = Gemm<transB=1>(x, w)"),
        {"w": np.zeros((5, 7), F)},
        35,
    ),
    "Gemm, first factor transposed": (
        head("(float[7, 3] x, float[7, 5] w) => (float[3, 5] y)", "y = Gemm<transA=1>(x, w)"),
        {"w": np.zeros((7, 5), F)},
        3 * 7 * 5,
    ),
    "MatMul in a batch": (
        head("(float[N, 6, 7] x, float[7, 5] w) => (float[N, 6, 5] y)", "y = MatMul(x, w)"),
        {"w": np.zeros((7, 5), F)},
        6 * 7 * 5,
    ),
    "MatMul of two activations": (
        head(
            "(float[N, 2, 6, 7] x, float[N, 2, 7, 6] z) => (float[N, 2, 6, 6] y)", "y=MatMul(x,z)"
        ),
        {},
        2 * 6 * 7 * 6,
    ),
    "LSTM": (
        head(
            "(float[4, N, 3] x, float[1, 20, 3] w, float[1, 20, 5] r) => (float[4, 1, N, 5] y)",
            "y = LSTM<hidden_size=5>(x, w, r)",
        ),
        {"w": np.zeros((1, 20, 3), F), "r": np.zeros((1, 20, 5), F)},
        None,  # the batch is not the first dimension of its input, so nobody says that it is 1
    ),
    "LSTM at batch 1": (
        head(
            "(float[4, 1, 3] x, float[1, 20, 3] w, float[1, 20, 5] r) => (float[4, 1, 1, 5] y)",
            "y = LSTM<hidden_size=5>(x, w, r)",
        ),
        {"w": np.zeros((1, 20, 3), F), "r": np.zeros((1, 20, 5), F)},
        4 * 20 * (3 + 5),
    ),
    "free length": (
        head("(float[N, L, 7] x, float[7, 5] w) => (float[N, L, 5] y)", "y = MatMul(x, w)"),
        {"w": np.zeros((7, 5), F)},
        None,
    ),
    "Einsum": (
        head(
            "(float[2, 3] x, float[3, 2] z) => (float[2, 2] y)", 'y=Einsum<equation="ij,jk">(x,z)'
        ),
        {},
        None,
    ),
    "nothing to multiply": (head("(float[N, 3] x) => (float[N, 3] y)", "y = Relu(x)"), {}, 0),
}


@pytest.mark.parametrize("case", COUNTED, ids=list(COUNTED))
def test_multiply_accumulates(case: str) -> None:
    text, initializers, expected = COUNTED[case]
    model = from_text(text, **initializers)
    counts = macs(model)
    assert counts == ({} if expected == 0 else {"y": expected})
    assert inspect_model(model).macs == expected


def test_small_cnn_layer_by_layer() -> None:
    model = small_cnn()
    before = model.digest
    found = inspect_model(model)
    assert macs(model) == {
        "c1": 8 * 8 * 8 * 27,
        "c2": 8 * 8 * 8 * 9,
        "c3": 8 * 8 * 8 * 8,
        "y": 80,
    }
    assert found.macs == sum(v for v in macs(model).values() if v is not None)
    assert [(layer.op, layer.weight_shape) for layer in found.layers] == [
        ("Conv", [8, 3, 3, 3]),
        ("Conv", [8, 1, 3, 3]),
        ("Conv", [8, 8, 1, 1]),
        ("Gemm", [10, 8]),
    ]
    parameters = [8 * 27 + 8, 8 * 9 + 8, 64 + 8, 80 + 10]
    assert [layer.parameters for layer in found.layers] == parameters
    assert [layer.bytes for layer in found.layers] == [4 * n for n in parameters]
    assert found.parameters == sum(parameters)
    assert all("quantize" in layer.passes for layer in found.layers)
    assert found.operators["Conv"] == 3
    assert found.nodes == 9
    assert not found.already_quantized
    assert found.unsupported == []
    assert found.size_bytes == model.size_bytes
    assert model.digest == before


def test_weights_that_nodes_share_count_once() -> None:
    model = from_text(
        head(
            "(float[N, 4] x, float[4, 4] w) => (float[N, 4] y)", "a = MatMul(x, w) y = MatMul(a, w)"
        ),
        w=np.zeros((4, 4), F),
    )
    found = inspect_model(model)
    assert [layer.parameters for layer in found.layers] == [16, 16]
    assert found.parameters == 16


def test_sees_weights_through_dequantize() -> None:
    model = from_text(
        head(
            "(float[N, 4] x, int8[4, 3] w, float s, int32[3] b, float t) => (float[N, 3] y)",
            "v = DequantizeLinear(w, s) c = DequantizeLinear(b, t) y = Gemm(x, v, c)",
        ),
        w=np.zeros((4, 3), np.int8),
        s=np.array(0.5, F),
        b=np.zeros(3, np.int32),
        t=np.array(0.5, F),
    )
    found = inspect_model(model)
    (layer,) = found.layers
    assert (layer.op, layer.parameters, layer.bytes) == ("Gemm", 15, 12 + 12)
    assert layer.macs == 12
    assert found.already_quantized


def test_weights_packed_to_four_bits() -> None:
    model = from_text(
        head(
            "(float[N, 32] x, uint8[5, 1, 16] w, float[5] s) => (float[N, 5] y)",
            "y = com.microsoft.MatMulNBits<K=32, N=5, bits=4, block_size=32>(x, w, s)",
            extra=', "com.microsoft" : 1',
        ),
        w=np.zeros((5, 1, 16), np.uint8),
        s=np.zeros(5, F),
    )
    (layer,) = inspect_model(model).layers
    assert layer.op == "com.microsoft::MatMulNBits"
    assert layer.parameters == 32 * 5
    assert layer.bytes == 5 * 16 + 5 * 4
    assert layer.macs == 32 * 5


def test_constants_that_are_no_weights_make_no_layer() -> None:
    model = from_text(
        head(
            "(float[N, 4] x, float lo, float hi, int64[2] shape, float two) => (float[N, 2, 2] y)",
            "a = Clip(x, lo, hi) b = Mul(a, two) y = Reshape(b, shape)",
        ),
        lo=np.array(0, F),
        hi=np.array(6, F),
        two=np.array(2, F),
        shape=np.array([-1, 2]),
    )
    found = inspect_model(model)
    assert found.layers == []
    assert found.parameters == 0


BRANCHES = """
<ir_version: 10, opset_import: ["" : 20]>
g (bool c, float[N, 4] x, float[4, 4] w) => (float[N, 4] y) {
  y = If (c) <
    then_branch = t () => (float[N, 4] a) { m = MatMul(x, w) a = MatMul(m, w) },
    else_branch = e () => (float[N, 4] b) { b = MatMul(x, w) }
  >
}
"""


def test_of_two_branches_the_dearer_counts() -> None:
    model = from_text(BRANCHES, w=np.zeros((4, 4), F))
    assert macs(model) == {"m": 16, "a": 16, "b": 16}
    assert inspect_model(model).macs == 32


def test_functions_are_looked_into() -> None:
    model = Model(
        ir.from_onnx_text(
            """
            <ir_version: 10, opset_import: ["" : 20, "own" : 1]>
            g (float[N, 4] x, float[4, 3] w) => (float[N, 3] y) { y = own.linear(x, w) }
            <domain: "own", opset_import: ["" : 20]>
            linear (a, b) => (c) { c = MatMul(a, b) }
            """
        )
    )
    assert macs(model) == {"y": 12}
    assert inspect_model(model).unsupported == []


def test_operators_without_translation_are_named() -> None:
    model = from_text(
        head(
            "(float[N, 4] x) => (float[N, 4] y)",
            "a = com.example.Odd(x) y = Relu(a)",
            extra=', "com.example" : 1',
        )
    )
    assert ("com.example", "Odd") not in supported_operators()
    assert inspect_model(model).unsupported == ["com.example::Odd"]


def test_size_counts_external_data(tmp_path: Path) -> None:
    model = small_cnn()
    written = model.save(tmp_path / "m.onnx", external_data=True)
    assert len(written) == 2
    found = inspect_model(Model.load(tmp_path / "m.onnx"))
    assert found.size_bytes == sum(file.stat().st_size for file in written)


@pytest.mark.parametrize(
    ("name", "parameters", "total"),
    [
        # Of the papers: 2.6 M parameters and 325 M MACs, batch norms folded here; 0.27 M and 41 M.
        ("mobilenet_v1_075_224.onnx", 2_577_352, 325_400_448),
        ("resnet20_cifar10.onnx", 269_034, 40_551_040),
    ],
)
def test_real_models(shared: Callable[[str], Path], name: str, parameters: int, total: int) -> None:
    model = Model.load(shared(name))
    found = inspect_model(model)
    assert found.parameters == parameters
    assert found.macs == total
    assert found.size_bytes == shared(name).stat().st_size


def test_a_model_with_branches_and_recurrence(shared: Callable[[str], Path]) -> None:
    found = inspect_model(Model.load(shared("silero_vad.onnx")))
    assert found.macs is None  # the length of the audio is free
    assert {"LSTM", "Conv"} <= {layer.op for layer in found.layers}
