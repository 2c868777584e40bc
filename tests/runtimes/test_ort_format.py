"""ORT format: what is in the files, that they compute the same, and that their bytes are stable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.measure import measure
from edgecompress.model import Model
from edgecompress.runtimes import Artifact, ort_format, runtime_class, runtime_names
from edgecompress.runtimes._ort_convert import OPERATORS_FILE, stable_bytes
from edgecompress.target import Device, MeasurementSettings, TargetProfile
from tests.devices.int8 import SYMMETRIC, UNSIGNED, images, quantized
from tests.models import from_text, small_cnn
from tests.running import run

RUNTIME = runtime_class("ort_format")()
QUICK = MeasurementSettings(warmup=2, runs=4, seconds=0.1, blocks=2, timeout_seconds=60)
SPEECH = {
    "input": np.random.default_rng(0).normal(0, 0.1, (1, 512)).astype(np.float32),
    "state": np.zeros((2, 1, 128), np.float32),
    "sr": np.array(16000),
}


def profile(arch: str, provider: str = "CPUExecutionProvider") -> TargetProfile:
    changes: dict[str, Any] = {
        "runtime": "ort_format",
        "provider": provider,
        "device": Device.model_validate({"kind": "host", "arch": arch}),
        "measurement": QUICK,
    }
    return target.load("cpu-x86-64").model_copy(update=changes)


def kernels(artifact: Artifact) -> list[str]:
    """Operators that the file of operators and types lists."""
    lines = (artifact.path.parent / OPERATORS_FILE).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Operators and types of model.ort"
    listed = [entry for line in lines[1:] for entry in line.split(";")[2].split(",")]
    return [entry.partition("{")[0] for entry in listed if entry[:1].isupper()]


def outputs(artifact: Artifact, arch: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = RUNTIME.session(artifact, profile(arch))
    try:
        return session.run(feeds)
    finally:
        session.close()


@pytest.fixture(scope="module")
def symmetric(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return quantized(tmp_path_factory.mktemp("s8"), small_cnn(), SYMMETRIC)


def test_it_is_a_member() -> None:
    assert "ort_format" in runtime_names()


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_float_file_computes_the_same(arch: str, tmp_path: Path) -> None:
    model = small_cnn()
    artifact = RUNTIME.prepare(model, tmp_path, profile(arch))
    assert [file.name for file in artifact.files] == ["model.ort"]
    assert artifact.path.read_bytes()[4:8] == b"ORTM"
    feeds = images(model)
    expected = run(model, feeds)["y"]
    found = outputs(artifact, arch, feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("arch", "signed"), [("x86_64", False), ("aarch64", True)])
def test_signed_activations_are_fused_for_arm_only(
    arch: str, signed: bool, symmetric: Model, tmp_path: Path
) -> None:
    artifact = RUNTIME.prepare(symmetric, tmp_path, profile(arch))
    assert ("Conv" in kernels(artifact)) != signed
    feeds = images(symmetric)
    # Of the file for ARM, x86 computes what it computes with ARM's rules, to the last bit.
    expected = run(symmetric, feeds, optimize=True, s8=signed)["y"]
    np.testing.assert_array_equal(outputs(artifact, arch, feeds)["y"], expected)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_unsigned_activations_are_fused_for_all(arch: str, tmp_path: Path) -> None:
    model = quantized(tmp_path, small_cnn(), UNSIGNED)
    artifact = RUNTIME.prepare(model, tmp_path, profile(arch))
    assert {"QLinearConv", "QGemm"} <= set(kernels(artifact))
    feeds = images(model)
    expected = run(model, feeds, optimize=True)["y"]
    np.testing.assert_array_equal(outputs(artifact, arch, feeds)["y"], expected)


def test_no_kernel_is_for_one_kind_of_processor(tmp_path: Path) -> None:
    """Blocked convolutions load anywhere, and compute wrong results on registers of other width."""
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, profile("x86_64"))
    assert "nchwc" not in (tmp_path / OPERATORS_FILE).read_text(encoding="utf-8")
    assert any("blocked layout" in note for note in artifact.notes)


def test_for_other_providers_the_quantizers_stay(symmetric: Model, tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(symmetric, tmp_path, profile("aarch64", "NnapiExecutionProvider"))
    assert {"Conv", "Gemm", "QuantizeLinear", "DequantizeLinear"} <= set(kernels(artifact))
    assert any("NnapiExecutionProvider" in note for note in artifact.notes)


def test_the_same_model_gives_the_same_bytes(symmetric: Model, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        files.append(RUNTIME.prepare(symmetric, tmp_path / name, profile("aarch64")).path)
    assert len({file.read_bytes() for file in files}) == 1
    assert len({(file.parent / OPERATORS_FILE).read_bytes() for file in files}) == 1
    assert stable_bytes(files[0].read_bytes()) == files[0].read_bytes()
    assert str(tmp_path).encode() not in files[0].read_bytes()


def test_a_graph_with_branches_keeps_them(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 8] x, bool c) => (float[2, 8] y) {
            y = If (c) <
                then_branch = yes () => (float[2, 8] a) { a = Softmax(x) },
                else_branch = no () => (float[2, 8] b) { b = Sigmoid(x) }
            >
        }"""
    )
    artifact = RUNTIME.prepare(model, tmp_path, profile("x86_64"))
    for taken in (True, False):
        feeds = {"x": np.ones((2, 8), np.float32), "c": np.array(taken)}
        np.testing.assert_allclose(
            outputs(artifact, "x86_64", feeds)["y"], run(model, feeds)["y"], rtol=1e-6
        )


@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "silero_vad.onnx"])
def test_real_models_compute_the_same(
    name: str, shared: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Model.load(shared(name))
    feeds = SPEECH if "silero" in name else images(model, 1)
    artifact = RUNTIME.prepare(model, tmp_path, profile("aarch64"))
    expected = run(model, feeds)
    for key, found in outputs(artifact, "aarch64", feeds).items():
        largest = float(np.abs(expected[key]).max())
        np.testing.assert_allclose(found, expected[key], rtol=0, atol=1e-5 * largest)


def test_it_is_measured_beside_the_onnx_file(tmp_path: Path) -> None:
    model = small_cnn()
    source = model.save(tmp_path / "cnn.onnx")[0]
    artifact = RUNTIME.prepare(model, tmp_path, profile("any"))
    found = measure({"ort": artifact, "onnx": source}, profile("any"), images(model, 1))
    assert found["ort"].basis == "measured"
    assert found["ort"].size_bytes == artifact.path.stat().st_size
    assert {each.op for each in found["ort"].operators} >= {"FusedConv", "Gemm"}


def test_a_model_that_onnxruntime_refuses_is_one_clear_error(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20, "made.up" : 1]>
        g (float[2] x) => (float[2] y) { y = made.up.Nothing(x) }"""
    )
    assert [each.op for each in RUNTIME.unsupported(model, profile("any"))] == ["Nothing"]
    with pytest.raises(MeasurementError, match=r"ort_format could not convert it: .*Nothing"):
        RUNTIME.prepare(model, tmp_path, profile("any"))


def test_a_model_larger_than_the_format_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ort_format, "_MOST_BYTES", 1000)
    with pytest.raises(MeasurementError, match="at most 2 GiB"):
        RUNTIME.prepare(small_cnn(), tmp_path, profile("any"))
    assert list(tmp_path.iterdir()) == []
