"""What onnxruntime computes on emulated ARM processors, against x86."""

from __future__ import annotations

import importlib.metadata
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgecompress import target
from edgecompress.constraints import Constraints
from edgecompress.devices import Device, connect, device_names
from edgecompress.devices._library import VARIABLE as RUNTIME
from edgecompress.devices.arm64 import PROCESSORS
from edgecompress.devices.arm64 import VARIABLE as QEMU
from edgecompress.errors import MeasurementError, TargetError
from edgecompress.measure import measure
from edgecompress.model import Model
from edgecompress.runtimes import Artifact, runtime_class
from tests.devices.debian import filled_once, host_suite, unpacked
from tests.devices.int8 import ARM, UNSIGNED, images, quantized
from tests.models import small_cnn
from tests.running import run

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PROFILE = target.load("cpu-arm64")
Shared = Callable[[str], Path]


def wheel() -> Path:
    """The wheel for ARM of the onnxruntime that runs here."""
    version = importlib.metadata.version("onnxruntime")
    with filled_once(f"onnxruntime-{version}-aarch64") as (folder, aside):
        if aside is not None:
            line = [sys.executable, "-m", "pip", "download", f"onnxruntime=={version}", "--no-deps"]
            line += ["--only-binary", ":all:", "--python-version", PYTHON, "--dest", str(aside)]
            line += ["--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64"]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = done.stderr.strip().splitlines()[-1:]
                pytest.skip(f"the aarch64 wheel of onnxruntime could not be had: {said}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    """QEMU, a compiler for ARM and onnxruntime for ARM, all unpacked only."""
    emulator = unpacked(["qemu-user"]) / "usr/bin/qemu-aarch64"
    compiler = unpacked(["g++-aarch64-linux-gnu"], suite=host_suite()) / "usr/bin"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(QEMU, str(emulator))
        patch.setenv("PATH", f"{compiler}{os.pathsep}{os.environ['PATH']}")
        patch.setenv(RUNTIME, str(wheel()))
        yield


@pytest.fixture(scope="module")
def cortex_a76(tools: None) -> Iterator[Device]:
    with connect("arm64") as device:
        yield device


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it but what is put into this folder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in (QEMU, RUNTIME):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def outputs(device: Device, file: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with device.start(Artifact((file,)), PROFILE, feeds, where=file.name) as peer:
        return peer.outputs()


def test_it_is_a_member_that_is_not_timed() -> None:
    assert "arm64" in device_names()
    assert not connect("arm64").timed


def test_a_float_model_computes_the_same(cortex_a76: Device, tmp_path: Path) -> None:
    model = small_cnn()
    feeds = images(model)
    expected = run(model, feeds)["y"]
    found = outputs(cortex_a76, model.save(tmp_path / "cnn.onnx")[0], feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("processor", "constraints"),
    [("cortex-a53", ARM), ("cortex-a76", UNSIGNED), ("neoverse-v1", ARM)],
)
def test_integers_are_the_same_to_the_last_bit(
    processor: str, constraints: Constraints, tools: None, tmp_path: Path
) -> None:
    """With and without dot products, and with matrix products on integers."""
    assert processor in PROCESSORS
    model = quantized(tmp_path, small_cnn(), constraints)
    feeds = images(model)
    with connect(f"arm64:{processor}") as device:
        assert device.facts().arch == "aarch64"
        assert ("asimddp" in device.facts().isa) == (processor != "cortex-a53")
        found = outputs(device, model.save(tmp_path / "int8.onnx")[0], feeds)["y"]
    expected = run(model, feeds, optimize=True, s8=constraints is ARM)["y"]
    np.testing.assert_array_equal(found, expected)


def test_a_real_network_on_integers_is_the_same_to_the_last_bit(
    cortex_a76: Device, shared: Shared, tmp_path: Path
) -> None:
    model = quantized(tmp_path, Model.load(shared("resnet20_cifar10.onnx")), ARM)
    feeds = images(model, rows=2, seed=1)
    expected = run(model, feeds, optimize=True, s8=True)
    for name, found in outputs(cortex_a76, model.save(tmp_path / "r.onnx")[0], feeds).items():
        np.testing.assert_array_equal(found, expected[name])


def test_a_file_in_ort_format_made_here_runs_there(cortex_a76: Device, tmp_path: Path) -> None:
    model = quantized(tmp_path, small_cnn(), ARM)
    profile = PROFILE.model_copy(update={"runtime": "ort_format"})
    artifact = runtime_class("ort_format")().prepare(model, tmp_path, profile)
    feeds = images(model)
    with cortex_a76.start(artifact, profile, feeds, where="model.ort") as peer:
        found = peer.outputs()["y"]
    np.testing.assert_array_equal(found, run(model, feeds, optimize=True, s8=True)["y"])


def test_nothing_is_left_behind(
    tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_cnn()
    file = model.save(tmp_path / "cnn.onnx")[0]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with connect("arm64") as device:
        outputs(device, file, images(model))
        assert list(scratch.iterdir()) != []
    assert list(scratch.iterdir()) == []


def test_times_are_not_taken(tmp_path: Path) -> None:
    file = small_cnn().save(tmp_path / "cnn.onnx")[0]
    found = measure({"cnn": file}, PROFILE, images(small_cnn()), device="arm64")["cnn"]
    assert found.basis == "unknown"
    assert found.reason is not None
    assert "emulation" in found.reason


def test_an_unknown_processor_is_named_with_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"'cortex-a67'; did you mean 'cortex-a76'\?"):
        connect("arm64:cortex-a67")


def test_a_missing_emulator_is_one_clear_error(no_tools: Path) -> None:
    with (
        pytest.raises(MeasurementError, match="qemu-aarch64 is not installed") as caught,
        connect("arm64"),
    ):
        pass
    assert QEMU in str(caught.value.cure)


def test_an_old_emulator_is_one_clear_error(no_tools: Path) -> None:
    old = no_tools / "qemu-aarch64"
    old.write_text("#!/bin/sh\necho 'qemu-aarch64 version 7.2.17 (Debian 1:7.2+dfsg-7)'\n")
    old.chmod(old.stat().st_mode | stat.S_IXUSR)
    with (
        pytest.raises(MeasurementError, match=r"version 7\.2\.17; onnxruntime crashes"),
        connect("arm64"),
    ):
        pass


def test_a_missing_library_is_one_clear_error(tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNTIME)
    with pytest.raises(MeasurementError, match="aarch64") as caught, connect("arm64"):
        pass
    assert "pip download onnxruntime --platform manylinux_2_28_aarch64" in str(caught.value.cure)
