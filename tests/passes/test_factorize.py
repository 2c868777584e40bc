"""The factorize pass: what it changes, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.errors import DataError, PassError, RecipeError, TargetError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from tests.factorization.factor_runs import F, chain, tokens
from tests.models import from_text
from tests.running import rows_of, run

QUICK = {"refine_steps": 8, "rows": 64}
ALONE = {"objective": "input_agnostic", "ranks": "uniform", "refine": False}


def factorized(folder: Path, model: Model, x: np.ndarray | None, **options: Any) -> Applied:
    data = None if x is None else rows_of(folder, model, {"x": x})
    step = make_pass("factorize", {**QUICK, **options})
    return run_pass(step, model, Context(calibration=data))


def parameters(model: Model) -> int:
    return sum(v.const_value.size for v in model.ir.graph.initializers.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("ranks", ["uniform", "spectrum", "loss", "zero_sum"])
@pytest.mark.parametrize("budget", ["parameters", "macs"])
def test_the_budget_is_kept_and_used(tmp_path: Path, ranks: str, budget: str) -> None:
    model = chain(width=32)
    applied = factorized(
        tmp_path, model, tokens(width=32), keep=0.5, ranks=ranks, budget=budget, refine=False
    )
    notes = applied.notes["factorization"]
    before, after = notes["parameters"]
    assert before == 4 * 32 * 64
    assert 0.4 * before < after <= 0.5 * before
    assert parameters(applied.model) == parameters(model) - before + after
    assert notes["macs"][1] <= 0.5 * notes["macs"][0]
    assert len(applied.changed) == 4
    assert all(change.bytes_after < change.bytes_before for change in applied.changed)


def test_refinement_is_on_by_default_and_helps(tmp_path: Path) -> None:
    model, x = chain(width=32), tokens(width=32)
    y = run(model, {"x": x})["y"]
    errors = []
    for refine in (False, True):
        done = factorized(tmp_path, model, x, keep=0.4, refine=refine, refine_steps=60)
        errors.append(float(np.square(run(done.model, {"x": x})["y"] - y).mean()))
    assert errors[1] < errors[0]


def test_notes_are_plain_and_tell_of_all_layers(tmp_path: Path) -> None:
    applied = factorized(
        tmp_path, chain(width=32), tokens(width=32), nodes={"h1": False}, compare=["input_agnostic"]
    )
    notes = json.loads(json.dumps(applied.notes["factorization"]))
    assert notes["objective"] == "anchored"
    assert [layer["kind"] for layer in notes["layers"]] == ["matrix"] * 3
    for layer in notes["layers"]:
        shares, errors = zip(*layer["spectrum"], strict=True)
        assert shares[0] == 0
        assert list(errors) == sorted(errors, reverse=True)
        assert 0 <= layer["error"] < 1
    for block in notes["blocks"]:
        assert {"anchored", "input_agnostic", "refined"} <= set(block["errors"])
        assert block["errors"]["refined"] <= block["errors"]["anchored"] * 1.001
    assert [(skip.node, skip.reason) for skip in applied.skipped] == [
        ("h1", "left out by the recipe")
    ]


def test_single_layers_have_ranks_and_shares_of_their_own(tmp_path: Path) -> None:
    applied = factorized(
        tmp_path,
        chain(width=32),
        tokens(width=32),
        refine=False,
        nodes={"h1": {"rank": 3}, "m1": {"keep": 0.2}},
    )
    ranks = {n["layer"]: n["rank"] for n in applied.notes["factorization"]["layers"]}
    assert ranks["h1"] == [3]
    assert ranks["m1"] == [int(0.2 * 32 * 64 / 96)]


def test_same_bytes_again(tmp_path: Path) -> None:
    model, x = chain(width=32), tokens(width=32)
    found = {factorized(tmp_path, model, x).model.to_bytes() for _ in range(2)}
    assert len(found) == 1


def test_no_rows_are_needed_for_the_weights_alone(tmp_path: Path) -> None:
    applied = factorized(tmp_path, chain(width=32), None, **ALONE)
    assert len(applied.changed) == 4
    assert make_pass("factorize", ALONE).needs == "optional data"
    assert make_pass("factorize", {**ALONE, "refine": True}).needs == "data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0}, "expected a number greater than 0, got 0"),
        ({"keep": 1}, "expected a number less than 1, got 1"),
        ({"keep": 1.5}, "expected a number less than 1, got 1.5"),
        ({"rank": 0}, "expected a number greater than or equal to 1, got 0"),
        ({"objective": "anchord"}, "anchord"),
        ({"kep": 0.5}, "unknown option 'kep'; did you mean 'keep'"),
        ({"nodes": {"nothing*": {"rank": 4}}}, "matches no node"),
    ],
)
def test_options_out_of_range_are_named(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        factorized(tmp_path, chain(), tokens(), **options)


def test_without_rows_the_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs calibration data"):
        factorized(tmp_path, chain(), None)


def test_latency_needs_a_target_at_hand(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be measured"):
        factorized(tmp_path, chain(), tokens(), budget="latency")


def test_a_share_that_leaves_no_rank_is_named(tmp_path: Path) -> None:
    applied = factorized(tmp_path, chain(), tokens(), keep=0.01, refine=False)
    assert not applied.changed
    assert len(applied.skipped) == 4
    assert all("rank" in skip.reason and "keep" in skip.reason for skip in applied.skipped)


def test_a_rank_that_saves_nothing_leaves_the_layer_alone(tmp_path: Path) -> None:
    applied = factorized(tmp_path, chain(), tokens(), nodes={"h1": {"rank": 15}}, refine=False)
    reasons = {skip.node: skip.reason for skip in applied.skipped}
    assert "15" in reasons["h1"]


def test_activations_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = chain()
    weight = np.array(model.initializer("a1"))
    weight[0, 0] = np.nan
    model.set_initializer("a1", weight)
    with pytest.raises((PassError, DataError), match="finite"):
        factorized(tmp_path, model, tokens())


def test_embedding_and_head_of_one_table_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (int64[N, L] x, float[40, 16] table, float[16, 16] w) => (float[N, L, 40] y)
        { e = Gather(table, x)  h = MatMul(e, w)  t = Transpose<perm=[1, 0]>(table)
          y = MatMul(h, t) }
        """,
        table=rng.normal(0, 1, (40, 16)).astype(F),
        w=rng.normal(0, 0.3, (16, 16)).astype(F),
    )
    x = rng.integers(0, 40, (64, 6))
    data = rows_of(tmp_path, model, {"x": x})
    applied = run_pass(make_pass("factorize", QUICK), model, Context(calibration=data))
    assert [change.node for change in applied.changed] == ["h"]
    assert {skip.node for skip in applied.skipped} == {"y"}
    np.testing.assert_array_equal(applied.model.initializer("table"), model.initializer("table"))


def test_a_real_network_loses_parameters_and_little_else(
    tmp_path: Path, shared: Callable[[str], Path]
) -> None:
    model = Model.load(shared("resnet20_cifar10.onnx"))
    images = np.load(shared("cifar10.npz"))["train_x"]
    x = np.random.default_rng(0).permutation(images)[:96].transpose(0, 3, 1, 2) / 255
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = ((x - mean[:, None, None]) / deviation[:, None, None]).astype(F)
    np.savez(tmp_path / "rows.npz", **{model.signature.inputs[0].name: x[:64]})
    data = CalibrationSet.open(
        DataSpec(path="rows.npz", validation_share=0.0), model.signature, base=tmp_path
    )
    step = make_pass("factorize", {"keep": 0.7, "budget": "macs", "refine": False, "rows": 64})
    applied = run_pass(step, model, Context(calibration=data))
    before, after = applied.notes["factorization"]["macs"]
    assert after <= 0.7 * before
    feeds = {model.signature.inputs[0].name: x[64:]}
    found, wanted = (next(iter(run(m, feeds).values())) for m in (applied.model, model))
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.7
