"""A build under strace, and without network: it calls nobody and writes to its folders only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgecompress.runtimes._client import offline
from tests.recipes import DELIVERED, names, save_inputs, write_recipe

ROOT = Path(__file__).resolve().parents[1]
BUILD = ("-m", "edgecompress", "build", "recipe.json", "--quiet")
OPENS = ("open", "openat", "openat2", "creat")
MAKES = (
    *("mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat"),
    *("symlink", "symlinkat", "mknod", "mknodat", "truncate"),
)
# Not files: what is written there goes to the system, or nowhere.
SYSTEM = ("/dev/null/", "/dev/tty/", "/proc/", "/sys/fs/cgroup/")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Traced:
    """What a process and its children asked of the system, a call per line, and where it ran."""

    calls: tuple[str, ...]
    folder: Path

    def sockets(self) -> list[str]:
        """Calls that name an internet address family."""
        return [call for call in self.calls if "AF_INET" in call or "AF_PACKET" in call]

    def written(self) -> Iterator[str]:
        """Paths that were opened for writing, or made, moved or cut."""
        for call in self.calls:
            name, _, rest = call.partition("(")
            if " = -1 " in rest:
                continue
            opened = name in OPENS and re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE", rest)
            if opened or name == "creat":
                yield self._absolute(QUOTED.findall(rest)[0])
            elif name in MAKES:
                paths = QUOTED.findall(rest)
                yield from map(self._absolute, paths[-1:] if "link" in name else paths)

    def _absolute(self, path: str) -> str:
        return os.path.normpath(self.folder / path)


@dataclass(frozen=True)
class Sandbox:
    """A folder with all that a build needs, an empty home and a temporary folder of its own."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, command: Sequence[str]) -> None:
        for name in ("home", "tmp"):
            (self.folder / name).mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        environment = {
            **kept,
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",  # Python's own habit, not the build's
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("ORT_DISABLE_TELEMETRY", None)  # it must be the package that sets it
        done = subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def trace(self, *arguments: str) -> Traced:
        strace = shutil.which("strace")
        if strace is None:
            pytest.skip("strace is not installed")
        log = self.folder / "calls"
        log.mkdir()
        watched = "trace=network," + ",".join((*OPENS, *MAKES))
        # A file per process, so that no call is cut in two by another's.
        prefix = [strace, "-ff", "--seccomp-bpf", "-qq", "-s", "4096", "-e", "signal=none"]
        prefix += ["-e", watched, "-o", str(log / "of")]
        can = subprocess.run(
            [*prefix[:-1], os.devnull, "true"], capture_output=True, text=True, check=False
        )
        if can.returncode != 0:
            pytest.skip(f"strace cannot watch processes here: {can.stderr.strip()}")
        self.run([*prefix, sys.executable, *arguments])
        calls = [line for file in sorted(log.iterdir()) for line in file.read_text().splitlines()]
        return Traced(tuple(calls), self.work)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    write_recipe(save_inputs(tmp_path / "work"))
    return Sandbox(tmp_path)


def test_a_build_opens_no_socket_and_writes_to_its_folders_only(sandbox: Sandbox) -> None:
    traced = sandbox.trace(*BUILD)
    assert traced.sockets() == []
    own = (f"{sandbox.work}/", f"{sandbox.folder}/tmp/")
    written = set(traced.written())
    assert any(path.startswith(f"{sandbox.work}/out") for path in written)
    # A file without a name is opened by the name of its folder.
    assert {path for path in written if not f"{path}/".startswith((*own, *SYSTEM))} == set()
    assert names(sandbox.home) == set()
    assert names(sandbox.folder / "tmp") == set()


def test_the_watch_would_have_seen_a_socket_and_a_file(sandbox: Sandbox, tmp_path: Path) -> None:
    stray = tmp_path / "home" / "stray"
    code = (
        f"import socket\nsocket.socket(socket.AF_INET).close()\nopen({str(stray)!r}, 'w').close()"
    )
    traced = sandbox.trace("-c", code)
    assert len(traced.sockets()) == 1
    assert str(stray) in traced.written()


def test_a_build_needs_no_network(sandbox: Sandbox) -> None:
    if not offline():
        pytest.skip("this system lets nobody make a network namespace (unshare -n)")
    sandbox.run([*offline(), sys.executable, *BUILD])
    assert names(sandbox.work / "out") >= DELIVERED
    assert names(sandbox.home) == set()
