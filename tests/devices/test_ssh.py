"""Devices over ssh, with a real sshd on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgecompress import target
from edgecompress.devices import connect
from edgecompress.devices.ssh import OPTIONS, Ssh, SshLink
from edgecompress.errors import MeasurementError
from edgecompress.measure import measure
from edgecompress.runtimes import Artifact
from edgecompress.target import MeasurementSettings, TargetProfile
from tests.devices.daemons import Sshd, free_port, sshd
from tests.models import small_cnn

IMAGE = {"x": np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)}
SETTINGS = MeasurementSettings(runs=8, warmup=2, blocks=2, seconds=0.2, timeout_seconds=60)
# Connects, says where its folder is, and runs for ever.
FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from edgecompress import target
from edgecompress.devices import connect
from edgecompress.runtimes import Artifact
feeds = {"x": np.zeros((1, 3, 16, 16), "float32")}
with connect(sys.argv[1]) as device:
    profile = target.load(target.host_target())
    with device.start(Artifact((Path(sys.argv[2]),)), profile, feeds, where="m") as peer:
        print(peer.folder, flush=True)
        peer.ask("run", count=10**8)
"""


@pytest.fixture(scope="module")
def profile() -> TargetProfile:
    return target.load(target.host_target()).model_copy(update={"measurement": SETTINGS})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with pytest.MonkeyPatch.context() as patch, sshd(tmp_path_factory.mktemp("ssh")) as running:
        patch.setenv(OPTIONS, running.options)
        yield running


@pytest.fixture(scope="module")
def device(daemon: Sshd) -> Iterator[Ssh]:
    with connect(daemon.address) as connected:
        assert isinstance(connected, Ssh)
        yield connected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cnn().save(tmp_path_factory.mktemp("model") / "model.onnx")[0]


def reference(file: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    found: list[np.ndarray] = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(
        None, feeds
    )
    return found


def gone(folder: str, seconds: float = 10.0) -> bool:
    """Whether a folder, and the processes in it, vanish within some seconds."""
    end = time.monotonic() + seconds
    while (Path(folder).exists() or agents(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    return not Path(folder).exists() and not agents(folder)


def agents(folder: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cwd"]) if str(p.info["cwd"]).startswith(folder)]


def test_real_model(device: Ssh, profile: TargetProfile, shared: Callable[[str], Path]) -> None:
    file = shared("resnet20_cifar10.onnx")
    feeds = {"input": np.random.default_rng(1).random((3, 3, 32, 32), dtype=np.float32)}
    with device.start(Artifact((file,)), profile, feeds, where=file.name) as peer:
        found = peer.outputs()
        assert peer.loaded["providers"] == ["CPUExecutionProvider"]
    np.testing.assert_array_equal(found["logits"], reference(file, feeds)[0])


def test_measure(daemon: Sshd, profile: TargetProfile, model: Path) -> None:
    found = measure({"one": model}, profile, IMAGE, device=daemon.address)["one"]
    assert found.basis == "measured"
    assert any(row.op.endswith("Conv") for row in found.operators)
    assert found.latency_ms is not None
    assert found.peak_memory_mb is not None


def test_facts(device: Ssh) -> None:
    facts = device.facts()
    assert facts.arch == target.machine_arch()
    assert facts.cores == os.cpu_count()
    assert isinstance(device.warnings(), list)


def test_daemon_killed_in_the_middle_of_a_run(
    tmp_path: Path, profile: TargetProfile, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sshd(tmp_path) as own:
        monkeypatch.setenv(OPTIONS, own.options)
        with connect(own.address) as device:
            with device.start(Artifact((model,)), profile, IMAGE, where="model") as peer:
                folder = str(Path(peer.folder).parent)
                timer = threading.Timer(0.3, own.kill)
                timer.start()
                with pytest.raises(MeasurementError, match="the connection was lost") as error:
                    peer.ask("run", count=10**8)
                timer.join()
            assert own.address in str(error.value)
            # Whoever asks next is told the same.
            with pytest.raises(MeasurementError):
                device.facts()
        assert gone(folder)


def test_this_side_ends(daemon: Sshd, model: Path) -> None:
    command = [sys.executable, "-c", FOR_EVER, daemon.address, str(model)]
    signals = (signal.SIGINT, signal.SIGKILL)
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(own_group(command)) for _ in signals]
        folders = [str(Path(each.stdout.readline().strip()).parent) for each in started]
        assert all(Path(folder).is_dir() for folder in folders)
        time.sleep(0.1)
        for each, number in zip(started, signals, strict=True):
            os.killpg(each.pid, number)  # as a terminal does it: to all processes of the group
        for each in started:
            each.communicate(timeout=20)
            assert each.returncode != 0
    for folder in folders:
        assert gone(folder)


def own_group(command: list[str]) -> Any:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def refused(address: str, match: str, cure: str) -> None:
    with pytest.raises(MeasurementError, match=match) as error:
        connect(address).__enter__()
    assert cure in str(error.value.cure)
    assert error.value.where == address


def test_unknown_host_key(daemon: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "known").touch()
    options = daemon.options.replace(str(daemon.known_hosts), str(tmp_path / "known"))
    monkeypatch.setenv(OPTIONS, options)
    port = daemon.address.rpartition(":")[2]
    refused(daemon.address, "host key is unknown", f"ssh -p {port} 127.0.0.1")


def test_changed_host_key(daemon: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = daemon.known_hosts.read_text().split()
    other = daemon.key.with_suffix(".pub").read_text().split()
    (tmp_path / "known").write_text(f"{known[0]} {other[0]} {other[1]}\n")
    options = daemon.options.replace(str(daemon.known_hosts), str(tmp_path / "known"))
    monkeypatch.setenv(OPTIONS, options)
    refused(daemon.address, "not the one that is known", "ssh-keygen -R")


def test_key_refused(daemon: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    monkeypatch.setenv(OPTIONS, daemon.options.replace(str(daemon.key), str(key)))
    refused(daemon.address, "refuses our key", "ssh-copy-id")


def test_nobody_there(daemon: Sshd) -> None:
    refused(f"ssh://127.0.0.1:{free_port()}", "nothing answers", "start sshd")
    refused("ssh://no-such-host.invalid", "no host of that name", "~/.ssh/config")


def test_no_folder_there(daemon: Sshd) -> None:
    refused(f"{daemon.address}/nonexistent", "no folder can be made in /nonexistent", "writable")


def test_folder_of_the_address(daemon: Sshd, tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    link = SshLink(f"{daemon.address}{place}")
    with link:
        assert Path(link.folder).parent == place
    assert list(place.iterdir()) == []


def test_ssh_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused("ssh://board", "ssh is not installed", "OpenSSH")


def test_a_lost_machine_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    link = SshLink("ssh://board")
    monkeypatch.setattr(link, "folder", "/tmp/x")
    said = "Timeout, server board not responding."
    assert link.lost(255, said)
    assert "connection was lost: Timeout" in str(link.refusal(said))
    assert "ServerAliveInterval=5" in link.command("true")
