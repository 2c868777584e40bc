"""The quantize_weights pass: what its graphs hold and compute, what it leaves alone, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecompress.constraints import Constraints, WeightOnlyFormat
from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import PassError, RecipeError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.resources import Resources
from edgecompress.torchgraph import to_torch
from tests.models import from_text
from tests.running import rows_of, run, sqnr_db

F = np.float32
NBITS = Constraints(weight_only=WeightOnlyFormat(layout="nbits"))
QDQ = Constraints(weight_only=WeightOnlyFormat(layout="qdq"))
LAYOUTS = pytest.mark.parametrize("target", [NBITS, QDQ], ids=["nbits", "qdq"])


def language_model(seed: int = 0, opset: int = 21) -> Model:
    """A table, a residual MLP (MatMul, Add, Relu, MatMul), a Gemm, and a head tied to the table."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(F)

    mixed = normal(48, 48) + np.eye(48, dtype=F)  # inputs of layers are correlated
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : {opset}]>
        lm (int64[N, 6] ids, float[64, 48] table, float[48] gain, float[48, 80] w1, float[80] b1,
            float[80, 48] w2, float[72, 48] w3, float[72] b3, int64[1] axes)
            => (float[N, 6, 64] logits, float[N, 72] y)
        {{
            e = Gather(table, ids)
            n = Mul(e, gain)
            h = MatMul(n, w1)
            a = Add(h, b1)
            r = Relu(a)
            p = MatMul(r, w2)
            s = Add(e, p)
            turned = Transpose<perm = [1, 0]>(table)
            logits = MatMul(s, turned)
            m = ReduceMean<keepdims = 0>(s, axes)
            y = Gemm<transB = 1>(m, w3, b3)
        }}
        """,
        table=normal(64, 48) @ mixed,
        gain=1 + normal(48) / 3,
        w1=normal(48, 80),
        b1=normal(80),
        w2=normal(80, 48),
        w3=normal(72, 48),
        b3=normal(72),
        axes=np.array([1]),
    )


def tokens(rows: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 64, (rows, 6))


def applied(
    model: Model,
    target: Constraints,
    data: CalibrationSet | None = None,
    resources: Resources | None = None,
    **options: Any,
) -> Applied:
    context = Context(data, target, resources=resources or Resources())
    return run_pass(make_pass("quantize_weights", options), model, context)


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


def assert_agrees(model: Model, feeds: dict[str, np.ndarray], least_db: float) -> None:
    """onnxruntime, optimized and not, and the bridge compute the same.

    The kernels of MatMulNBits round activations to 8 bits, which is worth 40 dB.
    """
    with torch.no_grad():
        bridge = to_torch(model)({k: torch.from_numpy(v) for k, v in feeds.items()})
    for optimize in (False, True):
        for name, found in run(model, feeds, optimize=optimize).items():
            expected = bridge[name].numpy()
            same = np.array_equal(expected, found)
            assert same or sqnr_db(expected, found) > least_db, (name, optimize)


@LAYOUTS
@pytest.mark.parametrize(
    ("options", "least_db"),
    [
        ({"bits": 4}, 15),
        ({"bits": 4, "symmetric": True, "method": "minmax", "block_size": 16}, 14),
        ({"bits": 8}, 35),
        ({"bits": 8, "symmetric": False, "block_size": 64}, 35),
        ({"bits": 8, "embedding_bits": 4}, 15),
        ({"bits": 4, "embedding_bits": 8}, 15),
        ({"bits": 4, "embedding_bits": 16}, 15),
        ({"bits": 4, "embedding_bits": False}, 15),
    ],
)
def test_computes_the_same(target: Constraints, options: dict[str, Any], least_db: float) -> None:
    model, feeds = language_model(), {"ids": tokens()}
    done = applied(model, target, **{"method": "mse", **options})
    assert_agrees(done.model, feeds, 35)
    expected, found = run(model, feeds), run(done.model, feeds)
    for name in expected:
        assert sqnr_db(expected[name], found[name]) > least_db
    assert done.model.size_bytes < model.size_bytes


def test_operators_of_onnxruntime() -> None:
    """Biases go into the kernels; the tied table lies in the file once."""
    model = language_model()
    done = applied(model, NBITS, method="mse", block_size=16)
    assert ops(done.model) == {
        "MatMulNBits": 4,
        "GatherBlockQuantized": 1,
        "Reshape": 1,
        "Mul": 1,
        "Relu": 1,
        "Add": 1,
        "ReduceMean": 1,
    }
    packed = [n for n in done.model.ir.graph.initializers if "packed" in n]
    assert sorted(packed) == ["table_packed", "w1_packed", "w2_packed", "w3_packed"]
    assert {change.node for change in done.changed} >= {"h", "p", "y", "e", "logits"}
    assert set(done.claimed) == {"a", "p", "y", "logits"}
    assert not [key for key in done.notes if "is stored" in key]
    float_names = {"table", "w1", "w2", "w3"}
    assert not float_names & set(done.model.ir.graph.initializers)
    # 4 bits a weight; for 16 of them a scale of 32 bits, and a zero point of 4, in whole bytes.
    assert sum(c.bytes_after for c in done.changed) == sum(
        rows * (count * 8 + count * 4 + -(-count // 2))
        for rows, count in ((64, 3), (80, 3), (48, 5), (72, 3))
    )
    assert sum(c.bytes_before for c in done.changed) == 4 * sum(
        n.size for n in (model.initializer(name) for name in float_names)
    )


def test_standard_operators() -> None:
    """Each layer behind a DequantizeLinear in blocks; rows of the table are looked up as bytes."""
    done = applied(language_model(), QDQ, method="mse", embedding_bits=4)
    found = ops(done.model)
    assert found["DequantizeLinear"] == 5
    assert found["Gather"] == 3
    assert found["Transpose"] == 0
    assert set(done.model.ir.opset_imports) == {""}
    table = next(n for n in done.model.ir.graph if n.op_type == "DequantizeLinear")
    assert table.attributes["block_size"].value == 32
    assert done.notes["table is stored"].startswith("2 times, as 4-bit, 4-bit")


def test_onnxruntime_fuses_the_standard_form(tmp_path: Path) -> None:
    import onnx
    import onnxruntime as ort

    done = applied(language_model(), QDQ, method="mse", bits=4)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(done.model.to_bytes(), options, providers=["CPUExecutionProvider"])
    found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["MatMulNBits"] == 4
    # Rows that were looked up, once for each of their two readers.
    assert found["DequantizeLinear"] == 2


def test_a_tied_table_of_another_width_is_stored_twice() -> None:
    """48 is no multiple of 32: MatMulNBits fills the last block up, the lookup does not."""
    done = applied(language_model(), NBITS, method="mse")
    assert done.notes["table is stored"].startswith("2 times, as 4-bit, 4-bit")
    assert {"table_packed", "table_table"} <= set(done.model.ir.graph.initializers)


def test_rows_that_go_straight_into_a_layer_stay_float() -> None:
    """onnxruntime would take both DequantizeLinears for a MatMulIntegerToFloat, which fails."""
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[N] i, float[50, 64] t, float[64, 30] w) => (float[N, 30] y)
        { x = Gather(t, i)
          y = MatMul(x, w) }
        """,
        t=np.random.default_rng(0).normal(0, 1, (50, 64)).astype(F),
        w=np.random.default_rng(1).normal(0, 1, (64, 30)).astype(F),
    )
    done = applied(model, QDQ, method="mse", bits=8)
    assert [skip.reason for skip in done.skipped] == [
        "a layer reads it directly, which runtimes would not fuse, or fuse wrongly"
    ]
    assert_agrees(done.model, {"i": np.arange(50)}, 35)


@LAYOUTS
@pytest.mark.parametrize("columns", [40, 100])
def test_widths_that_are_no_multiple_of_a_block(target: Constraints, columns: int) -> None:
    rng = np.random.default_rng(0)
    model = from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[N] i, float[50, {columns}] t, float[{columns}, 30] w) => (float[N, 30] y)
        {{ x = Gather(t, i)
           r = Relu(x)
           y = MatMul(r, w) }}
        """,
        t=rng.normal(0, 1, (50, columns)).astype(F),
        w=rng.normal(0, 1, (columns, 30)).astype(F),
    )
    feeds = {"i": np.arange(50)}
    for bits in (4, 8):
        done = applied(model, target, method="mse", bits=bits, embedding_bits=bits, block_size=32)
        assert_agrees(done.model, feeds, 35)
        assert sqnr_db(run(model, feeds)["y"], run(done.model, feeds)["y"]) > bits * 4


@LAYOUTS
def test_gptq_beats_the_nearest(target: Constraints, tmp_path: Path) -> None:
    model = language_model()
    data = rows_of(tmp_path, model, {"ids": tokens(1024)})
    feeds = {"ids": tokens(256, seed=1)}
    expected = run(model, feeds)
    only: dict[str, Any] = {"embedding_bits": False, "nodes": {"logits": False}}
    by = {
        method: applied(model, target, data, method=method, rows=1024, **only)
        for method in ("gptq", "mse", "minmax")
    }
    for name in expected:
        db = {m: sqnr_db(expected[name], run(a.model, feeds)[name]) for m, a in by.items()}
        assert db["gptq"] > max(db["mse"], db["minmax"]) + 4
    assert "gptq" in by["gptq"].changed[0].what


def test_memory_does_not_change_the_result(tmp_path: Path) -> None:
    model = language_model()
    data = rows_of(tmp_path, model, {"ids": tokens(64)})
    digests = {
        applied(model, NBITS, data, Resources(memory=memory, scratch=tmp_path)).model.digest
        for memory in (None, 20_000)
    }
    assert len(digests) == 1


def test_a_weight_of_two_layers_is_stored_once(tmp_path: Path) -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 48] x, float[48, 48] w) => (float[N, 48] y)
        { a = MatMul(x, w)
          b = Relu(a)
          y = MatMul(b, w) }
        """,
        w=np.random.default_rng(0).normal(0, 1, (48, 48)).astype(F),
    )
    x = np.random.default_rng(1).normal(0, 1, (32, 48)).astype(F)
    data = rows_of(tmp_path, model, {"x": x})
    for target in (NBITS, QDQ):
        done = applied(model, target, data)
        numbers = [
            v
            for v in done.model.ir.graph.initializers.values()
            if "packed" in (v.name or "") or "quantized" in (v.name or "")
        ]
        assert len(numbers) == 1
        assert [c.bytes_after > 0 for c in done.changed] == [True, False]
        assert_agrees(done.model, {"x": x}, 35)


def test_gemm_with_a_bias_of_another_shape() -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4, 48] x, float[48, 32] w, float[4, 32] c) => (float[4, 32] y)
        { y = Gemm(x, w, c) }
        """,
        w=np.random.default_rng(0).normal(0, 1, (48, 32)).astype(F),
    )
    feeds = {
        n: np.random.default_rng(1).normal(0, 1, s).astype(F)
        for n, s in (("x", (4, 48)), ("c", (4, 32)))
    }
    for target in (NBITS, QDQ):
        done = applied(model, target, method="mse", bits=8)
        assert_agrees(done.model, feeds, 35)
        assert sqnr_db(run(model, feeds)["y"], run(done.model, feeds)["y"]) > 35


def one_layer(
    body: str, inputs: str = "float[N, 48] x", outputs: str = "float[N, 48] y", **arrays: np.ndarray
) -> Model:
    w = np.random.default_rng(0).normal(0, 1, (48, 48)).astype(F)
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g ({inputs}, float[48, 48] w) => ({outputs})
        {{ {body} }}
        """,
        **{"w": w, **arrays},
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (one_layer("t = Transpose(x) y = MatMul(t, x)"), "computed, not a constant"),
        (
            one_layer(
                "y = MatMul(x, v)",
                "float[2, N, 48] x, float[2, 48, 48] v",
                "float[2, N, 48] y",
                v=np.ones((2, 48, 48), F),
            ),
            "3 axes",
        ),
        (one_layer("y = Gemm<alpha = 0.5>(x, w)"), "alpha"),
        (one_layer("y = Gemm<transA = 1>(x, w)", "float[48, 48] x"), "transA"),
        (
            one_layer(
                "y = MatMul(x, v)",
                "float[N, 48] x, float[48, 4] v",
                "float[N, 4] y",
                v=np.ones((48, 4), F),
            ),
            "192 numbers is too small",
        ),
        (
            one_layer("y = Gather<axis = 1>(w, i)", "int64[N] i", "float[48, N] y"),
            "along another axis",
        ),
    ],
)
def test_leaves_alone(model: Model, reason: str) -> None:
    done = applied(model, NBITS, method="mse")
    assert done.model is model
    assert [reason in skip.reason for skip in done.skipped] == [True]


def test_a_weight_that_is_an_output_stays() -> None:
    model = one_layer("y = MatMul(x, w)")
    model.ir.graph.outputs.append(model.ir.graph.initializers["w"])
    done = applied(model, NBITS, method="mse")
    assert [skip.reason for skip in done.skipped] == ["its weight is an output of the model, too"]


def test_layers_in_bodies_stay() -> None:
    model = one_layer(
        """z = MatMul(x, w)
           y = If (c) <
             then_branch = g1 () => (float[N, 48] a) { a = MatMul(z, w) },
             else_branch = g2 () => (float[N, 48] b) { b = Identity(z) }
           >""",
        "float[N, 48] x, bool c",
    )
    done = applied(model, NBITS, method="mse")
    assert [(skip.node, skip.reason) for skip in done.skipped] == [
        ("a", "it lies inside the body of an If or a loop")
    ]
    x = np.random.default_rng(0).normal(0, 1, (8, 48)).astype(F)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        found, expected = run(done.model, feeds)["y"], run(model, feeds)["y"]
        assert sqnr_db(expected, found) > 15
    assert (
        done.notes["w is stored"] == "2 times, as 4-bit, float (0.0 MB), since its readers differ"
    )


def test_layers_left_out_and_options_of_single_layers() -> None:
    model = language_model()
    done = applied(
        model, NBITS, method="mse", ops={"Gemm": False}, nodes={"h": {"bits": 8}, "e": False}
    )
    assert {(s.node, s.reason) for s in done.skipped} == {
        ("y", "left out by the recipe"),
        ("e", "left out by the recipe"),
    }
    bits = {
        str(n.inputs[1].name): n.attributes["bits"].value
        for n in done.model.ir.graph
        if n.op_type == "MatMulNBits" and n.inputs[1] is not None
    }
    assert bits == {"w1_packed": 8, "w2_packed": 4, "table_packed": 4}
    assert done.notes["table is stored"].startswith("2 times, as 4-bit, float")


@LAYOUTS
def test_float16_weights(target: Constraints) -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[N] i, float16[64, 48] t, float16[48, 48] w) => (float16[N, 48] y)
        { x = Gather(t, i)
          y = MatMul(x, w) }
        """,
        t=np.random.default_rng(0).normal(0, 1, (64, 48)).astype(np.float16),
        w=np.random.default_rng(1).normal(0, 1, (48, 48)).astype(np.float16),
    )
    feeds = {"i": np.arange(64)}
    done = applied(model, target, method="mse", bits=8)
    assert_agrees(done.model, feeds, 30)
    assert sqnr_db(run(model, feeds)["y"], run(done.model, feeds)["y"]) > 30


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (Constraints(weight_only=None), {}, "takes no integer weights"),
        (Constraints(weight_only=WeightOnlyFormat(bits=(8,))), {"bits": 4}, "takes bits of 8"),
        (
            Constraints(weight_only=WeightOnlyFormat(block_sizes=(32, 64))),
            {"block_size": 128},
            "takes block_size of 32, 64",
        ),
        (
            Constraints(weight_only=WeightOnlyFormat(embedding_bits=(8,))),
            {"embedding_bits": 4},
            "takes embedding_bits of 8",
        ),
    ],
)
def test_what_the_target_does_not_take(
    target: Constraints, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PassError, match=message):
        applied(language_model(), target, method="mse", **options)


def test_tables_stay_where_the_target_has_none() -> None:
    target = Constraints(
        weight_only=replace(NBITS.weight_only or WeightOnlyFormat(), embedding_bits=())
    )
    done = applied(language_model(), target, method="mse")
    assert [(s.node, s.reason) for s in done.skipped] == [("e", "the target takes float tables")]


def test_standard_operators_need_opset_21() -> None:
    with pytest.raises(PassError, match="needs operator set 21") as refused:
        applied(language_model(opset=20), QDQ, method="mse")
    assert "cleanup" in str(refused.value.cure)
    applied(language_model(opset=20), NBITS, method="mse")


@LAYOUTS
def test_what_is_quantized_already_is_refused(target: Constraints) -> None:
    done = applied(language_model(), target, method="mse", embedding_bits=4)
    with pytest.raises(PassError, match="quantized already: weight-only"):
        applied(done.model, target, method="mse")


def test_only_gptq_needs_data() -> None:
    gptq, mse = (make_pass("quantize_weights", {"method": m}) for m in ("gptq", "mse"))
    one = make_pass("quantize_weights", {"method": "mse", "ops": {"Gemm": {"method": "gptq"}}})
    assert (gptq.needs, mse.needs, one.needs, type(mse).needs) == (
        "data",
        "nothing",
        "data",
        "data",
    )
    with pytest.raises(RecipeError, match="needs calibration data"):
        applied(language_model(), NBITS)


def test_infinite_activations_are_refused(tmp_path: Path) -> None:
    model = one_layer("y = MatMul(x, w)")
    x = np.ones((8, 48), F)
    x[3, 5] = 3e38
    data = rows_of(tmp_path, model, {"x": x})
    with pytest.raises(PassError, match="not finite") as refused:
        applied(model, NBITS, data)
    assert refused.value.where == "y, pass 'quantize_weights'"


def test_one_row_and_dead_inputs(tmp_path: Path) -> None:
    model = one_layer("y = MatMul(x, w)")
    for rows in (np.zeros((1, 48), F), np.eye(48, dtype=F)[:1]):
        done = applied(model, NBITS, rows_of(tmp_path, model, {"x": rows}))
        probe = {"x": np.random.default_rng(0).normal(0, 1, (16, 48)).astype(F)}
        assert sqnr_db(run(model, probe)["y"], run(done.model, probe)["y"]) > 15
