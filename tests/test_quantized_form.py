from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from edgecompress.constraints import Constraints, HalfFormat
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.quantized_form import quantized_form
from edgecompress.sources import load
from tests.models import from_text, small_cnn


class Rows(CalibrationDataReader):
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.left = [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(2)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def mlp() -> Model:
    rng = np.random.default_rng(0)
    return from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        mlp (float[N, 32] x, float[32, 32] w1, float[32, 32] w2) => (float[N, 32] y)
        {
            h = MatMul(x, w1)
            r = Relu(h)
            y = MatMul(r, w2)
        }
        """,
        w1=rng.normal(size=(32, 32)).astype(np.float32),
        w2=rng.normal(size=(32, 32)).astype(np.float32),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    small_cnn().save(tmp_path / "float.onnx")
    mlp().save(tmp_path / "mlp.onnx")
    return tmp_path / "q.onnx"


@pytest.mark.parametrize(
    ("layout", "excluded", "weights", "text"),
    [
        (QuantFormat.QDQ, [], QuantType.QInt8, "static QDQ (int8): 3 of 3 Conv, 1 of 1 Gemm"),
        (QuantFormat.QDQ, [""], QuantType.QUInt8, "static QDQ (uint8): 2 of 3 Conv, 1 of 1 Gemm"),
        (QuantFormat.QOperator, [], QuantType.QInt8,
         "static QOperator (int8): 3 of 3 Conv, 1 of 1 Gemm"),
    ],
)  # fmt: skip
def test_static_files(
    file: Path, layout: QuantFormat, excluded: list[str], weights: QuantType, text: str
) -> None:
    source = onnx.load(file.with_name("float.onnx"))
    for node in source.graph.node:
        node.name = node.output[0]
    onnx.save(source, file.with_name("float.onnx"))
    quantize_static(
        file.with_name("float.onnx"),
        file,
        Rows("x", (2, 3, 16, 16)),
        quant_format=layout,
        activation_type=QuantType.QUInt8,
        weight_type=weights,
        nodes_to_exclude=["c2"] if excluded else [],
    )
    assert str(quantized_form(Model.load(file))) == text


@pytest.mark.parametrize("name", ["float", "mlp"])
def test_float_files(file: Path, name: str) -> None:
    assert quantized_form(Model.load(file.with_name(f"{name}.onnx"))) is None
    assert load(file.with_name(f"{name}.onnx")).notes == ()


def test_dynamic_files(file: Path) -> None:
    quantize_dynamic(file.with_name("mlp.onnx"), file, weight_type=QuantType.QInt8)
    form = quantized_form(Model.load(file))
    assert form is not None
    assert form.kinds == ("dynamic",)
    assert str(form) == "dynamic (int8): 2 of 2 MatMul"
    assert load(file).notes == (f"is quantized already: {form}",)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (QuantFormat.QOperator, "weight-only (4-bit): 2 of 2 MatMul"),
        (QuantFormat.QDQ, "weight-only (int4): 2 of 2 MatMul"),
    ],
)
def test_weight_only_files(file: Path, layout: QuantFormat, text: str) -> None:
    source = onnx.load(file.with_name("mlp.onnx"))
    quantizer = MatMulNBitsQuantizer(source, block_size=32, is_symmetric=True, quant_format=layout)
    quantizer.process()
    onnx.save(quantizer.model.model, file)
    assert str(quantized_form(Model.load(file))) == text


def test_pairs_around_no_layer() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[4] x, float s, uint8 z) => (float[4] y)
        {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }
        """,
        s=np.array(0.1, np.float32),
        z=np.array(0, np.uint8),
    )
    assert str(quantized_form(model)) == "integers around no layer"


def test_layers_inside_functions_count() -> None:
    model = Model(
        ir.from_onnx_text(
            """
            <ir_version: 10, opset_import: ["" : 20, "own" : 1]>
            g (float[N, 4] x, int8[4, 4] w, float s) => (float[N, 4] y) { y = own.Layer(x, w, s) }
            <domain: "own", opset_import: ["" : 20]>
            Layer (x, w, s) => (y) {
                d = DequantizeLinear(w, s)
                y = MatMul(x, d)
            }
            """
        )
    )
    form = quantized_form(model)
    assert form is not None
    assert form.layers == {"MatMul": (1, 1)}


def made_by(step: str, text: str, constraints: Constraints, **arrays: np.ndarray) -> str:
    model = run_pass(make_pass(step, {}), from_text(text, **arrays), Context(None, constraints))
    return str(quantized_form(model.model))


PRODUCT = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { y = MatMul(x, w) }"""
WEIGHT = {"w": np.ones((64, 64), np.float32)}


@pytest.mark.parametrize(
    ("step", "constraints", "text"),
    [
        ("quantize_dynamic", Constraints(dynamic_int8=True), "dynamic (int8): 1 of 1 MatMul"),
        ("half", Constraints(half=HalfFormat()), "weight-only (float16): 1 of 1 MatMul"),
        (
            "half",
            Constraints(half=HalfFormat("bfloat16")),
            "weight-only (bfloat16): 1 of 1 MatMul",
        ),
        (
            "half",
            Constraints(half=HalfFormat(native=True)),
            "half precision (float16): 1 of 1 MatMul",
        ),
    ],
)
def test_what_our_own_passes_make(step: str, constraints: Constraints, text: str) -> None:
    assert made_by(step, PRODUCT, constraints, **WEIGHT) == text


def test_wide_activations_are_named() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 4] x, float s, uint16 z, int8[4, 4] w) => (float[N, 4] y)
        {
            q = QuantizeLinear(x, s, z)
            a = DequantizeLinear(q, s, z)
            b = DequantizeLinear(w, s)
            y = MatMul(a, b)
        }
        """,
        s=np.array(0.1, np.float32),
        z=np.array(0, np.uint16),
        w=np.ones((4, 4), np.int8),
    )
    form = quantized_form(model)
    assert form is not None
    assert form.activations == ("uint16",)
    assert str(form) == "static QDQ (int8, uint16 activations): 1 of 1 MatMul"


@pytest.mark.parametrize(
    "body",
    [
        "d = DequantizeLinear(w, s)  y = Gather(d, i)",
        "g = Gather(w, i)  y = DequantizeLinear(g, s)",
        "t = DequantizeLinear<axis=1, block_size=2>(w, r)  y = Gather(t, i)",
        "y = com.microsoft.GatherBlockQuantized<bits=8, block_size=16>(w, i, s)",
    ],
)
def test_quantized_tables(body: str) -> None:
    model = from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (int64[N] i, int8[9, 4] w, float s, float[9, 2] r) => (float[N, 4] y) {{ {body} }}
        """,
        w=np.ones((9, 4), np.int8),
        s=np.array(0.1, np.float32),
        r=np.ones((9, 2), np.float32),
    )
    form = quantized_form(model)
    assert form is not None
    assert form.kinds == ("weight-only",)
    assert form.layers == {"Gather": (1, 1)}
