"""What a device runs and has, asked in one command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from edgecompress.devices._build import elf_arch
from edgecompress.devices._link import Link
from edgecompress.errors import MeasurementError

__all__ = ["System", "Survey", "survey"]

# One fact a line. Libraries are looked for where pip, Debian and releases of onnxruntime put them,
# and where the dynamic linker is told to look; what python3 finds may lie anywhere.
_SCRIPT = """
echo "kernel $(uname -s)"
echo "arch $(uname -m)"
echo "sdk $(getprop ro.build.version.sdk 2>/dev/null)"
echo "free $(df -Pk FOLDER 2>/dev/null | tail -n 1)"
for c in c++ g++ clang++; do command -v $c >/dev/null && echo "compiler $c"; done
p=$(python3 -c 'import importlib.util as u
s = u.find_spec("onnxruntime")
print(s.submodule_search_locations[0] if s else "")' 2>/dev/null)
for d in "$p/capi" $(echo "$LD_LIBRARY_PATH" | tr : ' ') \
  "$HOME"/.local/lib/python3*/site-packages/onnxruntime/capi \
  /usr/local/lib/python3*/*-packages/onnxruntime/capi \
  /usr/lib/python3*/*-packages/onnxruntime/capi \
  /usr/local/lib /usr/lib /usr/lib/*-linux-gnu* /opt/onnxruntime*/lib /data/local/tmp; do
  for f in "$d"/libonnxruntime.so*; do
    [ -f "$f" ] && echo "library $(head -c 20 "$f" | od -An -v -tx1 | tr -d ' \\n') $f"
  done
done
true
"""


@dataclass(frozen=True)
class System:
    """What programs for a device must be made for.

    Attributes:
        arch: As ``uname -m`` says, unless the programs there are for another one (emulation).
        android: Whether it is Android, which has another C library than Linux has elsewhere.
    """

    arch: str
    android: bool = False


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        system: What programs must be made for.
        free_bytes: Space where the scratch folder lies; None where the device does not tell.
        compiler: Name of a C++ compiler there, or None.
        runtime: Path of a libonnxruntime.so there for its architecture, or None.
    """

    system: System
    free_bytes: int | None
    compiler: str | None
    runtime: str | None


def survey(link: Link) -> Survey:
    """Ask a connected device.

    Raises:
        MeasurementError: The connection was lost, or it is neither Linux nor Android.
    """
    facts: dict[str, list[str]] = {}
    done = link.run(_SCRIPT.replace("FOLDER", shlex.quote(link.folder)))
    if not done.out:
        raise link.refusal(done.err)
    for line in done.out.splitlines():
        key, _, value = line.partition(" ")
        facts.setdefault(key, []).append(value.strip())
    kernel, arch = facts.get("kernel", [""])[0], facts.get("arch", [""])[0]
    if kernel != "Linux":
        raise MeasurementError(
            f"the device must run Linux or Android, not {kernel or 'an unknown system'}",
            where=link.address,
            cure="run edgecompress on the device itself",
        )
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(arch, arch)
    return Survey(
        system=System(arch, android=facts.get("sdk", [""])[0] != ""),
        free_bytes=_free(facts.get("free", [""])[0]),
        compiler=next(iter(facts.get("compiler", [])), None),
        runtime=_library(facts.get("library", []), arch),
    )


def _free(row: str) -> int | None:
    """Bytes, from the last line of ``df -Pk``: file system, size, used, available, ..."""
    numbers = [int(word) for word in row.split()[1:4] if word.isdigit()]
    return numbers[2] * 1024 if len(numbers) == 3 else None


def _library(rows: list[str], arch: str) -> str | None:
    for row in rows:
        head, _, path = row.partition(" ")
        if elf_arch(bytes.fromhex(head)) == arch:
            return path
    return None
