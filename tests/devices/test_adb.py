"""Devices by adb, with a real adbd; what is done there is in ``adb_session.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.devices import connect
from edgecompress.devices.adb import AdbLink
from edgecompress.errors import MeasurementError
from edgecompress.target import machine_arch
from tests.devices.daemons import ADB_SERIAL, in_adb_world

FEEDS = {"input": np.random.default_rng(1).random((3, 3, 32, 32), dtype=np.float32)}
LOST = "the connection was lost"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adb")


@pytest.fixture(scope="module")
def done(folder: Path, shared: Callable[[str], Path]) -> dict[str, Any]:
    """What the session found."""
    model = shared("resnet20_cifar10.onnx")
    np.savez(folder / "feeds.npz", **FEEDS)
    command = [sys.executable, "-m", "tests.devices.adb_session", str(folder), str(model)]
    text = in_adb_world(folder, [*command, str(folder / "feeds.npz")], timeout=120)
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def test_real_model(done: dict[str, Any], folder: Path, shared: Callable[[str], Path]) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(
        shared("resnet20_cifar10.onnx"), providers=["CPUExecutionProvider"]
    )
    with np.load(folder / "outputs.npz") as arrays:
        np.testing.assert_array_equal(arrays["logits"], session.run(None, FEEDS)[0])
    assert done["model"]["arch"] == machine_arch()


def test_nothing_is_left_behind(done: dict[str, Any]) -> None:
    assert len(done["model"]["during"]) == 1
    assert done["model"]["during"][0].startswith("edgecompress-")
    assert done["model"]["after"] == []


def test_profile(done: dict[str, Any]) -> None:
    assert done["profile"]["basis"] == "measured"
    assert any(op.endswith("Conv") for op in done["profile"]["operators"])


def test_daemon_killed_in_the_middle_of_a_run(done: dict[str, Any]) -> None:
    found = done["killed"]
    assert found["run"]["what"].startswith(LOST)
    assert found["run"]["where"] == f"adb:{ADB_SERIAL}"
    assert "adb devices" in found["run"]["cure"]
    assert found["then"]["what"].startswith(LOST)
    assert found["after"] == []
    assert found["agents"] == 0


def test_no_space(done: dict[str, Any]) -> None:
    before, copy = done["full"]["before"], done["full"]["copy"]
    assert "MB have to be put on the device, but " in before["what"]
    assert "MB are free in /data/local/tmp/" in before["what"]
    assert "no space is left in /data/local/tmp/" in copy["what"]
    assert copy["cure"] == "free some space there"
    assert done["full"]["after"] == []


def test_a_device_that_does_not_answer(done: dict[str, Any]) -> None:
    assert "did not answer within 0.5 s" in done["asleep"]["what"]
    assert "awake" in done["asleep"]["cure"]


def test_nobody_there(done: dict[str, Any]) -> None:
    assert done["no such device"]["what"] == "adb does not see it"
    assert "USB debugging" in done["no such device"]["cure"]
    assert done["no such address"]["what"] == "nothing answers at that address"


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("error: device unauthorized.\nThis adb server's ...", "does not trust this machine"),
        ("failed to authenticate to 10.0.0.7:5555", "does not trust this machine"),
        ("error: device offline", "offline, perhaps asleep"),
        ("error: insufficient permissions for device: user in plugdev group; no permissions",
         "may not use its USB port"),
        ("error: cannot connect to daemon", "server does not start"),
        ("error: something new", "cannot reach it: error: something new"),
    ],
)  # fmt: skip
def test_what_adb_says(said: str, match: str) -> None:
    assert match in str(AdbLink("adb:SERIAL").refusal(said))


def test_adb_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeasurementError, match="adb is not installed") as error:
        connect("adb:SERIAL").__enter__()
    assert "apt install adb" in str(error.value.cure)
