"""Several models on several targets: the table, the page, and what goes wrong in a row of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from edgecompress.api import profiling as api
from edgecompress.cli import main
from edgecompress.errors import MeasurementError, OutputError
from edgecompress.model import Model
from edgecompress.report.profile_data import ProfileTable
from edgecompress.report.profile_page import page_text
from edgecompress.report.profile_table import as_text
from edgecompress.runtimes import Artifact, runtime_class
from edgecompress.runtimes.onnxruntime import OnnxRuntime
from tests.models import from_text, small_cnn

WRONG_ENGINE = """
from edgecompress.runtimes._session import OnnxRuntimeEngine

class Wrong(OnnxRuntimeEngine):
    def load(self, path, options):
        import onnx
        self.wrong = any(node.op_type == "Clip" for node in onnx.load(path).graph.node)
        return super().load(path, options)

    def collect(self, value):
        sign = -1 if self.wrong else 1
        return {name: sign * array for name, array in super().collect(value).items()}
"""
TARGET = """
name = "wrong"
description = "Answers wrongly behind a Clip."
runtime = "wrong"
provider = "CPUExecutionProvider"
[device]
kind = "host"
[measurement]
runs = 4
blocks = 2
seconds = 0.1
"""
QUICK = TARGET.replace('"wrong"', '"quick"', 1).replace('"wrong"', '"onnxruntime"')
FREE = """
<ir_version: 10, opset_import: ["" : 20]>
free (float[N, L] x) => (float[N, L] y) { y = Relu(x) }
"""


class WrongRuntime(OnnxRuntime):
    name: ClassVar[str] = "wrong"
    engine: ClassVar[str] = "wrong_engine:Wrong"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_cnn().save("cnn.onnx")
    small_cnn(seed=1).save("other.onnx")
    from_text(FREE).save("free.onnx")
    Path("quick.toml").write_text(QUICK, encoding="utf-8")
    return tmp_path


@pytest.fixture
def wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A target whose runtime runs and answers wrongly."""
    (folder / "wrong_engine.py").write_text(WRONG_ENGINE, encoding="utf-8")
    (folder / "wrong.toml").write_text(TARGET, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def with_wrong(name: str) -> Any:
        return WrongRuntime if name == "wrong" else runtime_class(name)

    for module in ("target_at_hand", "devices.local"):
        monkeypatch.setattr(f"edgecompress.{module}.runtime_class", with_wrong)
    monkeypatch.setattr("edgecompress.runtimes.runtime_class", with_wrong)
    return "wrong.toml"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["profile", "-q", *arguments])


def test_models_with_the_same_inputs_take_turns(folder: Path) -> None:
    found = api.profiles(["cnn.onnx", "other.onnx"], targets=["quick.toml"])
    first, second = found.rows
    assert first.measurement.latency_ratio is None
    assert second.measurement.latency_ratio is not None
    assert found.passed
    assert first.agreement is None  # onnxruntime is the reference itself
    assert first.placement is not None
    assert first.placement.on_accelerator == len(first.placement.nodes)
    text = as_text(found)
    assert "cnn.onnx" in text
    assert "other.onnx" in text


def test_each_shape_is_measured(folder: Path) -> None:
    found = api.profiles(["free.onnx"], targets=["quick.toml"], dims={"L": (4, 6)}, batch=3)
    assert [row.shapes for row in found.rows] == [{"x": [3, 4]}, {"x": [3, 6]}]
    inputs = [row.measurement.conditions for row in found.rows]
    assert [each.inputs if each else None for each in inputs] == [{"x": [3, 4]}, {"x": [3, 6]}]


def test_a_failure_stays_in_its_row(folder: Path) -> None:
    found = api.profiles(["free.onnx", "cnn.onnx"], targets=["quick.toml"])
    bad, good = found.rows
    assert bad.error is not None
    assert "has no number" in bad.error["what"]
    assert bad.measurement.basis == "unknown"
    assert good.measurement.basis == "measured"
    assert not found.passed
    assert "has no number" in as_text(found)


def test_wrong_outputs_fail_and_name_the_node(wrong: str) -> None:
    found = api.profile("cnn.onnx", target=wrong)
    assert found.measurement.basis == "measured"
    assert found.agreement is not None
    assert not found.agreement.passed
    assert found.agreement.divergence is not None
    assert found.agreement.divergence.op == "Clip"
    assert found.agreement.worst.cosine == pytest.approx(-1)
    done = run("cnn.onnx", "--target", wrong)
    assert done.exit_code == 1
    assert "first at Clip" in done.output


def test_validate_fails_on_wrong_outputs(wrong: str) -> None:
    done = CliRunner().invoke(
        main, ["validate", "-q", "cnn.onnx", "--target", wrong, "--budget", "size_mb=1"]
    )
    assert done.exit_code == 1
    assert "departs from onnxruntime" in done.output
    assert "FAILED" in done.output


def test_json_has_a_row_for_each_and_reads_back(folder: Path) -> None:
    done = run("cnn.onnx", "--target", "quick.toml", "--target", "ios-coreml", "--json")
    found = ProfileTable.model_validate(json.loads(done.stdout))
    assert [row.target for row in found.rows] == ["quick", "ios-coreml"]
    assert found.rows[1].measurement.basis == "unknown"


def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    done = run("cnn.onnx", "--target", "quick.toml", "--page", "out.html")
    assert done.exit_code == 0, done.output
    text = Path("out.html").read_text(encoding="utf-8")
    assert "://" not in text
    assert text.count("<table") >= 2
    hostile = api.profiles(["cnn.onnx"], targets=["quick.toml"]).rows[0]
    named = hostile.model_copy(update={"model": "<script>alert(1)</script>"})
    assert "<script>alert" not in page_text(ProfileTable(rows=[named]))


def test_a_page_with_another_ending_is_refused_before_the_work(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"ends in \.html"):
        api.profiles(["cnn.onnx"], targets=["quick.toml"], page="out.pdf")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument 'MODEL'"),
        (["cnn.onnx", "--dim", "L=a"], "expected dimension=16,64,128"),
        (["cnn.onnx", "--device", "carrier-pigeon:7"], "unknown name 'carrier-pigeon'"),
        (["cnn.onnx", "--target", "quick.toml", "--dim", "L=4"], "no dimension 'L'"),
    ],
)
def test_bad_arguments(folder: Path, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert said in done.output


def test_a_model_that_cannot_be_prepared_is_told_from_those_that_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxRuntime.prepare

    def prepare(self: OnnxRuntime, model: Model, place: Path, profile: Any) -> Artifact:
        (place / "begun").write_text("left by a converter that fails")
        if model.path is not None and model.path.name == "other.onnx":
            raise MeasurementError("the converter gave up")
        return real(self, model, place, profile)

    monkeypatch.setattr(OnnxRuntime, "prepare", prepare)
    good, bad = api.profiles(["cnn.onnx", "other.onnx"], targets=["quick.toml"]).rows
    assert good.measurement.basis == "measured"
    assert bad.error is not None
    assert bad.error["what"] == "the converter gave up"
