"""The search: which candidates are tried, which one is chosen, and what is said of the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgecompress import api, evaluation, pipeline, target_at_hand, workbench
from edgecompress.cli import console as cli_console
from edgecompress.cli import main
from edgecompress.constraints import Constraints, WeightOnlyFormat
from edgecompress.errors import PassError, RecipeError
from edgecompress.evaluation import MetricFigure
from edgecompress.graph_pass import make_pass
from edgecompress.measure import Latency, Measurement
from edgecompress.model import Model
from edgecompress.recipe import SearchSpec
from edgecompress.report.data import CandidateReport, Report
from edgecompress.search.candidates import Candidate, candidates, refusal
from edgecompress.search.choice import choose, settle
from edgecompress.search.trials import Trial
from tests.models import from_text, small_cnn
from tests.recipes import (
    BROKEN_OFF,
    DELIVERED,
    UNREACHABLE,
    names,
    recipe,
    save_inputs,
    write_recipe,
)
from tests.timing import is_quantized, timed

ROOT = Path(__file__).resolve().parents[1]
CLEANUP = {"name": "cleanup"}
QUANTIZE = {"name": "quantize", "bias_correction": False}
COARSE = {**QUANTIZE, "method": "percentile", "percentile": 51, "weight_method": "minmax"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_inputs(tmp_path / "work")


@pytest.fixture
def int8_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 0.5 if is_quantized(m) else 1.0))


@pytest.fixture
def int8_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 1.2 if is_quantized(m) else 1.0))


def own(**passes: dict[str, Any]) -> dict[str, Any]:
    """A search among candidates of one pass each."""
    made = [{"name": name, "pass": [step]} for name, step in passes.items()]
    return {"candidates": [], "candidate": made, "give_back": False}


def build(folder: Path, search: dict[str, Any], **changes: Any) -> Report:
    changes = {"pass": [CLEANUP], "budget": {"metric_drop": 0.05}, **changes}
    return pipeline.build(recipe(folder, search=search, **changes))


def larger(folder: Path) -> None:
    """A model that gets smaller by int8: in the small one, names weigh more than weights."""
    small_cnn(channels=64).save(folder / "cnn.onnx")


def found(report: Report) -> dict[str, CandidateReport]:
    assert report.search is not None
    return {each.name: each for each in report.search.candidates}


def statuses(report: Report) -> dict[str, str]:
    return {name: each.status for name, each in found(report).items()}


# Which candidates there are


def test_a_target_takes_what_its_constraints_say() -> None:
    all_of_them = Constraints(dynamic_int8=True)
    none_of_them = Constraints(int8=None, weight_only=None, half=None)
    for name in ("static", "equalized", "mixed", "dynamic", "weights8", "weights4", "half"):
        candidate = Candidate(name)
        assert refusal(candidate, all_of_them, 1) is None
        assert str(refusal(candidate, none_of_them, 1)).startswith("the target has no ")
    only8 = Constraints(weight_only=WeightOnlyFormat(bits=(8,)))
    assert refusal(Candidate("weights8"), only8, 1) is None
    assert "4-bit" in str(refusal(Candidate("weights4"), only8, 1))


def test_a_candidate_that_needs_rows_is_refused_without() -> None:
    quantize, cleanup = make_pass("quantize", {}), make_pass("cleanup", {})
    assert refusal(Candidate("mine", (quantize,), own=True), Constraints(), 1) is None
    assert "calibration rows" in str(refusal(Candidate("static", (quantize,)), Constraints(), 0))
    assert refusal(Candidate("mine", (cleanup,), own=True), Constraints(int8=None), 0) is None


def test_own_candidates_come_first_and_others_by_name() -> None:
    mine = {"name": "mine", "pass": (make_pass("cleanup", {}),)}
    spec = SearchSpec.model_validate({"candidate": (mine,)})
    assert [each.name for each in candidates(spec)][:2] == ["mine", "static"]
    assert [each.name for each in candidates(SearchSpec(candidates=("static",)))] == ["static"]
    assert candidates(SearchSpec(candidates=())) == []


# Choice

PASSES = (make_pass("cleanup", {}),)


def trial(name: str, speed: float | None, size: int, *missed: str) -> Trial:
    latency = (
        None
        if speed is None
        else Latency(
            p50=speed,
            p90=speed,
            p99=speed,
            min=speed,
            mean=speed,
            runs=1,
            warmup=1,
            cpu_min_ms=speed,
        )
    )
    measurement = Measurement(
        basis="unknown" if speed is None else "measured",
        latency_ms=latency,
        latency_ratio=speed,
        size_bytes=size,
    )
    passes = () if name == "float" else PASSES
    return Trial(Candidate(name, passes), measurement=measurement, size_bytes=size, missed=missed)


FLOAT = ("float", 1.0, 100)
CHOICES: dict[str, tuple[list[tuple[Any, ...]], str, str]] = {
    "the fastest": ([FLOAT, ("a", 0.6, 30), ("b", 0.5, 40)], "latency", "b"),
    "the smaller of two that are equally fast": (
        [FLOAT, ("a", 0.51, 30), ("b", 0.5, 40)],
        "latency",
        "a",
    ),
    "the smallest": ([FLOAT, ("a", 0.6, 30), ("b", 0.5, 40)], "size", "a"),
    "never one that is slower": ([FLOAT, ("a", 1.05, 30)], "latency", "float"),
    "one that is as fast within noise": ([FLOAT, ("a", 1.02, 30)], "latency", "a"),
    "one that is slower, by size": ([FLOAT, ("a", 1.05, 30)], "size", "a"),
    "float that passes made faster": ([("float", 0.5, 90), ("a", 0.7, 30)], "latency", "float"),
    "one that keeps the budgets": (
        [FLOAT, ("a", 0.4, 30, "memory_mb"), ("b", 0.6, 40)],
        "latency",
        "b",
    ),
    "one that misses the fewest": (
        [(*FLOAT, "size_mb", "latency_ms"), ("a", 0.4, 60, "size_mb")],
        "latency",
        "a",
    ),
    "the first where nothing is measured": (
        [("float", None, 100), ("a", None, 40), ("b", None, 30)],
        "latency",
        "a",
    ),
    "float alone": ([FLOAT], "latency", "float"),
}


@pytest.mark.parametrize(("rows", "objective", "wanted"), CHOICES.values(), ids=CHOICES)
def test_chooses(rows: list[tuple[Any, ...]], objective: Any, wanted: str) -> None:
    trials = [trial(*row) for row in rows]
    chosen = choose(trials, objective)
    assert chosen.name == wanted
    settle(trials, chosen, objective)
    assert [t.name for t in trials if t.status == "chosen"] == [wanted]
    assert all(t.status is not None and t.reason for t in trials)


def test_says_of_each_why_it_was_not_chosen() -> None:
    trials = [
        trial(*FLOAT),
        trial("slow", 1.3, 20),
        trial("dear", 0.4, 20, "memory_mb"),
        trial("best", 0.5, 30),
        trial("large", 0.5, 40),
        trial("late", 0.8, 30),
    ]
    settle(trials, choose(trials, "latency"), "latency")
    assert {t.name: (t.status, t.reason) for t in trials} == {
        "float": ("outdone", "best is faster"),
        "slow": ("slower than float", "it takes 1.30x the time"),
        "dear": ("misses a budget", "memory_mb"),
        "best": ("chosen", "the fastest that keeps all"),
        "large": ("outdone", "best is as fast, and smaller"),
        "late": ("outdone", "best is faster"),
    }


# From end to end, with times that are made up


@pytest.mark.usefixtures("int8_is_fast")
def test_the_best_candidate_is_delivered(folder: Path) -> None:
    search = own(
        good=QUANTIZE,
        coarse=COARSE,
        idle=CLEANUP,
        twin={**QUANTIZE, "percentile": 99},
        wrong={"name": "quantize", "nodes": {"nothing-like-it": False}},
    )
    report = build(folder, search)
    assert statuses(report) == {
        "float": "outdone",
        "good": "chosen",
        "coarse": "loses too much",
        "idle": "unchanged",
        "twin": "unchanged",
        "wrong": "failed",
    }
    listed = found(report)
    assert listed["good"].latency_ratio == pytest.approx(0.5)
    assert listed["coarse"].latency_ratio == pytest.approx(0.5)
    assert "0.05 is allowed" in listed["coarse"].reason
    assert listed["twin"].reason == "it makes the same file as good"
    assert "matches no node" in listed["wrong"].reason
    assert [(s.name, s.status) for s in report.steps] == [
        ("source", "source"),
        ("cleanup", "kept"),
        ("quantize", "kept"),
    ]
    assert report.status == "passed"
    assert names(folder / "out") == DELIVERED
    assert is_quantized(Model.load(folder / "out" / "model.onnx"))
    assert len(report.layers) == 4
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["search"]["chosen"] == "good"
    assert manifest["search"]["pass"][0]["name"] == "quantize"
    assert any(note.startswith("the search chose good, the fastest") for note in report.notes)


@pytest.mark.usefixtures("int8_is_slow")
def test_float_is_delivered_where_nothing_beats_it(folder: Path) -> None:
    report = build(folder, own(good=QUANTIZE, coarse=COARSE))
    assert statuses(report) == {
        "float": "chosen",
        "good": "slower than float",
        "coarse": "loses too much",
    }
    note = "no candidate beats the float model, which is delivered"
    assert any(each.startswith(note) for each in report.notes)
    assert report.status == "passed"
    assert not is_quantized(Model.load(folder / "out" / "model.onnx"))


@pytest.mark.usefixtures("int8_is_slow")
def test_budgets_are_judged_as_ever(folder: Path) -> None:
    larger(folder)
    budget = {"metric_drop": 0.05, "size_ratio": 0.7}
    report = build(folder, own(good=QUANTIZE), budget=budget)
    assert report.status == "failed"
    assert names(folder / "out") == DELIVERED - {"model.onnx", "manifest.json"} | {"rejected.onnx"}
    report = build(folder, {**own(good=QUANTIZE), "objective": "size"}, budget=budget)
    assert (report.status, statuses(report)["good"]) == ("passed", "chosen")


def test_passes_in_front_that_make_float_slower_are_taken_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speed(model: Model) -> float:
        return 2.0 if is_quantized(model) else 1.5 if model.opset > 20 else 1.0

    monkeypatch.setattr(target_at_hand, "measure", timed(speed))
    changes = {"pass": [{**CLEANUP, "opset": 21}]}
    report = build(folder, own(good=QUANTIZE), **changes)
    assert statuses(report)["float"] == "chosen"
    assert report.steps[1].status == "rolled back"
    assert Model.load(folder / "out/model.onnx").opset == 20
    # Without candidates to try, the measurement at the end says it.
    report = build(folder, own(idle=CLEANUP), **changes)
    assert report.steps[1].status == "rolled back"


def test_the_last_measurement_has_the_last_word(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def speed(model: Model) -> float:
        if not is_quantized(model):
            return 1.0
        calls.append(model)
        return 0.9 if len(calls) == 1 else 1.1

    monkeypatch.setattr(target_at_hand, "measure", timed(speed))
    report = build(folder, own(good=QUANTIZE))
    assert statuses(report) == {"float": "chosen", "good": "slower than float"}
    assert [s.status for s in report.steps] == ["source", "kept", "rolled back"]
    assert "measured at the end" in (report.steps[-1].reason or "")
    assert not is_quantized(Model.load(folder / "out" / "model.onnx"))


def test_where_nothing_can_be_measured_the_first_that_keeps_all_is_taken(folder: Path) -> None:
    report = build(folder, own(coarse=COARSE, good=QUANTIZE, other=CLEANUP), target=UNREACHABLE)
    assert statuses(report)["good"] == "chosen"
    assert "nothing can be measured" in found(report)["good"].reason


def test_all_candidates_are_refused(folder: Path) -> None:
    target = {"name": "ios-coreml"}
    report = build(folder, {"candidates": ["static"]}, target=target)
    assert statuses(report) == {"float": "chosen", "static": "refused"}
    assert "no int8 kernels" in found(report)["static"].reason
    assert report.status == "passed"
    assert names(folder / "out") == DELIVERED


@pytest.mark.usefixtures("int8_is_fast")
def test_a_candidate_that_crashes_costs_only_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = workbench.run_pass

    def crash(step: Any, model: Model, context: Any) -> Any:
        if step.name == "quantize" and step.method == "minmax":
            raise ZeroDivisionError("no scale")
        return real(step, model, context)

    monkeypatch.setattr(workbench, "run_pass", crash)
    report = build(folder, own(bad={**QUANTIZE, "method": "minmax"}, good=QUANTIZE))
    assert statuses(report) == {"float": "outdone", "bad": "failed", "good": "chosen"}
    assert found(report)["bad"].reason == "ZeroDivisionError: no scale"


def test_a_pass_in_front_that_fails_is_still_an_error(folder: Path) -> None:
    from_text(
        '<ir_version: 10, opset_import: ["" : 20]> '
        "relu (float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y) { y = Relu(x) }"
    ).save(folder / "cnn.onnx")
    with pytest.raises(PassError, match="changed nothing"):
        build(folder, own(), **{"pass": [QUANTIZE]})
    assert names(folder / "out") == BROKEN_OFF


# How much may be lost


@pytest.mark.usefixtures("int8_is_fast")
def test_without_a_budget_one_percent_may_be_lost(folder: Path) -> None:
    report = build(folder, own(good=QUANTIZE), budget=None)
    assert report.search is not None
    assert (report.search.allowed_by, report.search.allowed_drop) == (
        "default",
        pytest.approx(0.01),
    )
    assert any("no budget names metric_drop" in note for note in report.notes)


def test_a_metric_that_tells_no_share_needs_a_budget(folder: Path) -> None:
    with pytest.raises(RecipeError, match="tells nothing of how much"):
        build(folder, own(), budget=None, metric="sqnr")


def test_a_search_needs_validation_rows(folder: Path) -> None:
    with pytest.raises(RecipeError, match="needs validation rows") as caught:
        pipeline.plan(recipe(folder, data=None, search={}, **{"pass": [CLEANUP]}))
    assert caught.value.where == "search"


@pytest.mark.usefixtures("int8_is_fast")
def test_a_loss_of_just_what_is_allowed_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(self: evaluation.Evaluator, model: Model, reference: Model) -> MetricFigure:
        return MetricFigure(0.8675 if is_quantized(model) else 0.8725, 400)

    monkeypatch.setattr(evaluation.Evaluator, "judge", judge)
    report = build(folder, own(good=QUANTIZE), budget={"metric_drop": 0.005})
    assert statuses(report)["good"] == "chosen"
    assert report.status == "passed"


# Time


@pytest.mark.usefixtures("int8_is_fast")
def test_with_hardly_any_time_float_is_delivered(folder: Path) -> None:
    report = build(folder, {**own(good=QUANTIZE), "max_minutes": 1e-9})
    assert statuses(report) == {"float": "chosen", "good": "not tried"}
    assert report.search is not None
    assert not report.search.complete
    assert any("the search's time was over" in note for note in report.notes)
    assert names(folder / "out") == DELIVERED


@pytest.mark.usefixtures("int8_is_fast")
@pytest.mark.parametrize("last", ["candidate second", "calibrate"])
def test_at_the_end_of_the_time_the_best_so_far_is_delivered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    real, ahead, seen = time.monotonic, [0.0], set()
    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead[0])

    def progress(label: str, done: int, total: int) -> None:
        seen.add(label)
        if label == last and "candidate second" in seen:
            ahead[0] = 3600

    search = own(first=QUANTIZE, second={**QUANTIZE, "method": "minmax"})
    tables = recipe(folder, search={**search, "max_minutes": 10}, **{"pass": [CLEANUP]})
    report = pipeline.build(tables, progress=progress)
    assert statuses(report) == {"float": "outdone", "first": "chosen", "second": "not tried"}
    assert is_quantized(Model.load(folder / "out" / "model.onnx"))


# Going on after an end before time


@pytest.mark.usefixtures("int8_is_fast")
def test_a_second_search_does_nothing_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(folder, own(good=QUANTIZE, coarse=COARSE))
    calls: list[int] = []
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 0.5, calls=calls))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was done twice")

    monkeypatch.setattr(workbench, "run_pass", never)
    monkeypatch.setattr(evaluation.Evaluator, "judge", never)
    second = build(folder, own(good=QUANTIZE, coarse=COARSE))
    assert statuses(second) == statuses(first)
    assert calls == [3]  # at the end, of all that was kept: source, cleanup and quantize


@pytest.mark.usefixtures("int8_is_fast")
def test_the_best_so_far_lies_in_the_cache(folder: Path) -> None:
    build(folder, own(good=QUANTIZE), build={"cache": "kept"})
    (best,) = (folder / "kept").glob("best-*")
    assert names(best) == {"model.onnx", "manifest.json"}
    assert json.loads((best / "manifest.json").read_text())["name"] == "good"
    delivered = Model.load(folder / "out" / "model.onnx")
    assert Model.load(best / "model.onnx").digest == delivered.digest
    build(folder, own(good=QUANTIZE), build={"cache": False})  # nowhere to lay it aside


def test_an_interrupted_search_writes_nothing_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 0.5 if is_quantized(m) else 1.0))
    search = own(first=QUANTIZE, second={**QUANTIZE, "method": "minmax"})
    write_recipe(folder, search=search, **{"pass": [CLEANUP]})

    def progress(bar: object, label: str, done: int, total: int) -> None:
        if label == "candidate second":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli_console._Bar, "__call__", progress)
        done = CliRunner().invoke(main, ["build", str(folder / "recipe.json")])
    assert (done.exit_code, done.stdout) == (130, "")
    assert "continues from the cache" in done.stderr
    assert names(folder / "out") == set()
    done = CliRunner().invoke(main, ["build", str(folder / "recipe.json"), "--json", "-q"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["steps"][-1]["cached"]


def test_a_search_that_is_killed_leaves_its_best_and_goes_on(folder: Path) -> None:
    search = own(first=QUANTIZE, second={**QUANTIZE, "method": "minmax"})
    budget = {"metric_drop": 0.05}
    larger(folder)
    changes = {"search": {**search, "objective": "size"}, "budget": budget, "pass": [CLEANUP]}
    write_recipe(folder, **changes)
    command = [sys.executable, "-m", "edgecompress", "build", "recipe.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("candidate second"):
                process.send_signal(signal.SIGKILL)
                break
    assert "model.onnx" not in names(folder / "out")
    (best,) = (folder / ".edgecompress" / "cache").glob("best-*")
    assert is_quantized(Model.load(best / "model.onnx"))
    report = pipeline.build(recipe(folder, **changes))
    assert set(statuses(report)) == {"float", "first", "second"}
    assert names(folder / "out") == DELIVERED


# The command line and the API


def test_compress_searches_where_no_pass_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(target_at_hand, "measure", timed(lambda m: 0.5 if is_quantized(m) else 1.0))
    arguments = ["compress", "cnn.onnx", "--data", "rows.npz", "-o", "out", "-q"]
    more = ["--metric-drop", "0.05", "--candidate", "static", "--max-minutes", "5"]
    done = CliRunner().invoke(main, [*arguments, *more])
    assert done.exit_code == 0, done.stderr
    assert "static" in done.stdout
    assert "static: the fastest that keeps all" in done.stdout
    report = Report.model_validate_json((folder / "out" / "report.json").read_text())
    assert statuses(report) == {"float": "outdone", "static": "chosen"}
    page = (folder / "out" / "report.html").read_text()
    assert "<h2>Search</h2>" in page
    assert "cosine by time" in page


def test_compress_runs_exactly_the_passes_that_are_named(folder: Path) -> None:
    report = api.compress(
        folder / "cnn.onnx",
        [("cleanup", {})],
        output=folder / "out",
        data=folder / "rows.npz",
        target="android-cpu",
        use_cache=False,
    )
    assert report.search is None
    with_search = api.compress(
        folder / "cnn.onnx",
        [("cleanup", {})],
        search={"candidates": ["static"], "give_back": False},
        output=folder / "out",
        data=folder / "rows.npz",
        target="android-cpu",
        budgets={"metric_drop": 0.5},
        use_cache=False,
    )
    assert statuses(with_search)["static"] == "chosen"


USAGE: Callable[..., Any] = pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "cleanup", "--max-minutes", "1"], "give one or the other"),
        (["--metric-drop", "1", "--budget", "metric_drop=1"], "say the same"),
        (["--candidate", "statik"], "search.candidates[0]: expected 'static'"),
        (["--max-minutes", "0"], "search.max_minutes: "),
        ([], "search: needs validation rows"),
    ],
)


@USAGE
def test_compress_refuses(folder: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(
        main, ["compress", str(folder / "cnn.onnx"), "-o", str(folder / "out"), *arguments]
    )
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_plan_lists_the_candidates(folder: Path) -> None:
    search = {**own(mine=QUANTIZE), "candidates": ["static"]}
    write_recipe(folder, search=search, target={"name": "ios-coreml"})
    done = CliRunner().invoke(main, ["build", str(folder / "recipe.json"), "--dry-run"])
    assert done.exit_code == 0, done.stderr
    assert "mine       to try   quantize" in done.stdout
    assert "static     refused  the target has no int8 kernels" in done.stdout


# Honest times


def test_a_search_on_this_machine(folder: Path) -> None:
    report = build(folder, {"candidates": ["static"], "max_minutes": 5})
    listed = found(report)
    assert listed["static"].status in ("chosen", "slower than float", "outdone")
    assert listed["static"].latency_ratio is not None
    chosen = next(each for each in listed.values() if each.status == "chosen")
    assert is_quantized(Model.load(folder / "out" / "model.onnx")) is bool(chosen.passes)
