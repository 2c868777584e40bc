"""Real daemons on loopback for the tests of devices: an sshd of our own, and Android's adbd."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.devices.debian import unpacked

START_S = 10.0


@dataclass
class Sshd:
    """A running sshd.

    Attributes:
        address: For edgecompress.
        options: For ssh, so that it uses nothing of the user's.
        process: The daemon.
        key: The private key that it takes.
    """

    address: str
    options: str
    process: subprocess.Popen[bytes]
    key: Path
    known_hosts: Path

    def kill(self) -> None:
        """Kill it with its connections, but not what runs inside of them."""
        daemons = [psutil.Process(self.process.pid), *_children(self.process.pid)]
        for each in daemons:
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.name().startswith("sshd"):
                    each.kill()
        self.process.wait()


def _children(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """An sshd that listens on loopback only and takes one key of its own; skips where none is."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd here (Debian: apt install openssh-server)")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\n"
    )
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    command = [program, "-D", "-e", "-f", str(config)]
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        # The folder that sshd wants to be confined to, where only it sees it.
        made = 'mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
        command = ["unshare", "-m", "sh", "-c", made, "sh", *command]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        if not _listens(port, process):
            pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-300:]}")
        key = folder / "user"
        options = (
            f"-F none -i {key} -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes "
            f"-o UserKnownHostsFile={known}"
        )
        yield Sshd(f"ssh://127.0.0.1:{port}", options, process, key, known)
    finally:
        rest = _children(process.pid)
        process.kill()
        process.wait()
        for each in rest:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.05)
    return False


ADB_PORT = 15555
ADB_SERIAL = f"127.0.0.1:{ADB_PORT}"
ADB_ROOM_MB = 120
# Debian's adbd asks nobody for permission and listens to everybody, so it gets a network of its
# own. It runs in a copy of / that also has the folder that Android has.
_ADB_WORLD = f"""
set -e
packages=$1 work=$2; shift 2
ip link set lo up 2>/dev/null || ifconfig lo up
mkdir "$work/root"
mount -t tmpfs none "$work/root"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$work/root/"
  elif [ -d "$entry" ] && [ "$entry" != /data ]; then
    mkdir "$work/root$entry"; mount --rbind "$entry" "$work/root$entry"
  fi
done
mkdir -p "$work/root/data/local/tmp"
mount -t tmpfs -o size={ADB_ROOM_MB}m none "$work/root/data/local/tmp"
export HOME="$work" TMPDIR="$work" EDGECOMPRESS_TEST_ADB_ROOT="$work/root"
lib="$packages/usr/lib/x86_64-linux-gnu"
# The loader by hand: in the environment, its path would reach the shells that adbd starts.
ADBD_PORT={ADB_PORT} chroot "$work/root" "$lib/ld-linux-x86-64.so.2" \\
  --library-path "$lib:$lib/android" "$packages/usr/lib/android-sdk/platform-tools/adbd" \\
  >"$work/adbd.log" 2>&1 &
export EDGECOMPRESS_TEST_ADBD=$!
exec "$@"
"""


def in_adb_world(folder: Path, command: Sequence[str], *, timeout: float) -> str:
    """What a command writes in a network where ``adb:127.0.0.1:15555`` is a device.

    Everything that was started there ends with the command; skips where it cannot be set up.

    Args:
        folder: For temporary files.
        command: It finds the process number of adbd in ``EDGECOMPRESS_TEST_ADBD``, and the device's
            root folder in ``EDGECOMPRESS_TEST_ADB_ROOT``.
        timeout: In seconds.
    """
    if os.uname().machine != "x86_64":
        pytest.skip("adbd is only set up on x86-64")
    if shutil.which("adb") is None:
        pytest.skip("there is no adb here (Debian: apt install adb)")
    alone = ["unshare", "-n", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
    if os.geteuid() or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("adbd needs a network of its own, and only root can make one")
    packages = unpacked(["adbd"])
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # HOME is another there
    done = subprocess.run(
        [*alone, "sh", "-c", _ADB_WORLD, "sh", str(packages), str(folder), *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "XDG_CACHE_HOME": cache},
    )
    if done.returncode:
        raise AssertionError(f"code {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout
