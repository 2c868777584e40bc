"""Static int8 beyond plain layers: tables, rounding, accelerators, and graphs that are odd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.constraints import Constraints, WeightOnlyFormat
from edgecompress.errors import DataError, PassError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text, small_cnn
from tests.running import X86, rows_of, run, sqnr_db

F = np.float32
NPU = replace(
    X86,
    int8_everywhere=True,
    int8_ops=X86.int8_ops | {"ConvTranspose", "ReduceMean", "Tanh", "LayerNormalization", "Sub"},
)


def quantized(
    folder: Path,
    model: Model,
    arrays: dict[str, np.ndarray],
    constraints: Constraints = X86,
    **options: Any,
) -> Applied:
    data = rows_of(folder, model, arrays)
    return run_pass(make_pass("quantize", options), model, Context(data, constraints))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(F)


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


def classifier(words: int = 64, width: int = 32) -> Model:
    """A table of words, their mean, a layer."""
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[N, 5] ids, float[{words}, {width}] table, float[{width}, 4] w, int64[1] axes)
          => (float[N, 4] y) {{
            e = Gather(table, ids)
            m = ReduceMean<keepdims=0>(e, axes)
            y = MatMul(m, w)
        }}""",
        table=normal(words, width),
        w=normal(width, 4, seed=1),
        axes=np.array([1]),
    )


def ids(rows: int = 16) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 64, (rows, 5))


@pytest.mark.parametrize(
    ("bits", "share", "least_db"), [(None, 0.31, 28), (8, 0.31, 28), (4, 0.19, 14), (False, 1, 28)]
)
def test_tables_beside_layers(
    tmp_path: Path, bits: int | None, share: float, least_db: float
) -> None:
    model = classifier()
    applied = quantized(tmp_path, model, {"ids": ids()}, embedding_bits=bits)
    expected, found = (run(m, {"ids": ids(64)})["y"] for m in (model, applied.model))
    assert sqnr_db(expected, found) > least_db
    stored = [c for c in applied.changed if c.op == "Gather"]
    assert len(stored) == (bits is not False)
    for change in stored:
        assert change.bytes_after <= share * change.bytes_before


def test_tables_of_a_width_that_the_target_lacks(tmp_path: Path) -> None:
    weights = replace(X86.weight_only or WeightOnlyFormat(), embedding_bits=(8,))
    with pytest.raises(PassError, match="embedding_bits of 8, got 4"):
        quantized(
            tmp_path,
            classifier(),
            {"ids": ids()},
            replace(X86, weight_only=weights),
            embedding_bits=4,
        )


@pytest.mark.parametrize("rounding", ["gptq", "adaround", "learned"])
def test_rounding_is_measured_and_no_worse(tmp_path: Path, rounding: str) -> None:
    model, arrays = small_cnn(), {"x": normal(32, 3, 16, 16)}
    options = {"bias_correction": False, "rounding_iterations": 50}
    nearest = quantized(tmp_path, model, arrays, bias_correction=False)
    rounded = quantized(tmp_path, model, arrays, rounding=rounding, **options)
    notes = rounded.notes["rounding"]
    assert [n["op"] for n in notes] == [c.op for c in rounded.changed if c.op in ("Conv", "Gemm")]
    expected = run(model, {"x": arrays["x"]})
    name = next(iter(expected))
    quality = [sqnr_db(expected[name], run(a.model, arrays)[name]) for a in (nearest, rounded)]
    assert quality[1] > quality[0] - 0.5


def test_an_accelerator_gets_integers_everywhere(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4, 8] x, float[8, 8] w, float[8] b, float[8] s) => (float[N, 4, 4] y) {
            m = MatMul(x, w)
            a = Add(m, b)
            n = LayerNormalization(a, s)
            t = Transpose<perm = [0, 2, 1]>(n)
            y = MatMul(n, t)
        }""",
        w=normal(8, 8),
        b=normal(8, seed=1),
        s=np.ones(8, F),
    )
    arrays = {"x": normal(16, 4, 8, seed=2)}
    applied = quantized(tmp_path, model, arrays, NPU)
    assert {c.op for c in applied.changed} == {"MatMul", "Add", "LayerNormalization"}
    assert len([c for c in applied.changed if c.op == "MatMul"]) == 2
    for node in applied.model.ir.graph:
        if node.op_type in ("MatMul", "Add"):
            sources = [v.producer() for v in node.inputs if v is not None]
            assert all(s is not None and s.op_type == "DequantizeLinear" for s in sources)
    expected, found = (run(m, arrays)["y"] for m in (model, applied.model))
    assert sqnr_db(expected, found) > 30
    on_cpu = quantized(tmp_path, model, arrays)
    assert [c.op for c in on_cpu.changed] == ["MatMul"]
    assert any("both inputs are computed" in s.reason for s in on_cpu.skipped)


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(tmp_path: Path, group: int) -> None:
    model = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4, 5, 5] x, float[4, 3, 2, 2] w, float[{3 * group}] b)
          => (float[N, {3 * group}, 10, 10] y) {{
            y = ConvTranspose<group = {group}, strides = [2, 2]>(x, w, b)
        }}""",
        w=normal(4, 3, 2, 2),
        b=normal(3 * group, seed=1),
    )
    arrays = {"x": normal(16, 4, 5, 5, seed=2)}
    found = run(quantized(tmp_path, model, arrays, NPU).model, arrays)["y"]
    assert sqnr_db(run(model, arrays)["y"], found) > 35


def test_wide_activations(tmp_path: Path) -> None:
    arrays = {"x": normal(32, 3, 16, 16)}
    wide = replace(X86, wide_activation="uint16", opset_min=21)
    old = small_cnn()
    with pytest.raises(PassError, match="needs opset 21"):
        quantized(tmp_path, old, arrays, wide, activation_bits=16)
    model = run_pass(make_pass("cleanup", {}), old, Context(constraints=wide)).model
    expected = run(model, arrays)
    name = next(iter(expected))
    quality = {}
    for bits in (8, 16):
        applied = quantized(tmp_path, model, arrays, wide, activation_bits=bits)
        quality[bits] = sqnr_db(expected[name], run(applied.model, arrays)[name])
    assert quality[16] > quality[8] + 2
    with pytest.raises(PassError, match="16-bit activations"):
        quantized(tmp_path, model, arrays, activation_bits=16)


def test_the_mask_of_an_attention_stays_float(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4, 8] x, float[N, 4] mask, float[8, 4] w) => (float[N, 4, 4] y) {
            m = MatMul(x, w)
            axes = Constant<value = int64[1] {1}> ()
            wide = Unsqueeze(mask, axes)
            a = Add(m, wide)
            y = Softmax(a)
        }""",
        w=normal(8, 4),
    )
    mask = np.zeros((16, 4), F)
    mask[:, 3] = np.finfo(F).min
    arrays = {"x": normal(16, 4, 8, seed=1), "mask": mask}
    applied = quantized(tmp_path, model, arrays, NPU)
    assert any(s.op == "Add" and "mask" in s.reason for s in applied.skipped)
    found = run(applied.model, arrays)["y"]
    assert sqnr_db(run(model, arrays)["y"], found) > 25


def test_one_row_is_enough(tmp_path: Path) -> None:
    model, arrays = small_cnn(), {"x": normal(1, 3, 16, 16)}
    found = quantized(tmp_path, model, arrays, method="auto", rounding="gptq").model
    expected = run(model, arrays)
    name = next(iter(expected))
    assert sqnr_db(expected[name], run(found, arrays)[name]) > 20


def test_a_weight_that_is_an_output_stays(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 8] x, float[8, 4] w) => (float[N, 4] y, float[8, 4] w) {
            y = MatMul(x, w)
        }""",
        w=normal(8, 4),
    )
    arrays = {"x": normal(16, 8, seed=1)}
    found = run(quantized(tmp_path, model, arrays).model, arrays)
    np.testing.assert_array_equal(found["w"], normal(8, 4))


def test_activations_that_overflow_are_named(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 8] x, float[8, 4] w) => (float[N, 4] y) {
            e = Exp(x)
            y = MatMul(e, w)
        }""",
        w=normal(8, 4),
    )
    with pytest.raises(DataError, match="NaN or infinite") as error:
        quantized(tmp_path, model, {"x": np.full((4, 8), 1000, F)})
    assert "'e'" in str(error.value)


def test_layers_in_bodies_are_left_alone(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 8] x, bool flag, float[8, 8] w, float[8, 8] v) => (float[N, 8] y) {
            a = MatMul(x, v)
            y = If (flag) <
                then_branch = t () => (float[N, 8] p) { p = MatMul(a, w) },
                else_branch = e () => (float[N, 8] q) { q = Identity(a) }
            >
        }""",
        w=normal(8, 8),
        v=normal(8, 8, seed=1),
    )
    data = {"x": normal(8, 8, seed=2), "flag": np.ones(8, bool)}
    try:
        applied = quantized(tmp_path, model, data)
    except DataError:
        pytest.skip("a scalar input cannot have rows")
    assert [c.op for c in applied.changed] == ["MatMul"]
    assert any("subgraph" in s.reason for s in applied.skipped)


def test_a_target_without_integers(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="no int8 kernels"):
        quantized(tmp_path, small_cnn(), {"x": normal(4, 3, 16, 16)}, replace(X86, int8=None))
