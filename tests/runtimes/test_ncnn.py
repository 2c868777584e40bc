"""ncnn: conversion by pnnx, float outputs, and what is left over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import MeasurementError
from edgecompress.measure import measure
from edgecompress.model import Model
from edgecompress.runtimes import runtime_class
from tests.models import from_text, small_cnn
from tests.runtimes import converted
from tests.runtimes.converted import assert_same, images, int8_cnn, outputs, profile

RUNTIME = runtime_class("ncnn")()
TARGET = profile("ncnn")
PRESENT, CURE = RUNTIME.present(TARGET)
needed = pytest.mark.skipif(not PRESENT, reason=CURE)
F = np.float32


def test_its_module_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'onnx', 'onnx_ir', 'ncnn', 'pnnx', 'torch', 'pydantic'}"
    modules = "edgecompress.runtimes.ncnn, edgecompress.runtimes._ncnn_engine"
    code = f"import sys, {modules}; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needed
def test_a_float_model(tmp_path: Path) -> None:
    model = small_cnn()
    assert RUNTIME.unsupported(model, TARGET) == []
    artifact = RUNTIME.prepare(model, tmp_path, TARGET)
    assert artifact.notes == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        file.name for file in artifact.files
    )
    session = RUNTIME.session(artifact, TARGET)
    assert_same(session.run(images()), model, images(), 0.99999)
    assert_same(session.run(images(seed=1)), model, images(seed=1), 0.99999)
    session.close()


@needed
def test_an_int8_model_runs_in_float_and_says_so(tmp_path: Path) -> None:
    model = int8_cnn(tmp_path)
    artifact = RUNTIME.prepare(model, tmp_path, TARGET)
    (note,) = artifact.notes
    assert "computes in 32-bit floats" in note
    session = RUNTIME.session(artifact, TARGET)
    assert_same(session.run(images()), model, images(), 0.998)
    session.close()
    coverage = RUNTIME.coverage(model, ["c1"], TARGET)
    assert coverage is not None
    assert coverage.fused == 0
    placement = RUNTIME.placement(model, TARGET)
    assert placement is not None
    assert {each.op for each in placement.breaks} >= {"Conv", "Gemm"}


@needed
def test_a_real_model(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    model = Model.load(shared("mobilenet_v1_075_224.onnx"))
    (name,) = (spec.name for spec in model.signature.inputs)
    feeds = {name: np.random.default_rng(0).uniform(-1, 1, (1, 3, 224, 224)).astype(F)}
    assert_same(outputs(RUNTIME, model, feeds, TARGET, tmp_path), model, feeds, 0.9999)


@needed
def test_slices_with_steps_are_refused_by_name(shared: Callable[[str], Path]) -> None:
    refused = RUNTIME.unsupported(Model.load(shared("resnet20_cifar10.onnx")), TARGET)
    assert {each.op for each in refused} == {"Slice"}


@needed
def test_a_transformer(tmp_path: Path) -> None:
    model = converted.transformer()
    feeds = {"x": np.random.default_rng(0).normal(0, 1, (1, 8, 16)).astype(F)}
    assert RUNTIME.unsupported(model, TARGET) == []
    assert_same(outputs(RUNTIME, model, feeds, TARGET, tmp_path), model, feeds, 0.9999)


@needed
def test_half_precision_is_an_option(tmp_path: Path) -> None:
    half = profile("ncnn", fp16=True)
    sizes = [RUNTIME.prepare(small_cnn(), tmp_path, each).size_bytes for each in (TARGET, half)]
    assert sizes[1] < sizes[0]
    assert_same(
        outputs(RUNTIME, small_cnn(), images(), half, tmp_path), small_cnn(), images(), 0.99
    )


@needed
def test_a_model_is_measured(tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, TARGET)
    found = measure({"float": artifact}, TARGET, images())["float"]
    assert found.basis == "measured"
    assert found.latency_ms is not None
    assert any("Convolution" in row.op for row in found.operators)
    assert sum(row.share for row in found.operators) == pytest.approx(1)


@needed
def test_what_is_left_over_is_named(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 8] x, float[8] k, float[8] other) => (float[1, 8] y)
        { c = Greater(x, k) r = Relu(x) y = Where(c, r, other) }""",
        k=np.zeros(8, F),
        other=np.ones(8, F),
    )
    refused = RUNTIME.unsupported(model, TARGET)
    assert {each.op for each in refused} >= {"Where"}
    assert all("no layer of ncnn" in each.reason for each in refused)
    with pytest.raises(MeasurementError, match=r"ncnn has no layers for .*where"):
        RUNTIME.prepare(model, tmp_path, TARGET)


@needed
def test_a_fixed_batch_is_refused() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[4, 3, 8, 8] x) => (float[4, 3, 8, 8] y) { y = Relu(x) }"""
    )
    (refused,) = RUNTIME.unsupported(model, TARGET)
    assert "one row at a time, got a batch of 4" in refused.reason


@needed
def test_several_rows_are_one_error(tmp_path: Path) -> None:
    session = RUNTIME.session(RUNTIME.prepare(small_cnn(), tmp_path, TARGET), TARGET)
    with pytest.raises(MeasurementError, match="one row at a time"):
        session.run(images(2))
    session.close()


@needed
def test_a_broken_file_is_one_error(tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, TARGET)
    artifact.path.write_text("7767517\n1 1\nStrange s 0 1 out0\n")
    session = RUNTIME.session(artifact, TARGET)
    with pytest.raises(MeasurementError, match="ncnn could not load"):
        session.run(images())
    session.close()
