"""The Python API behind the verbs that compress, measure, judge and compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from edgecompress import api
from edgecompress.cli import main
from edgecompress.errors import DataError, InputError, ModelError, RecipeError, TargetError
from edgecompress.report.data import Report
from edgecompress.results import Plan
from tests.models import from_text, small_cnn
from tests.recipes import DELIVERED, Built, names, save_inputs, write_recipe

FREE = """
<ir_version: 10, opset_import: ["" : 20]>
sums (float[N, L] x, int64[N, L] mask) => (float[N, L] y) {
    m = Cast<to=1>(mask)
    y = Mul(x, m)
}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(save_inputs(tmp_path / "work"))
    return Path()


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each model for a moment only."""
    from edgecompress import evaluation

    whole = evaluation.load_target

    def short(name: str, **changes: Any) -> Any:
        profile = whole(name, **{"runs": 5, **changes})
        settings = profile.measurement.model_copy(update={"seconds": 0.1, "blocks": 2})
        return profile.model_copy(update={"measurement": settings})

    monkeypatch.setattr(evaluation, "load_target", short)


# build


def test_build_takes_a_file_or_a_recipe(folder: Path) -> None:
    target = {"name": "android-cpu"}
    file = write_recipe(folder, target=target)
    report = api.build(file, output="elsewhere", use_cache=False)
    assert isinstance(report, Report)
    assert report.status == "passed"
    assert names(folder) == {"cnn.onnx", "rows.npz", "recipe.json", "elsewhere"}
    plan = api.build(str(file), dry_run=True)
    assert isinstance(plan, Plan)
    assert not plan.measurable
    assert names(folder) == {"cnn.onnx", "rows.npz", "recipe.json", "elsewhere"}


# compress


def test_compress_needs_no_recipe(folder: Path) -> None:
    report = api.compress(
        "cnn.onnx",
        [("cleanup", {}), ("quantize", {"method": "minmax", "bias_correction": False})],
        output="out",
        data="rows.npz",
        labels="digits",
        target="android-cpu",
        budgets={"size_mb": 1, "metric_drop": 1},
    )
    assert report.status == "passed"
    assert report.metric is not None
    assert report.metric.name == "top1"
    assert [step.name for step in report.steps] == ["source", "cleanup", "quantize"]
    assert report.steps[2].options["method"] == "minmax"
    assert names(folder / "out") == DELIVERED
    written = json.loads((folder / "out/manifest.json").read_text())["recipe"]
    assert written["budget"] == {"size_mb": 1.0, "metric_drop": 1.0}


def test_compress_validates_on_rows_of_their_own(folder: Path) -> None:
    np.savez("more.npz", x=np.ones((5, 3, 16, 16), np.float32))
    report = api.compress(
        "cnn.onnx", [], output="out", data="rows.npz", validation="more.npz", target="android-cpu"
    )
    assert report.data is not None
    assert (report.data.calibration_rows, report.data.validation_rows) == (32, 5)


def test_compress_takes_the_data_of_a_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(folder, data={"path": "rows.npz", "rows": 12})
    monkeypatch.chdir("..")
    report = api.compress(
        "work/cnn.onnx", [], output="out", data="work/recipe.json", target="android-cpu"
    )
    assert report.data is not None
    assert report.data.calibration_rows + report.data.validation_rows == 12


# profile


def test_profile(folder: Path) -> None:
    result = api.profile("cnn.onnx", threads=1, batch=3)
    found = result.measurement
    assert found.basis == "measured"
    assert found.latency_ms is not None
    assert found.conditions is not None
    assert found.conditions.inputs == {"x": [3, 3, 16, 16]}
    assert {operator.op for operator in found.operators} >= {"Gemm"}
    assert result.unsupported == []


def test_profile_with_shapes(folder: Path) -> None:
    from_text(FREE).save("free.onnx")
    result = api.profile("free.onnx", shapes={"x": (2, 7), "mask": (2, 7)})
    assert result.measurement.conditions is not None
    assert result.measurement.conditions.inputs == {"x": [2, 7], "mask": [2, 7]}


SHAPES: list[tuple[dict[str, tuple[int, ...]] | None, str]] = [
    (None, "dimension 'L' has no number"),
    ({"y": (2, 7)}, "no input 'y'; known: mask, x"),
    ({"x": (2, 7, 1)}, r"expected x: float32\[N, L\], got the shape \[2, 7, 1\]"),
]


@pytest.mark.parametrize(("shapes", "text"), SHAPES)
def test_profile_refuses_shapes_that_do_not_fit(
    folder: Path, shapes: dict[str, tuple[int, ...]] | None, text: str
) -> None:
    from_text(FREE).save("free.onnx")
    with pytest.raises(DataError, match=text) as caught:
        api.profile("free.onnx", shapes=shapes)
    if shapes is None:
        assert "--shape" in (caught.value.cure or "")


def test_profile_of_a_fixed_dimension(folder: Path) -> None:
    with pytest.raises(DataError, match=r"got the shape \[1, 3, 8, 8\]"):
        api.profile("cnn.onnx", shapes={"x": (1, 3, 8, 8)})


def test_profile_out_of_reach(folder: Path) -> None:
    found = api.profile("cnn.onnx", target="ios-coreml").measurement
    assert (found.basis, found.latency_ms) == ("unknown", None)
    assert "cannot be reached" in (found.reason or "")
    assert found.size_bytes == Path("cnn.onnx").stat().st_size


def test_profile_tells_what_the_runtime_cannot_run(folder: Path) -> None:
    model = small_cnn()
    node = model.ir.graph.node(1)
    node.domain, node.op_type = "my.ops", "Frobnicate"
    model.ir.opset_imports["my.ops"] = 1
    model.save("odd.onnx")
    result = api.profile("odd.onnx")
    assert [(u.op, "my.ops" in u.reason) for u in result.unsupported] == [("Frobnicate", True)]
    assert result.measurement.basis == "unknown"


def test_profile_of_an_unknown_target(folder: Path) -> None:
    with pytest.raises(TargetError, match="did you mean 'cpu-arm64'"):
        api.profile("cnn.onnx", target="cpu-arm")


# validate


def test_validate_against_a_reference(built: Built) -> None:
    result = api.validate(
        built.output / "model.onnx",
        reference=built.folder / "cnn.onnx",
        data=built.folder / "rows.npz",
        budgets={"metric_drop": 0.1, "size_ratio": 1e-3},
    )
    verdicts = {verdict.name: verdict.passed for verdict in result.budgets}
    assert verdicts == {"metric_drop": True, "size_ratio": False}
    assert not result.passed
    assert result.metric == "cosine"
    assert result.reference_metric == pytest.approx(1.0, abs=1e-12)
    assert result.measurement.latency_ratio is not None
    assert result.coverage is not None
    assert built.report.coverage is not None
    assert result.coverage.fused == result.coverage.claimed == built.report.coverage.claimed > 1


def test_validate_by_the_data_and_metric_of_a_recipe(folder: Path) -> None:
    write_recipe(
        folder, data={"path": "rows.npz", "labels": "digits"}, metric={"name": "agreement"}
    )
    result = api.validate(
        "cnn.onnx", reference="cnn.onnx", data="recipe.json", budgets={"metric_drop": 0}
    )
    assert (result.passed, result.metric, result.metric_value) == (True, "agreement", 1.0)


def test_validate_passes_nothing_that_is_unknown(folder: Path) -> None:
    result = api.validate("cnn.onnx", budgets={"latency_ms": 1e6}, target="android-cpu")
    assert not result.passed
    assert result.budgets[0].basis == "unknown"


VALIDATIONS: list[tuple[dict[str, Any], type[InputError], str]] = [
    (
        {"budgets": {"metric_drop": 1}},
        RecipeError,
        "metric_drop.*--reference FLOAT.onnx and --data",
    ),
    ({"budgets": {"metric_drop": 1}, "reference": "cnn.onnx"}, RecipeError, "add --data"),
    ({"budgets": {"size_ratio": 1}}, RecipeError, "size_ratio.*add --reference"),
    ({"budgets": {"latncy_ms": 1}}, RecipeError, "did you mean 'latency_ms'"),
    ({"budgets": {"size_mb": -1}}, RecipeError, "greater than 0, got -1"),
    ({"budgets": {"size_mb": 1}, "metric": "top1"}, DataError, "needs rows"),
    ({"budgets": {"size_mb": 1}, "reference": "other.onnx"}, ModelError, "the inputs differ"),
    ({"budgets": {"size_mb": 1}, "reference": "renamed.onnx"}, ModelError, "the outputs differ"),
]


def save_others() -> None:
    other = """
    <ir_version: 10, opset_import: ["" : 20]>
    other (float[N, 3] a) => (float[N, 3] y) { y = Relu(a) }
    """
    from_text(other).save("other.onnx")
    renamed = small_cnn()
    renamed.ir.graph.outputs[0].name = "logits"
    renamed.save("renamed.onnx")


@pytest.mark.parametrize(("arguments", "error", "text"), VALIDATIONS)
def test_validate_refuses(
    folder: Path, arguments: dict[str, Any], error: type[InputError], text: str
) -> None:
    save_others()
    with pytest.raises(error) as caught:
        api.validate("cnn.onnx", **arguments)
    assert re.search(text, str(caught.value), re.DOTALL)


def test_exit_codes_of_validate(folder: Path) -> None:
    for limit, code, word in (("3", 0, "PASSED"), ("0.001", 1, "FAILED")):
        done = CliRunner().invoke(
            main, ["validate", "cnn.onnx", "-q", "--budget", f"size_mb={limit}"]
        )
        assert done.exit_code == code
        assert done.stdout.endswith(f"{word}\n")


# compare


def test_compare_shows_the_worst_first(built: Built) -> None:
    result = api.compare(
        built.folder / "cnn.onnx", built.output / "model.onnx", data=built.folder / "rows.npz"
    )
    sqnr_db = [node.sqnr_db for node in result.nodes]
    assert sqnr_db == sorted(sqnr_db)
    assert len(sqnr_db) == 9
    assert 10 < sqnr_db[0] < 80
    assert [node.node for node in result.outputs] == ["y"]
    assert (result.rows, result.metric, result.unmatched) == (32, "cosine", 0)
    assert result.metric_a == pytest.approx(1.0, abs=1e-12)
    assert 0.9 < result.metric_b < 1
    assert result.size_bytes_b == (built.output / "model.onnx").stat().st_size


def test_a_model_equals_itself(folder: Path) -> None:
    result = api.compare("cnn.onnx", "cnn.onnx", data="rows.npz", metric="sqnr")
    assert {node.sqnr_db for node in result.nodes} == {float("inf")}
    assert result.metric_a == result.metric_b == float("inf")
    done = CliRunner().invoke(
        main, ["compare", "cnn.onnx", "cnn.onnx", "--data", "rows.npz", "--json"]
    )
    assert json.loads(done.stdout)["rows"] == 32


def test_names_of_free_dimensions_do_not_matter(folder: Path) -> None:
    model = small_cnn()
    for value in (*model.ir.graph.inputs, *model.ir.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape(["batch", *value.shape.dims[1:]])
    model.save("batch.onnx")
    assert api.compare("cnn.onnx", "batch.onnx", data="rows.npz").metric_b == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("other", "text"),
    [("other.onnx", "the inputs differ"), ("renamed.onnx", "the outputs differ")],
)
def test_compare_refuses_models_that_are_not_alike(folder: Path, other: str, text: str) -> None:
    save_others()
    with pytest.raises(ModelError, match=text) as caught:
        api.compare("cnn.onnx", other, data="rows.npz")
    assert other in (caught.value.where or "")
