"""The mixed pass: budgets kept, formats written as chosen, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.constraints import Constraints, WeightOnlyFormat
from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import PassError, RecipeError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from tests.models import from_text, small_cnn
from tests.running import X86, rows_of, run

F = np.float32
NBITS = replace(X86, weight_only=WeightOnlyFormat("nbits"))
QUICK = {"loss_rows": 16, "weight_method": "mse", "bias_correction": False}


def tower(layers: int = 4, size: int = 64) -> Model:
    """MatMul-Relu, several times; the first matrix holds a few very large weights."""
    rng = np.random.default_rng(1)
    weights = {f"w{i}": rng.normal(0, 0.15, (size, size)).astype(F) for i in range(layers)}
    weights["w0"][:4] *= 12
    inputs = ", ".join(f"float[{size}, {size}] {name}" for name in weights)
    body = "\n".join(
        f"a{i} = MatMul({'x' if i == 0 else f'r{i - 1}'}, w{i})\n"
        f"{'y' if i == layers - 1 else f'r{i}'} = Relu(a{i})"
        for i in range(layers)
    )
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, {size}] x, {inputs}) => (float[N, {size}] y) {{ {body} }}""",
        **weights,
    )


def vectors(rows: int = 32, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (rows, size)).astype(F)


def rows(folder: Path, model: Model) -> CalibrationSet:
    if model.signature.inputs[0].shape is not None and len(model.signature.inputs[0].shape) == 4:
        x = np.random.default_rng(0).normal(0, 1, (16, 3, 16, 16)).astype(F)
    else:
        x = vectors()
    return rows_of(folder, model, {"x": x})


def mixed(folder: Path, model: Model, constraints: Constraints = NBITS, **options: Any) -> Applied:
    step = make_pass("mixed", {**QUICK, **options})
    return run_pass(step, model, Context(rows(folder, model), constraints))


def formats(applied: Applied) -> dict[str, str]:
    return {row["node"]: row["chosen"] for row in applied.notes["sensitivity"]["nodes"]}


def test_without_limits_the_most_sensitive_layers_stay_float(tmp_path: Path) -> None:
    model = tower()
    applied = mixed(tmp_path, model, keep_float=0.25, formats=["w8a8"])
    chosen = formats(applied)
    assert sorted(chosen.values()) == ["float", "w8a8", "w8a8", "w8a8"]
    losses = {
        r["node"]: r["formats"]["w8a8"]["loss"] for r in applied.notes["sensitivity"]["nodes"]
    }
    assert chosen[max(losses, key=lambda node: losses[node])] == "float"
    kept = [skip for skip in applied.skipped if skip.reason.startswith("kept in float")]
    assert [skip.node for skip in kept] == [node for node, f in chosen.items() if f == "float"]
    assert "expected loss" in kept[0].reason


def test_nothing_is_kept_where_nothing_may(tmp_path: Path) -> None:
    assert set(formats(mixed(tmp_path, tower(), keep_float=0)).values()) <= {"w8a8", "w4"}


@pytest.mark.parametrize("ratio", [0.2, 0.24, 0.32, 0.5])
def test_the_file_keeps_its_size(tmp_path: Path, ratio: float) -> None:
    model = tower(size=128, layers=5)
    step = make_pass("mixed", {**QUICK, "size_ratio": ratio, "keep_float": 1.0})
    data = rows_of(tmp_path, model, {"x": vectors(size=128)})
    applied = run_pass(step, model, Context(data, NBITS))
    assert applied.model.size_bytes <= ratio * model.size_bytes
    # What is chosen is what is written.
    ops = [n.op_type for n in applied.model.ir.graph]
    chosen = list(formats(applied).values())
    assert ops.count("MatMulNBits") == chosen.count("w4")
    assert len(applied.changed) == len(chosen) - chosen.count("float")
    assert applied.notes["formats"] == {f: chosen.count(f) for f in set(chosen)}


def test_a_smaller_budget_costs_more(tmp_path: Path) -> None:
    model = tower(size=128, layers=5)
    data = rows_of(tmp_path, model, {"x": vectors(size=128)})
    losses, errors = [], []
    reference = run(model, {"x": vectors(size=128)})["y"]
    for ratio in (0.18, 0.3, 0.6):
        step = make_pass("mixed", {**QUICK, "size_ratio": ratio, "keep_float": 1.0})
        applied = run_pass(step, model, Context(data, NBITS))
        losses.append(applied.notes["expected_loss"])
        found = run(applied.model, {"x": vectors(size=128)})["y"]
        errors.append(float(np.square(found - reference).mean()))
    assert losses == sorted(losses, reverse=True)
    assert errors == sorted(errors, reverse=True)


def test_convolutions_and_joins(tmp_path: Path) -> None:
    model = small_cnn()
    applied = mixed(tmp_path, model, keep_float=0.3)
    chosen = formats(applied)
    assert {"s", "c1", "c2", "c3", "y"} <= chosen.keys()
    assert set(chosen.values()) == {"float", "w8a8"}
    written = {change.node for change in applied.changed}
    assert written == {node for node, format_ in chosen.items() if format_ != "float"}


def test_a_loss_budget_makes_the_file_as_small_as_it_can_be(tmp_path: Path) -> None:
    model = tower(size=128)
    data = rows_of(tmp_path, model, {"x": vectors(size=128)})
    sizes = []
    for most in (1e-3, 1e-1):
        options = {**QUICK, "max_loss": most, "minimise": "size", "keep_float": 1.0}
        applied = run_pass(make_pass("mixed", options), model, Context(data, NBITS))
        assert applied.notes["expected_loss"] <= most
        sizes.append(applied.model.size_bytes)
    assert sizes[0] > sizes[1]


def test_time_is_estimated_and_says_so(tmp_path: Path) -> None:
    applied = mixed(tmp_path, tower(), latency_ratio=0.45, keep_float=1.0)
    assert list(formats(applied).values()).count("w8a8") == 4
    assert "estimated" in applied.notes["time"]


def test_a_shared_weight_has_one_format(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 64] x, float[64, 64] w, float[64, 64] v) => (float[N, 64] y)
        { a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) s = Relu(b) y = MatMul(s, v) }""",
        w=np.random.default_rng(1).normal(0, 0.15, (64, 64)).astype(F),
        v=np.random.default_rng(2).normal(0, 0.15, (64, 64)).astype(F),
    )
    for ratio in (0.3, 0.5, 0.7):
        chosen = formats(mixed(tmp_path, model, size_ratio=ratio, keep_float=1.0))
        assert chosen["a"] == chosen["b"]


def test_embeddings_take_part(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[N, 8] ids, float[500, 64] table, float[64, 64] w) => (float[N, 8, 64] y)
        { e = Gather(table, ids) y = MatMul(e, w) }""",
        table=np.random.default_rng(1).normal(0, 1, (500, 64)).astype(F),
        w=np.random.default_rng(2).normal(0, 0.15, (64, 64)).astype(F),
    )
    ids = np.random.default_rng(3).integers(0, 500, (32, 8))
    data = rows_of(tmp_path, model, {"ids": ids})
    step = make_pass("mixed", {**QUICK, "size_ratio": 0.3, "formats": ["w8a8", "w8", "w4"]})
    applied = run_pass(step, model, Context(data, NBITS))
    assert applied.model.size_bytes <= 0.3 * model.size_bytes
    assert formats(applied)["e"] in ("w8", "w4")


def test_tables_alone_take_8_bits_by_default(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[N, 8] ids, float[500, 64] table, float[64, 64] w) => (float[N, 8, 64] y)
        { e = Gather(table, ids) y = MatMul(e, w) }""",
        table=np.random.default_rng(1).normal(0, 1, (500, 64)).astype(F),
        w=np.random.default_rng(2).normal(0, 0.15, (64, 64)).astype(F),
    )
    ids = np.random.default_rng(3).integers(0, 500, (32, 8))
    data = rows_of(tmp_path, model, {"ids": ids})
    step = make_pass("mixed", {**QUICK, "size_ratio": 0.4, "keep_float": 0})
    applied = run_pass(step, model, Context(data, NBITS))
    found = {r["node"]: set(r["formats"]) for r in applied.notes["sensitivity"]["nodes"]}
    assert found["y"] == {"w8a8", "w4"}
    assert found["e"] >= {"w8", "w4"}


def test_options_of_single_nodes(tmp_path: Path) -> None:
    applied = mixed(tmp_path, tower(), keep_float=0, nodes={"a0": False, "a1": {"formats": ["w4"]}})
    chosen = formats(applied)
    assert "a0" not in chosen
    assert chosen["a1"] == "w4"
    assert ("a0", "left out by the recipe") in {(s.node, s.reason) for s in applied.skipped}


def test_notes_are_plain_data(tmp_path: Path) -> None:
    notes = mixed(tmp_path, tower(), keep_float=0.3).notes
    assert json.loads(json.dumps(notes)) == notes
    row = notes["sensitivity"]["nodes"][0]
    assert row.keys() == {"node", "op", "formats", "chosen"}
    assert row["formats"]["w8a8"].keys() == {"sqnr_db", "loss"}


def test_a_target_without_int8_gets_weights_alone(tmp_path: Path) -> None:
    applied = mixed(tmp_path, tower(), replace(NBITS, int8=None), size_ratio=0.3)
    assert set(formats(applied).values()) <= {"w8", "w4", "float"}
    with pytest.raises(PassError, match="'w8a8' cannot be had: the target has no int8 kernels"):
        mixed(tmp_path, tower(), replace(NBITS, int8=None), formats=["w8a8"])


def test_a_target_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="takes none of the formats"):
        mixed(tmp_path, tower(), replace(NBITS, int8=None, weight_only=None))


def test_a_budget_out_of_reach_names_the_smallest_size(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"the least that can be reached is [\d,]+ bytes") as caught:
        mixed(tmp_path, tower(), size_ratio=0.05)
    assert caught.value.where == "pass 'mixed'"


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    model = tower()
    data = rows(tmp_path, model)
    done = run_pass(make_pass("quantize", {}), model, Context(data, NBITS)).model
    with pytest.raises(PassError, match="quantized already"):
        run_pass(make_pass("mixed", QUICK), done, Context(data, NBITS))


def test_a_model_without_candidates_is_left_alone(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 64] x) => (float[N, 64] y) { y = Relu(x) }"""
    )
    applied = mixed(tmp_path, model)
    assert applied.model is model
    assert not applied.changed


def test_one_row_and_the_same_twice(tmp_path: Path) -> None:
    model = tower()
    data = rows_of(tmp_path, model, {"x": vectors(1)})
    step = make_pass("mixed", {**QUICK, "keep_float": 0.3})
    first, second = (run_pass(step, model, Context(data, NBITS)) for _ in range(2))
    assert first.model.digest == second.model.digest
    assert first.notes == second.notes


@pytest.mark.parametrize(
    "options", [{"size_ratio": 0}, {"keep_float": 1.5}, {"formats": ["int3"]}, {"size": 0.3}]
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        make_pass("mixed", options)
