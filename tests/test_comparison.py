"""Two models side by side, node by node."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgecompress.comparison import NodeError, compare_nodes, counterparts
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.report.data import LayerReport, Report
from edgecompress.results import Comparison, NodeSqnr
from tests.models import from_text, small_cnn
from tests.reports import sample_report
from tests.running import X86, rows_of, run, sqnr_db, with_outputs


def images(rows: int = 10) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (rows, 3, 16, 16)).astype(np.float32)


def perturbed(model: Model, name: str, factor: float = 1.2) -> Model:
    other = model.clone()
    other.set_initializer(name, np.asarray(other.initializer(name)) * np.float32(factor))
    return other


def quantized(model: Model, folder: Path) -> Model:
    data = rows_of(folder, model, {"x": images()})
    return run_pass(make_pass("quantize", {}), model, Context(data, X86)).model


def test_identical_models_have_no_error(tmp_path: Path) -> None:
    model = small_cnn()
    errors, unmatched = compare_nodes(
        model, model.clone(), rows_of(tmp_path, model, {"x": images()})
    )
    assert [e.sqnr_db for e in errors] == [math.inf] * 9
    assert {e.value for e in errors} == {"c1", "r1", "c2", "r2", "c3", "s", "m", "v", "y"}
    assert unmatched == 0


@pytest.mark.parametrize(
    ("weight", "output", "equal"),
    [("w1", "c1", ()), ("w3", "c3", ("c1", "r1", "c2", "r2")), ("w4", "y", ("s", "m", "v"))],
)
def test_the_error_starts_at_the_changed_node(
    tmp_path: Path, weight: str, output: str, equal: tuple[str, ...]
) -> None:
    model = small_cnn()
    model.set_initializer("b1", np.zeros(8, np.float32))
    data = rows_of(tmp_path, model, {"x": images()})
    errors, _ = compare_nodes(model, perturbed(model, weight), data)
    by_value = {e.value: e.sqnr_db for e in errors}
    assert all(by_value[value] == math.inf for value in equal)
    assert by_value[output] < 40
    order = [e.value for e in errors]
    assert all(order.index(output) < order.index(value) for value in equal)
    assert by_value[order[0]] == min(by_value.values())


def test_a_lone_changed_node_is_the_worst(tmp_path: Path) -> None:
    model = small_cnn()
    errors, _ = compare_nodes(
        model, perturbed(model, "w4", -1.0), rows_of(tmp_path, model, {"x": images()})
    )
    assert errors[0].value == "y"
    assert [e.sqnr_db for e in errors[1:]] == [math.inf] * 8


def test_errors_are_those_of_onnxruntime(tmp_path: Path) -> None:
    model, x = small_cnn(), images()
    other = perturbed(model, "w1", 1.05)
    errors, _ = compare_nodes(model, other, rows_of(tmp_path, model, {"x": x}))
    values = ["c1", "r2", "s", "y"]
    a, b = (run(with_outputs(m, values), {"x": x}) for m in (model, other))
    by_value = {e.value: e.sqnr_db for e in errors}
    for value in values:
        assert by_value[value] == pytest.approx(sqnr_db(a[value], b[value]), abs=0.01)


def test_counterparts_are_what_consumers_see(tmp_path: Path) -> None:
    model = small_cnn()
    pairs = counterparts(model, quantized(model, tmp_path))
    # c1 goes through a ReLU before its quantizer; y is the name of the pair behind the Gemm or
    # of the Gemm itself; the rest is read through a pair.
    assert pairs["c1"] == "c1"
    assert pairs["r1"] == "r1_dequantized"
    assert pairs["c3"] == "c3_dequantized"
    assert pairs["y"] == "y"


def test_quantization_errors_grow_along_the_graph(tmp_path: Path) -> None:
    model = small_cnn()
    data = rows_of(tmp_path, model, {"x": images()})
    errors, unmatched = compare_nodes(model, quantized(model, tmp_path), data)
    assert unmatched == 0
    assert all(15 < e.sqnr_db < 70 for e in errors)


def test_missing_nodes_are_counted(tmp_path: Path) -> None:
    header = '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 4] x) => (float[N, 4] y)'
    model = from_text(header + "{ a = Relu(x) b = Abs(a) y = Neg(b) }")
    other = from_text(header + "{ a = Relu(x) y = Neg(a) }")
    x = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32)
    errors, unmatched = compare_nodes(model, other, rows_of(tmp_path, model, {"x": x}))
    assert unmatched == 1
    assert {e.value for e in errors} == {"a", "y"}


def test_validation_rows_are_used_where_there_are_any(tmp_path: Path) -> None:
    model = small_cnn()
    x = images(8)
    data = rows_of(tmp_path, model, {"x": x}, validation_share=0.5)
    (validation,) = data.batches("validation")
    errors, _ = compare_nodes(model, perturbed(model, "w1"), data)
    signal = next(e.signal for e in errors if e.value == "c1")
    expected = run(with_outputs(model, ["c1"]), {"x": validation.inputs["x"]})["c1"]
    assert signal == pytest.approx(float(np.square(expected.astype(np.float64)).sum()), rel=1e-5)


def test_rows_are_limited(tmp_path: Path) -> None:
    model = small_cnn()
    told: list[int] = []
    data = rows_of(tmp_path, model, {"x": images(10)})
    compare_nodes(model, model, data, rows=5, progress=lambda what, done, total: told.append(done))
    assert told[-1] <= 8
    assert len(told) == 2


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [(100.0, 1.0, 20.0), (1.0, 0.0, math.inf), (0.0, 0.0, math.inf), (0.0, 1.0, -math.inf)],
)
def test_decibels(signal: float, noise: float, expected: float) -> None:
    assert NodeError("n", "Conv", "v", signal, noise).sqnr_db == pytest.approx(expected)


@pytest.mark.parametrize("decibels", [math.inf, -math.inf])
def test_infinite_ratios_survive_json(decibels: float) -> None:
    report = sample_report()
    layer = report.layers[0].model_copy(update={"sqnr_db": decibels})
    report = report.model_copy(update={"layers": [layer]})
    text = report.model_dump_json()
    assert "null" not in LayerReport.model_dump_json(layer, include={"sqnr_db"})
    assert Report.model_validate_json(text) == report
    found = Comparison(
        a="a.onnx",
        b="b.onnx",
        rows=4,
        metric="sqnr",
        metric_a=math.inf,
        metric_b=decibels,
        size_bytes_a=1,
        size_bytes_b=1,
        outputs=[],
        nodes=[NodeSqnr(node="c", op="Conv", sqnr_db=decibels)],
        unmatched=0,
    )
    assert Comparison.model_validate_json(found.model_dump_json()) == found
