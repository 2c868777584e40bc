"""Building a recipe: what is delivered, what is kept, and what happens where it does not work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from edgecompress import delivery, pipeline, step_cache, target, workbench
from edgecompress.cli import console as cli_console
from edgecompress.cli import main
from edgecompress.errors import DataError, MeasurementError, PassError, RecipeError
from edgecompress.graph_pass import Applied
from edgecompress.machine.host import host
from edgecompress.model import Model
from edgecompress.report.data import Report
from tests.models import from_text
from tests.recipes import (
    BROKEN_OFF,
    DELIVERED,
    UNREACHABLE,
    Built,
    names,
    recipe,
    save_inputs,
    write_recipe,
)

ROOT = Path(__file__).resolve().parents[1]
RELU = from_text(
    """
    <ir_version: 10, opset_import: ["" : 20]>
    relu (float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y) { y = Relu(x) }
    """
)
CLEANUP = {"name": "cleanup"}
QUANTIZE = {"name": "quantize", "bias_correction": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_inputs(tmp_path / "work")


def no_pass_runs(*_: Any) -> Applied:
    raise AssertionError("a pass ran")


# What is delivered


def test_a_build_delivers_model_manifest_and_three_reports(built: Built) -> None:
    assert built.report.status == "passed"
    assert names(built.output) == DELIVERED


def test_the_manifest_tells_what_was_delivered(built: Built) -> None:
    manifest = json.loads((built.output / "manifest.json").read_text())
    content = (built.output / "model.onnx").read_bytes()
    assert manifest["files"] == [
        {
            "name": "model.onnx",
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    ]
    model = Model.load(built.output / "model.onnx")
    assert manifest["model"]["digest"] == model.digest
    assert manifest["model"]["steps"] == ["quantize"]
    assert manifest["model"]["inputs"] == model.signature.as_json()["inputs"]
    assert manifest["source"]["digest"] == Model.load(built.folder / "cnn.onnx").digest
    assert manifest["recipe"]["pass"][0]["name"] == "quantize"
    assert set(manifest["versions"]) >= {"edgecompress", "torch", "onnxruntime"}


def test_the_model_says_nothing_of_the_machine_that_built_it(built: Built) -> None:
    content = (built.output / "model.onnx").read_bytes()
    for trace in (str(built.folder), str(ROOT), "site-packages", ".py", "edgecompress-"):
        assert trace.encode() not in content


def test_the_report_reads_back(built: Built) -> None:
    text = (built.output / "report.json").read_text()
    assert Report.model_validate_json(text) == built.report


def test_the_report_tells_all(built: Built) -> None:
    source, quantize = built.report.steps
    assert (source.status, quantize.status) == ("source", "kept")
    assert source.metric == pytest.approx(1.0, abs=1e-12)
    assert 0.9 < (quantize.metric or 0) < 1
    for step in (source, quantize):
        assert step.measurement is not None
        assert step.measurement.basis == "measured"
    assert source.measurement.latency_ratio is None  # type: ignore[union-attr]
    assert quantize.measurement.latency_ratio is not None  # type: ignore[union-attr]
    assert [layer.op for layer in built.report.layers] == ["Conv", "Conv", "Conv", "Gemm"]
    # The first ones, few channels wide, are faster in float where the target says so.
    shallow = 2 if target.load(target.host_target()).constraints(host()).slow_shallow_convs else 0
    assert [layer.format == "float" for layer in built.report.layers[:2]] == [shallow > 0] * 2
    for layer in built.report.layers[shallow:]:
        assert layer.sqnr_db is not None
        assert 10 < layer.sqnr_db < 80
        assert layer.bytes_after < layer.bytes_before
    claimed = 4 - shallow
    assert built.report.coverage is not None
    assert (built.report.coverage.fused, built.report.coverage.claimed) == (claimed, claimed)
    assert {budget.name: budget.passed for budget in built.report.budgets} == {
        "memory_mb": True,
        "size_mb": True,
        "metric_drop": True,
    }


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for place, use_cache in (("a", False), ("b", True), ("b", True)):
        folder = tmp_path / place
        if not folder.exists():
            save_inputs(folder)
        pipeline.build(
            recipe(folder, target=UNREACHABLE, **{"pass": [CLEANUP, QUANTIZE]}),
            use_cache=use_cache,
        )
        contents.append(
            [(folder / "out" / name).read_bytes() for name in ("model.onnx", "manifest.json")]
        )
        shutil.rmtree(folder / "out")
    assert contents[0] == contents[1] == contents[2]
    assert not (tmp_path / "a" / ".edgecompress").exists()


# Cache


def test_the_second_build_runs_no_pass(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "run_pass", no_pass_runs)
    monkeypatch.setattr(pipeline.Evaluator, "judge", no_pass_runs)
    again = pipeline.build(
        recipe(built.folder, budget={"size_mb": 1}),
        output=built.folder / "again",
    )
    assert [step.cached for step in again.steps] == [False, True]
    assert (built.folder / "again" / "model.onnx").read_bytes() == (
        built.output / "model.onnx"
    ).read_bytes()


CHANGES: dict[str, dict[str, Any]] = {
    "option": {"pass": [{**QUANTIZE, "method": "minmax"}]},
    "seed": {"build": {"seed": 1}},
    "rows": {"data": {"path": "rows.npz", "rows": 20}},
    "number format": {"target": {"name": "cpu-arm64"}},
    "source": {"source": {"model": "other.onnx"}},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_changed_recipe_runs_the_step_again(built: Built, changes: dict[str, Any]) -> None:
    if not (built.folder / "other.onnx").exists():
        other = Model.load(built.folder / "cnn.onnx").clone()
        other.set_initializer("b4", np.ones(10, np.float32))
        other.save(built.folder / "other.onnx")
    assert pipeline.plan(recipe(built.folder)).steps[0].cached
    assert not pipeline.plan(recipe(built.folder, **changes)).steps[0].cached


@pytest.mark.parametrize("budget", [{"size_mb": 5}, {"latency_ms": 5, "metric_drop": 0.5}])
def test_a_changed_budget_does_not(built: Built, budget: dict[str, float]) -> None:
    assert pipeline.plan(recipe(built.folder, budget=budget)).steps[0].cached


def test_changed_source_code_runs_the_step_again(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_cache, "_source_digest", lambda: "changed")
    assert not pipeline.plan(recipe(built.folder)).steps[0].cached


def test_behind_a_step_that_is_not_cached_none_is(built: Built) -> None:
    steps = pipeline.plan(recipe(built.folder, **{"pass": [CLEANUP, QUANTIZE]})).steps
    assert [step.cached for step in steps] == [False, False]


# Plan


@pytest.mark.parametrize("output", [None, "a/b"])
def test_a_plan_writes_nothing(folder: Path, output: str | None) -> None:
    before = sorted(folder.rglob("*"))
    plan = pipeline.plan(
        recipe(folder, **{"pass": [CLEANUP, QUANTIZE]}),
        output=None if output is None else folder / output,
    )
    assert sorted(folder.rglob("*")) == before
    assert [step.name for step in plan.steps] == ["cleanup", "quantize"]
    assert (plan.calibration_rows, plan.validation_rows, plan.metric) == (16, 16, "cosine")


# Roll-back, and passes that find nothing


def test_a_step_that_breaks_the_metric_budget_is_rolled_back(folder: Path) -> None:
    report = pipeline.build(recipe(folder, target=UNREACHABLE, budget={"metric_drop": 0}))
    assert report.steps[1].status == "rolled back"
    assert "the budget allows 0" in (report.steps[1].reason or "")
    assert any("rolled back" in note for note in report.notes)
    assert report.status == "passed"
    assert Model.load(folder / "out/model.onnx").digest == Model.load(folder / "cnn.onnx").digest


def test_a_model_that_fails_a_budget_is_rejected(folder: Path) -> None:
    pipeline.build(recipe(folder, target=UNREACHABLE))
    assert names(folder / "out") == DELIVERED
    budget = {"metric_drop": 0, "size_ratio": 0.5}
    report = pipeline.build(recipe(folder, target=UNREACHABLE, budget=budget))
    assert report.status == "failed"
    verdicts = {v.name: v.passed for v in report.budgets}
    assert verdicts == {"metric_drop": True, "size_ratio": False}
    # The model of the build before is gone, too.
    assert names(folder / "out") == DELIVERED - {"model.onnx", "manifest.json"} | {"rejected.onnx"}
    report = pipeline.build(recipe(folder, target=UNREACHABLE))
    assert names(folder / "out") == DELIVERED


def test_a_pass_that_must_change_something_and_does_not_is_an_error(folder: Path) -> None:
    pipeline.build(recipe(folder, target=UNREACHABLE))
    RELU.save(folder / "cnn.onnx")
    with pytest.raises(PassError, match="changed nothing: the graph has nothing"):
        pipeline.build(recipe(folder, target=UNREACHABLE))
    assert names(folder / "out") == BROKEN_OFF
    report = Report.model_validate_json((folder / "out/report.json").read_text())
    assert report.status == "error"
    assert report.error is not None
    assert report.error["error"] == "PassError"
    assert [step.name for step in report.steps] == ["source"]


def test_a_pass_that_may_find_nothing_says_so(folder: Path) -> None:
    cleanup = recipe(folder, target=UNREACHABLE, **{"pass": [CLEANUP]})
    pipeline.build(cleanup)
    shutil.copy(folder / "out/model.onnx", folder / "cnn.onnx")
    report = pipeline.build(cleanup)
    assert report.steps[1].status == "unchanged"
    assert any(note.startswith("cleanup changed nothing: ") for note in report.notes)
    assert report.status == "passed"


# Targets


def test_where_nothing_can_be_measured_latency_is_unknown(folder: Path) -> None:
    report = pipeline.build(recipe(folder, target=UNREACHABLE))
    for step in report.steps:
        assert step.measurement is not None
        assert step.measurement.basis == "unknown"
        assert "cannot be reached" in (step.measurement.reason or "")
        assert step.measurement.latency_ms is None
    assert report.status == "passed"


@pytest.mark.parametrize("name", ["latency_ms", "latency_ratio", "memory_mb"])
@pytest.mark.parametrize("allow_estimate", [False, True])
def test_what_is_unknown_passes_no_budget(folder: Path, name: str, allow_estimate: bool) -> None:
    target = {**UNREACHABLE, "allow_estimate": allow_estimate}
    report = pipeline.build(recipe(folder, target=target, budget={name: 1000}, **{"pass": []}))
    assert report.status == "failed"
    assert (report.budgets[0].basis, report.budgets[0].value) == ("unknown", None)


def test_quantizing_for_a_target_without_int8_is_a_clear_error(folder: Path) -> None:
    with pytest.raises(PassError, match="no int8 kernels"):
        pipeline.build(recipe(folder, target={"name": "ios-coreml"}))
    assert names(folder / "out") == BROKEN_OFF


def test_arm_gets_signed_activations(folder: Path) -> None:
    report = pipeline.build(recipe(folder, target={"name": "cpu-arm64"}))
    assert str(report.steps[1].notes["format"]).startswith("int8 activations, int8 weights")
    model = Model.load(folder / "out/model.onnx")
    zero_points = [
        node.inputs[2].const_value.dtype.name  # type: ignore[union-attr]
        for node in model.ir.graph
        if node.op_type == "QuantizeLinear"
    ]
    assert set(zero_points) == {"INT8"}
    assert report.coverage is not None
    assert report.coverage.fused == report.coverage.claimed == 4


def test_a_runtime_error_names_the_model_and_not_a_temporary_file(folder: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    gelu (double[N, 2] x) => (double[N, 2] y) { y = Gelu(x) }
    """
    from_text(text).save(folder / "cnn.onnx")
    with pytest.raises(MeasurementError) as caught:
        pipeline.build(recipe(folder, data=None, **{"pass": []}))
    assert caught.value.where == str(folder / "cnn.onnx")
    assert "edgecompress-" not in (folder / "out/report.json").read_text()


# Rows


def test_free_dimensions_need_rows_before_any_work_is_done(folder: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    relu (float[N, L] x) => (float[N, L] y) { y = Relu(x) }
    """
    from_text(text).save(folder / "cnn.onnx")
    free = recipe(folder, data=None, **{"pass": [CLEANUP]})
    with pytest.raises(DataError, match=r"dimension 'L' has no number"):
        pipeline.plan(free)


NEEDY: dict[str, tuple[dict[str, Any], str]] = {
    "pass": ({"data": None}, "pass 'quantize'"),
    "pass without calibration rows": ({"data": {"validation": {"path": "rows.npz"}}}, "quantize"),
    "metric": ({"data": None, "pass": [], "metric": {"name": "cosine"}}, "metric"),
    "budget": ({"data": None, "pass": [], "budget": {"metric_drop": 1}}, "budget.metric_drop"),
    "budget without validation rows": (
        {"data": {"path": "rows.npz", "validation_share": 0}, "budget": {"metric_drop": 1}},
        "budget.metric_drop",
    ),
}


@pytest.mark.parametrize(("changes", "where"), NEEDY.values(), ids=NEEDY)
def test_rows_that_are_needed_and_not_named(
    folder: Path, changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(RecipeError, match="rows, and none are named") as caught:
        pipeline.plan(recipe(folder, **changes))
    assert where in (caught.value.where or "")
    assert caught.value.cure


# Interrupts

INTERRUPTED = "interrupted; nothing was written, the next run continues from the cache"


def interrupt_at(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    def progress(bar: object, label: str, done: int, total: int) -> None:
        if label == wanted:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_console._Bar, "__call__", progress)


def check_interrupted(folder: Path) -> None:
    before = psutil.Process().children(recursive=True)
    done = CliRunner().invoke(main, ["build", str(folder / "recipe.json")])
    assert (done.exit_code, done.stdout, done.stderr.strip()) == (130, "", INTERRUPTED)
    assert names(folder / "out") == set()
    assert not list(folder.rglob("*.part"))
    assert psutil.Process().children(recursive=True) == before


STAGES = ("cosine", "step quantize", "calibrate", "steps", "measure", "compare")


def test_the_stages_are_those_that_a_build_goes_through(built: Built) -> None:
    assert tuple(dict.fromkeys(built.labels)) == STAGES


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_behind_at_any_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(folder)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "load", interrupted)
        check_interrupted(folder)
    for stage in STAGES:  # each build goes on from where the one before was interrupted
        with monkeypatch.context() as patch:
            interrupt_at(patch, stage)
            check_interrupted(folder)
    monkeypatch.setattr(workbench, "run_pass", no_pass_runs)
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "write_junit", interrupted)
        interrupt_at(patch, "no stage")
        check_interrupted(folder)
    done = CliRunner().invoke(main, ["build", str(folder / "recipe.json"), "--json", "--quiet"])
    assert done.exit_code == 0
    assert names(folder / "out") == DELIVERED
    assert [step["cached"] for step in json.loads(done.stdout)["steps"]] == [False, True]


def test_an_interrupt_from_the_keyboard_ends_the_workers(folder: Path) -> None:
    write_recipe(folder, target={"name": "host", "runs": 1_000_000})
    command = [sys.executable, "-m", "edgecompress", "build", "recipe.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("measure"):
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.strip() == INTERRUPTED
    assert workers
    assert not any(worker.is_running() for worker in workers)
    assert names(folder / "out") == set()


# Privacy


STRACE = ("strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=socket", "-o")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_build_calls_nobody_and_writes_nothing_to_the_home_folder(folder: Path) -> None:
    home, trace = folder / "home", folder / "trace"
    home.mkdir()
    write_recipe(folder)
    done = subprocess.run(
        [*STRACE, str(trace), sys.executable, "-m", "edgecompress", "build", "recipe.json", "-q"],
        cwd=folder,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr:
        pytest.skip("strace is not permitted here")
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
    assert "AF_INET" not in trace.read_text()


# Command line


@pytest.mark.parametrize(("budget", "code"), [({"size_mb": 1}, 0), ({"size_mb": 1e-6}, 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes_and_output(
    folder: Path, budget: dict[str, float], code: int, as_json: bool
) -> None:
    file = write_recipe(folder, target=UNREACHABLE, budget=budget, **{"pass": []})
    done = CliRunner().invoke(main, ["build", str(file), *(["--json"] if as_json else [])])
    assert done.exit_code == code
    if as_json:
        assert Report.model_validate_json(done.stdout).budgets[0].passed is (code == 0)
    else:
        assert ("PASSED" if code == 0 else "FAILED") in done.stdout
        assert str(folder / "out" / "report.html") in done.stdout
