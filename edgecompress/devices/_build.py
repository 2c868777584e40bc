"""The agent's program: chosen by the device's architecture, compiled once, kept."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from edgecompress.errors import MeasurementError
from edgecompress.files import write_aside
from edgecompress.target import machine_arch

__all__ = ["SOURCES", "FLAGS", "LIBRARIES", "agent_program", "compiler", "elf_arch", "sources"]

SOURCES = Path(__file__).resolve().parent / "agent"
FLAGS = ("-std=c++17", "-O2", "-static-libstdc++", "-static-libgcc")
LIBRARIES = ("-ldl", "-pthread")

_TIMEOUT_S = 120
# Names of architectures in GNU and Android compilers.
_GNU = {"armv7l": "arm-linux-gnueabihf", "i686": "i686-linux-gnu"}
_ANDROID = {"armv7l": "armv7a-linux-androideabi", "armv8l": "armv7a-linux-androideabi"}
_ANDROID_LEVEL = 24
# e_machine of ELF files.
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def sources() -> list[Path]:
    """The agent's source files; the first is compiled, and takes in the others."""
    return sorted(SOURCES.glob("*.cc")) + sorted(SOURCES.glob("*.h"))


def elf_arch(head: bytes) -> str | None:
    """Architecture of a program or library from its first 20 bytes; None where it is none."""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return None
    machine = int.from_bytes(head[18:20], "little")
    return _MACHINES.get(machine, f"machine {machine}")


def agent_program(arch: str, *, android: bool = False) -> Path | None:
    """The agent for an architecture, compiled now if need be; None without a compiler for it.

    Args:
        arch: As ``uname -m`` says.
        android: Whether it is to run on Android, which has another C library.

    Raises:
        MeasurementError: The compiler fails.
    """
    command = compiler(arch, android=android)
    if command is None:
        return None
    digest = hashlib.sha256(repr((command, FLAGS, LIBRARIES)).encode())
    for file in sources():
        digest.update(file.read_bytes())
    system = "android" if android else "linux"
    program = _cache() / f"agent-{system}-{arch}-{digest.hexdigest()[:16]}"
    if not program.exists():
        _compile(command, program)
    program.chmod(0o755)  # what is written aside gets the mode of data
    return program


def _compile(command: list[str], program: Path) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(program) as output:
        line = [*command, *FLAGS, str(sources()[0]), "-o", str(output), *LIBRARIES]
        done = subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode:
            said = next((each for each in done.stderr.splitlines() if "error" in each), done.stderr)
            raise MeasurementError(
                f"the agent could not be compiled by {shlex.join(command)}: {said.strip()}",
                where=str(SOURCES),
                cure="see that this compiler can make a C++17 program",
            )


def compiler(arch: str, *, android: bool = False) -> list[str] | None:
    """Command of a C++ compiler here that makes programs for an architecture, or None."""
    for words in _android(arch) if android else _gnu(arch):
        if shutil.which(words[0]):
            return words
    return None


def _gnu(arch: str) -> Iterator[list[str]]:
    if arch == machine_arch() and platform.system() == "Linux":
        if own := os.environ.get("CXX"):
            yield shlex.split(own)
        yield from ([name] for name in ("c++", "g++", "clang++"))
    yield [f"{_GNU.get(arch, f'{arch}-linux-gnu')}-g++"]


def _android(arch: str) -> Iterator[list[str]]:
    for variable in ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT"):
        if root := os.environ.get(variable):
            name = f"{_ANDROID.get(arch, f'{arch}-linux-android')}{_ANDROID_LEVEL}-clang++"
            for file in Path(root).glob(f"toolchains/llvm/prebuilt/*/bin/{name}"):
                yield [str(file)]


def _cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "edgecompress"
