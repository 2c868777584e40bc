"""The quantize_weights pass with factors beside rounded weights: W = Q(W) + L R."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.constraints import Constraints, WeightOnlyFormat
from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import PassError, RecipeError
from edgecompress.graph_pass import Applied, Context, Timer, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text
from tests.running import rows_of, run, sqnr_db

F = np.float32
NBITS = Constraints(weight_only=WeightOnlyFormat(layout="nbits"))
QDQ = Constraints(weight_only=WeightOnlyFormat(layout="qdq"))
LAYOUTS = pytest.mark.parametrize("target", [NBITS, QDQ], ids=["nbits", "qdq"])
WIDE = 48


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(F)


def mlp() -> Model:
    """A layer with a bias behind it, a Gemm with one in it, and one without, which is an output."""
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, {WIDE}] x, float[{WIDE}, 64] w1, float[64] b1, float[80, 64] w2, float[80] b2,
           float[80, 32] w3) => (float[N, 32] y)
        {{
            h = MatMul(x, w1)
            a = Add(b1, h)
            r = Relu(a)
            g = Gemm<transB = 1>(r, w2, b2)
            q = Relu(g)
            y = MatMul(q, w3)
        }}
        """,
        w1=normal(WIDE, 64),
        b1=normal(64, seed=1),
        w2=normal(80, 64, seed=2),
        b2=normal(80, seed=3),
        w3=normal(80, 32, seed=4),
    )


def inputs(rows: int = 512, seed: int = 0) -> np.ndarray:
    """A few directions are strong."""
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(9).normal(0, 1, (WIDE, WIDE))
    strengths = np.logspace(0, -1.5, WIDE)
    return np.asarray(rng.normal(0, 1, (rows, WIDE)) * strengths @ mixed, F)


def applied(
    model: Model,
    target: Constraints = NBITS,
    data: CalibrationSet | None = None,
    timer: Timer | None = None,
    **options: Any,
) -> Applied:
    context = Context(data, target, timer=timer)
    return run_pass(make_pass("quantize_weights", options), model, context)


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.ir.graph)


@LAYOUTS
@pytest.mark.parametrize("method", ["gptq", "mse", "minmax"])
def test_factors_make_up_for_rounding(target: Constraints, method: str, tmp_path: Path) -> None:
    model = mlp()
    data = rows_of(tmp_path, model, {"x": inputs()})
    feeds = {"x": inputs(256, seed=1)}
    expected = run(model, feeds)["y"]
    found = {
        rank: applied(model, target, data, method=method, residual_rank=rank, rows=512)
        for rank in (0, 8, 24)
    }
    db = [sqnr_db(expected, run(done.model, feeds)["y"]) for done in found.values()]
    assert db[1] > db[0] + 0.5
    assert db[2] > db[1] + 1
    optimized = run(found[8].model, feeds, optimize=True)["y"]
    assert sqnr_db(expected, optimized) == pytest.approx(db[1], abs=1)
    assert {change.what.split(", ")[1] for change in found[8].changed} == {method}
    assert all(change.what.endswith("+ rank 8") for change in found[8].changed)
    assert "residual" not in found[0].notes
    for layer in found[8].notes["residual"]["layers"]:
        assert 0 < layer["error"][1] < layer["error"][0]


def test_biases_stay_in_the_kernel() -> None:
    done = applied(mlp(), method="mse", residual_rank=8)
    assert ops(done.model) == {"MatMulNBits": 3, "MatMul": 6, "Cast": 6, "Add": 3, "Relu": 2}
    products = [node for node in done.model.ir.graph if node.op_type == "MatMulNBits"]
    assert [len(node.inputs) for node in products] == [6, 6, 4]
    assert [node.name for node in products] == [
        node.name for node in mlp().ir.graph if node.op_type in ("MatMul", "Gemm")
    ]
    assert set(done.claimed) == {node.outputs[0].name for node in products}
    outputs = {value.name for node in done.model.ir.graph for value in node.outputs}
    assert {"a", "g", "y"} < outputs


@LAYOUTS
def test_rank_of_single_layers_and_what_it_costs(target: Constraints) -> None:
    plain = applied(mlp(), target, method="mse")
    done = applied(mlp(), target, method="mse", nodes={"g": {"residual_rank": 4}})
    told = done.notes["residual"]
    assert [(layer["layer"], layer["rank"]) for layer in told["layers"]] == [("g", 4)]
    assert (told["bytes"], told["macs"]) == (2 * 4 * (80 + 64), 4 * (80 + 64))
    assert told["seconds"] == "not measured"
    grown = [
        after.bytes_after - before.bytes_after
        for before, after in zip(plain.changed, done.changed, strict=True)
    ]
    assert grown == [0, told["bytes"], 0]
    assert ops(done.model)["Add"] == ops(plain.model)["Add"] + 1


def test_the_timer_is_asked_about_each_form() -> None:
    def timer(models: Sequence[bytes]) -> list[float]:
        assert len(models) == 6
        return [1.0, 2.0] * 3

    told = applied(mlp(), method="mse", residual_rank=4, timer=timer).notes["residual"]
    assert told["seconds"] == [3.0, 6.0]
    assert [layer["seconds"] for layer in told["layers"]] == [[1.0, 2.0]] * 3


def test_more_rank_than_there_is() -> None:
    """Then the layer is exact, but for the float16 of its factors."""
    model, feeds = mlp(), {"x": inputs(64)}
    done = applied(model, QDQ, method="minmax", residual_rank=1000)
    assert [layer["rank"] for layer in done.notes["residual"]["layers"]] == [WIDE, 64, 32]
    assert sqnr_db(run(model, feeds)["y"], run(done.model, feeds)["y"]) > 60


def test_a_target_without_float16_gets_float32() -> None:
    done = applied(
        mlp(), Constraints(weight_only=QDQ.weight_only, half=None), method="mse", residual_rank=4
    )
    assert ops(done.model)["Cast"] == 0
    assert done.notes["residual"]["bytes"] == 4 * done.notes["residual"]["macs"]


@LAYOUTS
def test_a_weight_of_two_layers_has_one_correction(target: Constraints, tmp_path: Path) -> None:
    model = from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, {WIDE}] x, float[{WIDE}, {WIDE}] w) => (float[N, {WIDE}] y)
        {{ a = MatMul(x, w)
           b = Relu(a)
           y = MatMul(b, w) }}
        """,
        w=normal(WIDE, WIDE),
    )
    feeds = {"x": inputs(128)}
    data = rows_of(tmp_path, model, feeds)
    both = applied(model, target, data, residual_rank=8)
    assert [layer["bytes"] > 0 for layer in both.notes["residual"]["layers"]] == [True, False]
    assert sum("right" in name for name in both.model.ir.graph.initializers) == 1
    one = applied(model, target, data, nodes={"y": {"residual_rank": 8}})
    assert [layer["layer"] for layer in one.notes["residual"]["layers"]] == ["y"]
    expected = run(model, feeds)["y"]
    plain = sqnr_db(expected, run(applied(model, target, data).model, feeds)["y"])
    db = [sqnr_db(expected, run(done.model, feeds)["y"]) for done in (one, both)]
    assert plain < db[0] < db[1]


def tied() -> Model:
    """A table that a layer multiplies by, too."""
    return from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[N, 6] ids, float[64, 48] table, float[48] gain) => (float[N, 6, 64] y)
        {
            e = Gather(table, ids)
            n = Mul(e, gain)
            r = Relu(n)
            turned = Transpose<perm = [1, 0]>(table)
            y = MatMul(r, turned)
        }
        """,
        table=normal(64, 48),
        gain=1 + normal(48, seed=1),
    )


@LAYOUTS
def test_a_tied_table_is_corrected_where_it_multiplies(target: Constraints, tmp_path: Path) -> None:
    """It is rounded before the walk, so that what is looked up is known, and corrected in it."""
    model = tied()
    feeds = {"ids": np.random.default_rng(0).integers(0, 64, (64, 6))}
    data = rows_of(tmp_path, model, feeds)
    plain = applied(model, target, data)
    done = applied(model, target, data, residual_rank=12)
    whats = {change.op: change.what for change in done.changed}
    rounding = "mse" if target is NBITS else "gptq"  # only there both read the same numbers
    assert whats["MatMul"] == f"4 bits in blocks of 32, {rounding}, + rank 12"
    assert "rank" not in whats["Gather"]
    (layer,) = done.notes["residual"]["layers"]
    assert layer["layer"] == "y"
    assert done.notes["residual"]["tokens"] == 6
    expected = run(model, feeds)["y"]
    db = [sqnr_db(expected, run(each.model, feeds)["y"]) for each in (plain, done)]
    assert db[1] > db[0]


@LAYOUTS
def test_float16_layers(target: Constraints) -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[N] i, float16[64, 48] t, float16[48, 48] w) => (float16[N, 48] y)
        { x = Gather(t, i)
          y = MatMul(x, w) }
        """,
        t=normal(64, 48).astype(np.float16),
        w=normal(48, 48, seed=1).astype(np.float16),
    )
    feeds = {"i": np.arange(64)}
    plain, done = (
        applied(model, target, method="mse", embedding_bits=False, residual_rank=rank)
        for rank in (0, 24)
    )
    assert ops(done.model)["Cast"] == 0
    db = [sqnr_db(run(model, feeds)["y"], run(each.model, feeds)["y"]) for each in (plain, done)]
    assert db[1] > db[0] + 3


@LAYOUTS
def test_gemm_with_a_bias_of_another_shape(target: Constraints) -> None:
    model = from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4, {WIDE}] x, float[{WIDE}, 32] w, float[4, 32] c) => (float[4, 32] y)
        {{ y = Gemm(x, w, c) }}
        """,
        w=normal(WIDE, 32),
    )
    feeds = {"x": inputs(4), "c": normal(4, 32)}
    done = applied(model, target, method="mse", residual_rank=32)
    assert sqnr_db(run(model, feeds)["y"], run(done.model, feeds)["y"]) > 35


def test_exact_weights_need_no_correction() -> None:
    numbers = np.random.default_rng(0).integers(-7, 8, (48, 48))
    numbers[0] = -8  # of each output: the end that its scale is made for
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 48] x, float[48, 48] w) => (float[N, 48] y) { y = MatMul(x, w) }
        """,
        w=numbers.astype(F),
    )
    done = applied(model, method="minmax", block_size=64, residual_rank=4, symmetric=True)
    assert "residual" not in done.notes
    assert done.changed[0].what == "4 bits in blocks of 64, minmax"


def test_infinite_activations_are_refused(tmp_path: Path) -> None:
    model = tied()
    model.ir.graph.initializers["gain"].const_value = ir.tensor(np.full(48, 3e38, F), name="gain")
    ids = np.random.default_rng(0).integers(0, 64, (8, 6))
    data = rows_of(tmp_path, model, {"ids": ids})
    with pytest.raises(PassError, match="not finite") as refused:
        applied(model, NBITS, data, residual_rank=4)
    assert refused.value.where == "y, pass 'quantize_weights'"


def test_a_negative_rank_is_refused() -> None:
    with pytest.raises(RecipeError, match="residual_rank"):
        make_pass("quantize_weights", {"residual_rank": -1})
