"""Taking Q/DQ pairs out of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.runtimes._float_graph import bits_of_pair, float_graph, is_quantized, why_float
from edgecompress.runtimes._mnn_ranges import compression_file, quantized_layers
from tests.models import from_text, small_cnn
from tests.running import ARM, X86, run, sqnr_db
from tests.runtimes.converted import images, int8_cnn

PAIRS = {"QuantizeLinear", "DequantizeLinear"}
F = np.float32


def quantized(body: str, outputs: str = "float[1, 4, 4] y", **constants: Any) -> Model:
    declared = "".join(
        f", {'float' if a.dtype == F else a.dtype.name}{list(a.shape) if a.ndim else ''} {name}"
        for name, a in constants.items()
    )
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[1, 4, 4] x{declared}) => ({outputs}) {{ {body} }}""",
        **constants,
    )


SCALE: dict[str, Any] = {
    "s": np.array(0.02, F),
    "z": np.array(128, np.uint8),
    "zero": np.array(0, np.uint8),
}
X = {"x": np.random.default_rng(0).normal(0, 1, (1, 4, 4)).astype(F)}


@pytest.mark.parametrize("constraints", [X86, ARM], ids=["u8", "s8"])
def test_a_network_without_its_pairs_is_nearly_the_same(tmp_path: Path, constraints: Any) -> None:
    model = int8_cnn(tmp_path, constraints)
    found = float_graph(model)
    found.model.check()
    assert is_quantized(model)
    assert not is_quantized(found.model)
    assert not PAIRS & {node.op_type for node in found.model.ir.graph}
    assert found.model.signature == model.signature
    (exact,) = run(found.model, images(4)).values()
    (rounded,) = run(model, images(4)).values()
    assert sqnr_db(exact, rounded) > 20
    # The mean over space was never negative in calibration, so the integers cut it off at zero.
    assert set(found.clipped) <= {"v/relu"}


def test_weights_are_the_rounded_ones_and_their_grid_is_told(tmp_path: Path) -> None:
    found = float_graph(int8_cnn(tmp_path))
    convolution = next(node for node in found.model.ir.graph if node.op_type == "Conv")
    weight = convolution.inputs[1]
    assert weight is not None
    grid = found.weights[weight.name or ""]
    assert (grid.dtype, grid.axis, grid.symmetric, len(grid.scale)) == ("int8", 0, True, 8)
    integers = np.asarray(found.model.initializer(weight.name or ""), F) / grid.scale.reshape(
        -1, 1, 1, 1
    )
    np.testing.assert_allclose(integers, integers.round(), atol=1e-4)
    assert {"x", "r1", "s"} <= set(found.activations)
    assert found.activations["r1"].starts_at_zero


def test_a_model_without_pairs_stays_as_it_is() -> None:
    model = small_cnn()
    assert not is_quantized(model)
    assert float_graph(model).model.digest == model.digest


def test_a_range_without_negative_numbers_becomes_a_relu() -> None:
    body = "q = QuantizeLinear(x, s, zero) y = DequantizeLinear(q, s, zero)"
    model = quantized(body, **{k: SCALE[k] for k in ("s", "zero")})
    found = float_graph(model)
    assert len(found.clipped) == 1
    (y,) = run(found.model, X).values()
    np.testing.assert_array_equal(y, np.maximum(X["x"], 0))


def test_integers_that_are_padded_and_moved_become_floats() -> None:
    body = """
        q = QuantizeLinear(x, s, z)
        p = Pad(q, pads, z)
        t = Transpose<perm=[0,2,1]>(p)
        y = DequantizeLinear(t, s, z)
    """
    constants: dict[str, Any] = {
        "s": SCALE["s"],
        "z": SCALE["z"],
        "pads": np.array([0, 0, 1, 0, 0, 1]),
    }
    model = quantized(body, "float[1, 6, 4] y", **constants)
    found = float_graph(model)
    found.model.check()
    (y,) = run(found.model, X).values()
    np.testing.assert_array_equal(y, np.pad(X["x"], [(0, 0), (0, 0), (1, 1)]).transpose(0, 2, 1))
    assert found.activations["y"].scale == F(0.02)


@pytest.mark.parametrize("block", [2, 4])
def test_weights_in_blocks_are_the_same_numbers(block: int) -> None:
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "w": rng.integers(-8, 8, (4, 3)).astype(np.int8),
        "ws": rng.random((4 // block, 3)).astype(F),
    }
    body = f"d = DequantizeLinear<axis=0, block_size={block}>(w, ws) y = MatMul(x, d)"
    model = quantized(body, "float[1, 4, 3] y", **constants)
    found = float_graph(model)
    np.testing.assert_array_equal(run(found.model, X)["y"], run(model, X)["y"])


def test_tables_of_onnxruntimes_own_operator_become_float() -> None:
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "t": rng.integers(0, 255, (5, 32)).astype(np.uint8),
        "ts": rng.random((5, 2)).astype(F),
        "rows": np.array([4, 0, 2]),
    }
    body = """
        g = com.microsoft.GatherBlockQuantized
            <bits=8, block_size=16, gather_axis=0, quantize_axis=1>(t, rows, ts)
        k = ReduceSum<keepdims=0>(x)
        y = Add(g, k)
    """
    model = quantized(body, "float[3, 32] y", **constants)
    found = float_graph(model)
    assert "GatherBlockQuantized" not in {node.op_type for node in found.model.ir.graph}
    np.testing.assert_allclose(run(found.model, X)["y"], run(model, X)["y"], rtol=1e-6)


def test_a_computed_scale_is_refused() -> None:
    body = "k = ReduceMax<keepdims=0>(x) q = QuantizeLinear(x, k, z) y = DequantizeLinear(q, k, z)"
    with pytest.raises(ModelError, match="expected stored scales"):
        float_graph(quantized(body, z=SCALE["z"]))


@pytest.mark.parametrize(
    ("dtype", "zero", "said"),
    [
        ("uint16", 5, "8 bits"),
        ("int8", 5, "as uint8, or as int8 without zero points"),
        ("uint8", 128, "its output, too"),
    ],
)
def test_the_reason_why_a_node_stays_float(dtype: str, zero: int, said: str) -> None:
    constants: dict[str, Any] = {"s": SCALE["s"], "z": np.array(zero, dtype)}
    body = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Exp(d)"
    model = quantized(body, **constants)
    assert said in why_float(list(model.ir.graph)[-1])
    assert bits_of_pair(next(iter(model.ir.graph))) == np.dtype(dtype).itemsize * 8


def test_ranges_for_mnn(tmp_path: Path) -> None:
    found = float_graph(int8_cnn(tmp_path))
    layers, left = quantized_layers(found)
    assert left == {"y": "its output is float"}
    assert [layer.node for layer in layers] == ["c1", "c2", "c3"]
    first = layers[0]
    assert first.names[:2] == ("c1", "r1")
    x = found.activations["x"]
    low, high = (float(x.scale * (n - x.zero_point)) for n in (0, 255))
    assert first.input[0] == pytest.approx(max(-low, high) / 127)
    assert first.input[1] == first.output[1] == 0  # read by others than convolutions: widened
    assert layers[1].output[0] == pytest.approx(float(found.activations["r2"].scale))
    assert layers[1].output[1] == -128  # between two convolutions: as it was
    assert len(first.weight_scales) == 8
    content = compression_file(layers)
    assert content.startswith(b"\x0a\x050.0.0\x12")
    assert b"r1" in content


def test_why_mnn_gets_no_ranges() -> None:
    constants: dict[str, Any] = {
        "w": np.ones((4, 3), np.int8),
        "ws": np.ones(3, F),
        "wz": np.ones(3, np.int8),
        **SCALE,
    }
    body = """
        d = DequantizeLinear<axis=1>(w, ws, wz)
        a = MatMul(x, d)
        q = QuantizeLinear(x, s, z)
        e = DequantizeLinear(q, s, z)
        b = MatMul(e, d)
        aq = QuantizeLinear(b, s, z)
        c = DequantizeLinear(aq, s, z)
        m = QuantizeLinear(a, s, zero)
        n = DequantizeLinear(m, s, zero)
        y = Add(c, n)
    """
    layers, left = quantized_layers(float_graph(quantized(body, "float[1, 4, 3] y", **constants)))
    assert layers == []
    assert set(left.values()) <= {"its weights have zero points", "its output is float"}
    assert len(left) == 2
