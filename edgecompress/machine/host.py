"""This machine: what its processor is and what it can do."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil

from edgecompress.target import Host, machine_arch

__all__ = ["host"]


@cache
def host() -> Host:
    """Facts of the machine that this process runs on."""
    info = _cpuinfo()
    return Host(
        cpu=_cpu_name(info),
        arch=machine_arch(),
        isa=_isa(info),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=os.cpu_count() or 1,
        ram_bytes=psutil.virtual_memory().total,
        os=_os_name(),
    )


def _cpuinfo() -> dict[str, str]:
    """Keys and values of the first processor in ``/proc/cpuinfo``; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_name(info: dict[str, str]) -> str:
    if name := info.get("model name"):
        return name
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    # ARM's cpuinfo gives numbers only: ARM's register MIDR_EL1, in parts.
    if part := info.get("CPU part"):
        return f"ARM implementer {info.get('CPU implementer', '?')} part {part}"
    return platform.processor() or platform.machine()


def _isa(info: dict[str, str]) -> frozenset[str]:
    if sys.platform == "darwin":
        words = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}"
        names = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "avx1.0": "avx"}
        return frozenset(names.get(word, word) for word in words.lower().split())
    return frozenset(info.get("flags", info.get("Features", "")).split())


def _sysctl(key: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _os_name() -> str:
    if sys.platform == "linux":
        try:
            return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"
        except (OSError, KeyError):
            pass
    return f"{platform.system()} {platform.release()}"
