"""MNN: conversion without its tools, our ranges in its integer kernels, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecompress.constraints import Constraints
from edgecompress.errors import MeasurementError, OutputError
from edgecompress.measure import measure
from edgecompress.model import Model
from edgecompress.runtimes import runtime_class
from tests.models import from_text, small_cnn
from tests.running import ARM, X86, rows_of, run
from tests.runtimes import converted
from tests.runtimes.converted import assert_same, cosine, images, int8_cnn, outputs, profile

RUNTIME = runtime_class("mnn")()
TARGET = profile("mnn")
PRESENT, CURE = RUNTIME.present(TARGET)
needed = pytest.mark.skipif(not PRESENT, reason=CURE)
F = np.float32


def test_its_module_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'onnx', 'onnx_ir', 'MNN', '_tools', 'pydantic'}"
    modules = "edgecompress.runtimes.mnn, edgecompress.runtimes._mnn_engine"
    code = f"import sys, {modules}; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needed
def test_the_tools_that_send_data_home_are_never_imported(tmp_path: Path) -> None:
    file = small_cnn().save(tmp_path / "cnn.onnx")[0]
    (tmp_path / "pip").write_text(f"#!/bin/sh\ntouch {tmp_path}/pip_was_started\n")
    (tmp_path / "pip").chmod(0o755)
    code = f"""
import os, sys
os.environ["PATH"] = {str(tmp_path)!r} + os.pathsep + os.environ["PATH"]
from edgecompress.runtimes._mnn_engine import MnnEngine
engine = MnnEngine()
engine.convert({str(file)!r}, {str(tmp_path)!r}, {{}})
engine.start()
print("found", [name for name in sys.modules if name.startswith("MNN.tools")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "found []" in done.stdout
    assert (tmp_path / "model.mnn").exists()
    assert not (tmp_path / "pip_was_started").exists()


@needed
def test_a_float_model_with_a_free_batch(tmp_path: Path) -> None:
    model = small_cnn()
    assert RUNTIME.unsupported(model, TARGET) == []
    artifact = RUNTIME.prepare(model, tmp_path, TARGET)
    assert artifact.notes == ()
    session = RUNTIME.session(artifact, TARGET)
    for rows in (1, 3):
        assert_same(session.run(images(rows)), model, images(rows), 0.99999)
    session.close()


@needed
@pytest.mark.parametrize("constraints", [X86, ARM], ids=["u8", "s8"])
def test_our_ranges_run_on_its_integers(tmp_path: Path, constraints: Constraints) -> None:
    model = int8_cnn(tmp_path, constraints)
    artifact = RUNTIME.prepare(model, tmp_path, TARGET)
    assert "3 layers run on integers" in artifact.notes
    assert any("its output is float (1)" in note for note in artifact.notes)
    session = RUNTIME.session(artifact, TARGET)
    assert_same(session.run(images()), model, images(), 0.998)
    session.close()
    coverage = RUNTIME.coverage(model, ["c1", "c2", "c3", "y", "nothing"], TARGET)
    assert coverage is not None
    assert coverage.fused == 3
    assert coverage.unfused["y"] == "Convolution in float"
    assert coverage.integer_kernels >= 3


@needed
def test_where_nodes_run_and_what_would_mend_it(tmp_path: Path) -> None:
    placement = RUNTIME.placement(int8_cnn(tmp_path), TARGET)
    assert placement is not None
    convolutions = [node for node in placement.nodes if node.op == "Conv"]
    assert [node.integer for node in convolutions] == [True, True, True]
    mends = {each.op: each.mend for each in placement.breaks}
    assert mends["Gemm"] == "quantize its output, too"


def branched(body: str) -> Model:
    """Two convolutions of ``x``, called ``r`` (behind a Relu) and ``a``, and one behind ``o``."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.4, (8, 3, 3, 3)).astype(F) for name in ("w1", "w2")}
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 3, 16, 16] x, float[8, 3, 3, 3] w1, float[8, 3, 3, 3] w2, float[8, 8, 3, 3] w3,
           int64[8] pads) => (float[1, 8, h, w] y)
        {{
            c = Conv<pads=[1,1,1,1]>(x, w1)
            r = Relu(c)
            a = Conv<pads=[1,1,1,1]>(x, w2)
            {body}
            y = Conv<pads=[1,1,1,1]>(o, w3)
        }}""",
        w3=rng.normal(0, 0.2, (8, 8, 3, 3)).astype(F),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        **weights,
    )


@needed
@pytest.mark.parametrize(
    "body",
    [
        "t = Add(r, a) o = Relu(t)",
        "o = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(a)",
        "o = Pad(r, pads)",
        "o = Mul(r, a)",
    ],
    ids=["add-relu", "maxpool", "pad", "mul"],
)
def test_what_it_computes_wrongly_with_zero_points_is_right(tmp_path: Path, body: str) -> None:
    model = branched(body)
    data = np.random.default_rng(1).normal(0, 1, (8, 3, 16, 16)).astype(F)
    rows = [{"x": data[i : i + 1]} for i in range(8)]
    compressed = converted.quantized(model, rows_of(tmp_path, model, {"x": data}))
    (found,) = outputs(RUNTIME, compressed, rows[0], TARGET, tmp_path).values()
    (exact,) = run(model, rows[0]).values()
    assert cosine(found, exact) > 0.998


@needed
def test_a_real_model_in_both_forms(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    model, compressed, feeds = converted.resnet(shared, tmp_path)
    found = outputs(RUNTIME, model, feeds, TARGET, tmp_path / "float")
    assert_same(found, model, feeds, 0.9999)
    artifact = RUNTIME.prepare(compressed, tmp_path / "int8", TARGET)
    assert artifact.size_bytes < 0.4 * model.size_bytes
    session = RUNTIME.session(artifact, TARGET)
    (found_int8,) = session.run(feeds).values()
    session.close()
    (rounded,) = run(compressed, feeds).values()
    (exact,) = run(model, feeds).values()
    assert cosine(found_int8, exact) > cosine(rounded, exact) - 0.02


@needed
def test_several_outputs_of_several_types(tmp_path: Path) -> None:
    model = converted.wrong_names()
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (5, 4)).astype(F)}
    found = outputs(RUNTIME, model, feeds, TARGET, tmp_path)
    expected = run(model, feeds)
    assert list(found) == ["last", "best"]
    assert found["best"].dtype == np.int64
    np.testing.assert_array_equal(found["best"], expected["best"])
    np.testing.assert_allclose(found["last"], expected["last"], atol=1e-5)


@needed
def test_a_transformer(tmp_path: Path) -> None:
    model = converted.transformer()
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (1, 8, 16)).astype(F)}
    assert_same(outputs(RUNTIME, model, feeds, TARGET, tmp_path), model, feeds, 0.9999)


@needed
def test_float_and_int8_are_measured_in_turn(tmp_path: Path) -> None:
    models = {"float": small_cnn(), "int8": int8_cnn(tmp_path)}
    artifacts = {
        name: RUNTIME.prepare(model, tmp_path / name, TARGET) for name, model in models.items()
    }
    found = measure(artifacts, TARGET, images(), reference="float")
    for each in found.values():
        assert each.basis == "measured"
        assert each.latency_ms is not None
        assert each.operators
    assert any("DT_INT8" in row.op for row in found["int8"].operators)
    assert found["int8"].latency_ratio is not None


@needed
def test_an_operator_that_it_does_not_know_is_named(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20, "com.example" : 1]>
        g (float[1, 8] x) => (float[1, 8] y) { h = Relu(x) y = com.example.Strange(h) }"""
    )
    (refused,) = RUNTIME.unsupported(model, TARGET)
    assert refused.op == "Strange"
    assert "converter" in refused.reason
    with pytest.raises(MeasurementError, match="Strange"):
        RUNTIME.prepare(model, tmp_path, TARGET)


@needed
def test_dynamic_integers_are_refused_since_they_come_out_wrong() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 8] x, uint8[8, 4] w) => (int32[1, 4] y)
        { q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, w, z) }""",
        w=np.ones((8, 4), np.uint8),
    )
    refused = RUNTIME.unsupported(model, TARGET)
    assert {each.op for each in refused} == {"DynamicQuantizeLinear", "MatMulInteger"}


@needed
def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        RUNTIME.prepare(small_cnn(), tmp_path / "file", TARGET)


@needed
def test_inputs_that_do_not_fit_are_one_error(tmp_path: Path) -> None:
    session = RUNTIME.session(RUNTIME.prepare(small_cnn(), tmp_path, TARGET), TARGET)
    with pytest.raises(MeasurementError, match=r"expected \['N', 3, 16, 16\], got \[1, 3, 8, 8\]"):
        session.run({"x": np.zeros((1, 3, 8, 8), F)})
    session.close()


@needed
def test_a_broken_file_is_one_error(tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, TARGET)
    artifact.path.write_bytes(artifact.path.read_bytes()[:100])
    session = RUNTIME.session(artifact, TARGET)
    with pytest.raises(MeasurementError):
        session.run(images())
    session.close()
