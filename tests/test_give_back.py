"""Nodes that go back to float: those that lose time, and those that lose accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import pipeline, target_at_hand
from edgecompress.graph_pass import Applied, Change, Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.report.data import CandidateReport, GiveBackReport, Report
from edgecompress.report.text import summary
from edgecompress.resources import Resources
from edgecompress.search.candidates import Candidate
from edgecompress.search.give_back import without
from edgecompress.search.noisy_nodes import noisy_nodes
from edgecompress.search.slow_nodes import slow_nodes
from edgecompress.search.trials import TakenPass, Trial
from tests.models import small_cnn
from tests.recipes import recipe, save_inputs
from tests.running import X86, rows_of
from tests.timing import in_float, is_quantized, measured, timed

QUANTIZE = {"name": "quantize", "bias_correction": False}
COARSE = {**QUANTIZE, "ops": {"Gemm": {"method": "percentile", "percentile": 51}}}
"""The range of what the Gemm reads is far too narrow."""


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Applied]:
    model = small_cnn()
    rows = np.random.default_rng(0).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)
    data = rows_of(tmp_path_factory.mktemp("rows"), model, {"x": rows})
    step = make_pass("quantize", {"bias_correction": False})
    return model, run_pass(step, model, Context(calibration=data, constraints=X86))


def losses(
    quantized: tuple[Model, Applied], before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, float]:
    model, applied = quantized
    found = slow_nodes(
        model,
        measured(sum(before.values()) / 1000, kernels=before),
        applied.model,
        measured(sum(after.values()) / 1000, kernels=after),
        applied.changed,
    )
    return {loss.node: loss.lost_us for loss in found}


FAST = {"c1": 100.0, "c2": 100.0, "c3": 100.0, "s": 10.0, "m": 10.0, "y": 50.0}


def conversions(applied: Applied, op: str, value: str) -> str:
    """Output of the conversion of that type next to a value."""
    (name,) = [
        node.outputs[0].name or ""
        for node in applied.model.ir.graph
        if node.op_type == op and str(node.outputs[0].name).startswith(f"{value}_")
    ]
    return name


def test_a_node_that_got_slower_is_found(quantized: tuple[Model, Applied]) -> None:
    half = {name: time / 2 for name, time in FAST.items()}
    assert losses(quantized, FAST, half) == {}
    found = losses(quantized, FAST, {**half, "c2": 180.0})
    assert found == {"c2": pytest.approx(80)}


def test_conversions_count_for_the_nodes_that_they_serve(
    quantized: tuple[Model, Applied],
) -> None:
    half = {name: time / 2 for name, time in FAST.items()}
    entry = conversions(quantized[1], "QuantizeLinear", "x")
    assert losses(quantized, FAST, {**half, entry: 70.0}) == {"c1": pytest.approx(20)}
    behind = conversions(quantized[1], "DequantizeLinear", "s")
    found = losses(quantized, FAST, {**half, behind: 70.0})
    assert found == {"s": pytest.approx(65)}


def test_an_island_that_loses_as_a_whole_goes_whole(quantized: tuple[Model, Applied]) -> None:
    half = {name: time / 2 for name, time in FAST.items()}
    entry = conversions(quantized[1], "QuantizeLinear", "x")
    found = losses(quantized, FAST, {**half, entry: 400.0})
    assert set(found) == {"c1", "c2", "c3", "s"}
    assert sum(found.values()) == pytest.approx(400 - 155)


def test_times_that_other_work_disturbed_are_not_believed(
    quantized: tuple[Model, Applied],
) -> None:
    model, applied = quantized
    slow = {name: 3 * time for name, time in FAST.items()}
    whole = sum(FAST.values()) / 1000
    before, after = measured(whole, kernels=FAST), measured(whole, kernels=slow)
    assert slow_nodes(model, before, applied.model, after, applied.changed) == []
    nothing = measured(whole)
    assert slow_nodes(model, nothing, applied.model, nothing, applied.changed) == []


def test_the_node_that_makes_the_error_comes_first(tmp_path: Path) -> None:
    model = small_cnn()
    worse = model.clone()
    worse.set_initializer("w2", np.round(np.array(model.initializer("w2")) * 3) / 3)
    rows = np.random.default_rng(0).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)
    data = rows_of(tmp_path, model, {"x": rows})
    changes = [Change(node, "Conv", "rounded") for node in ("c1", "c2", "c3", "y")]
    first, *others = noisy_nodes(model, worse, changes, data, Resources())
    assert first.node == "c2"
    assert first.own is not None
    assert first.own > 1e-3
    assert all(other.own == 0 for other in others)


def test_nodes_are_left_out_of_the_last_pass_that_changed_them() -> None:
    steps = [make_pass(n, {"nodes": {"c*": False}}) for n in ("cleanup", "quantize")]
    applied = [
        Applied(small_cnn(), changed=(Change("c[1]", "Conv", ""), Change("c2", "Conv", ""))),
        Applied(small_cnn(), changed=(Change("c2", "Conv", ""),)),
    ]
    parent = Trial(Candidate("mine", tuple(steps)))
    parent.taken = [TakenPass(s, a, False, 0.0) for s, a in zip(steps, applied, strict=True)]
    given = [
        GiveBackReport(node=node, op="Conv", cause="time", detail="") for node in ("c[1]", "c2")
    ]
    child = without(parent, given)
    assert child.name == "mine, 2 in float"
    assert [step.nodes for step in child.candidate.passes] == [
        {"c*": False, "c[[]1]": False},
        {"c*": False, "c2": False},
    ]
    child.taken = parent.taken
    child.taken = [
        TakenPass(s, a, False, 0.0) for s, a in zip(child.candidate.passes, applied, strict=True)
    ]
    assert without(child, given[:1]).name == "mine, 3 in float"


# Within a build


def build(folder: Path, step: dict[str, Any], drop: float, **search: Any) -> Report:
    candidate = [{"name": "mine", "pass": [step]}]
    return pipeline.build(
        recipe(
            folder,
            search={"candidates": [], "candidate": candidate, **search},
            budget={"metric_drop": drop},
            **{"pass": []},
        )
    )


def chosen(report: Report) -> CandidateReport:
    assert report.search is not None
    return next(each for each in report.search.candidates if each.status == "chosen")


def test_what_loses_too_much_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_inputs(tmp_path)
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 0.5 if is_quantized(m) else 1.0))
    report = build(tmp_path, COARSE, 1e-3)
    best = chosen(report)
    assert report.search is not None
    parent = next(each for each in report.search.candidates if each.name == "mine")
    assert parent.status == "loses too much"
    assert best.parent == "mine"
    assert {each.cause for each in best.gave_back} == {"accuracy"}
    assert "y" in {each.node for each in best.gave_back}
    assert in_float(Model.load(tmp_path / "out" / "model.onnx"), "Gemm")
    assert is_quantized(Model.load(tmp_path / "out" / "model.onnx"))
    assert any(note.startswith("gave back to float what lost accuracy: y") for note in report.notes)
    assert best.name in summary(report)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{best.name} <span" in page
    without_it = build(tmp_path, COARSE, 1e-3, give_back=False)
    assert chosen(without_it).name == "float"


def test_nothing_is_given_back_where_nothing_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_inputs(tmp_path)
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 0.5 if is_quantized(m) else 1.0))
    report = build(tmp_path, {**COARSE, "method": "percentile", "percentile": 51}, 1e-9)
    assert chosen(report).name == "float"
    assert report.search is not None
    tried = [each for each in report.search.candidates if each.parent == "mine"]
    assert 0 < len(tried) <= 8
    assert {each.status for each in tried} == {"loses too much"}


def kernels(model: Model) -> dict[str, float]:
    """On integers, convolutions take half the time, and the Gemm takes four times as long."""
    whole = is_quantized(model)
    gemm = 200.0 if in_float(model, "Gemm") else 800.0
    convolutions = dict.fromkeys(("c1", "c2", "c3"), 100.0 if whole else 200.0)
    return {**convolutions, "y": gemm}


def speed(model: Model) -> float:
    return sum(kernels(model).values()) / 1000


@pytest.mark.parametrize("helps", [True, False])
def test_what_got_slower_goes_back_if_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    save_inputs(tmp_path)

    def told(model: Model) -> float:
        return speed(model) if helps or not is_quantized(model) else 1.1

    monkeypatch.setattr(target_at_hand, "measure", timed(told, kernels))
    report = build(tmp_path, QUANTIZE, 0.05)
    assert report.search is not None
    status = {each.name: (each.status, each.reason) for each in report.search.candidates}
    assert status["mine"][0] == "slower than float"
    if not helps:
        assert status["float"][0] == "chosen"
        assert status["mine, 1 in float"][1].startswith("giving back won no time")
        return
    best = chosen(report)
    assert best.name == "mine, 1 in float"
    assert [(each.node, each.cause) for each in best.gave_back] == [("y", "time")]
    assert "200 µs in float, 800 µs compressed" in best.gave_back[0].detail
    assert best.latency_ratio == pytest.approx(500 / 800)
    assert in_float(Model.load(tmp_path / "out" / "model.onnx"), "Gemm")
    assert any(note.startswith("gave back to float what lost time: y") for note in report.notes)
