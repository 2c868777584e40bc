"""An emulated 64-bit ARM processor: what models compute there, never how fast.

onnxruntime picks its kernels by what the processor can do, and ARM's round and fuse in ways of
their own. User emulation by QEMU runs the very library that an ARM device runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from edgecompress.devices import DeviceFacts
from edgecompress.devices._agent import AgentDevice, AgentHost, System
from edgecompress.devices._build import compiler
from edgecompress.devices._link import Link, LocalLink
from edgecompress.errors import MeasurementError, TargetError, nearest
from edgecompress.runtimes._client import offline
from edgecompress.target import machine_arch

__all__ = ["Arm64", "PROCESSORS", "VARIABLE"]

VARIABLE = "EDGECOMPRESS_QEMU_AARCH64"
"""Environment variable: path of ``qemu-aarch64`` where it is not on the PATH."""

PROCESSORS = {
    "cortex-a53": "no int8 dot product",
    "cortex-a76": "int8 dot product",
    "neoverse-v1": "int8 dot product and matrix product, SVE",
    "max": "all that QEMU knows, with SME; slow",
}
"""QEMU's names of processors that differ in what matters to kernels, and how."""

_ARCH = "aarch64"
_USUAL = "cortex-a76"
_PROGRAM = "qemu-aarch64"
# Elder ones show programs the machine's own /proc/cpuinfo, on which onnxruntime fails.
_LEAST_VERSION = 9
_HOST_ONLY = ("LD_LIBRARY_PATH", "LD_PRELOAD")


class Arm64(AgentDevice):
    """``arm64`` or ``arm64:PROCESSOR``: QEMU on this machine, with no network.

    It needs ``qemu-aarch64``, a C++ compiler and C library for ARM
    (Debian: ``g++-aarch64-linux-gnu``), and onnxruntime's library for ARM
    (:data:`edgecompress.devices._library.VARIABLE`).
    """

    scheme: ClassVar[str] = "arm64"
    timed: ClassVar[bool] = False

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.processor = address.partition(":")[2] or _USUAL
        if self.processor not in PROCESSORS:
            raise TargetError(
                f"unknown processor {self.processor!r}; {nearest(self.processor, PROCESSORS)}",
                where=f"device {address!r}",
                cure=f"write arm64 or arm64:{_USUAL}",
            )

    def link(self) -> Link:
        """This machine, with programs under the emulator.

        Raises:
            MeasurementError: The emulator is missing or too old, or there is no C library for ARM.
        """
        emulator = _emulator(self.address)
        unset = [word for name in _HOST_ONLY for word in ("-U", name)]
        root = _libraries(self.address)
        words = [*offline(), str(emulator), "-L", str(root), "-cpu", self.processor, *unset]
        return LocalLink(words, address=self.address)

    def host(self, link: Link) -> AgentHost:
        """See :meth:`AgentDevice.host`."""
        return AgentHost(link, system=System(_ARCH))

    def facts(self) -> DeviceFacts:
        """Facts of the emulated processor; clock and temperature would be this machine's."""
        found = super().facts()
        name = f"{self.processor} emulated by QEMU"
        return replace(found, name=name, cpu=self.processor, clock_mhz=None, temperature_c=None)

    def warnings(self) -> list[str]:
        """That times mean nothing."""
        return ["emulated: its times say nothing about a device"]


def _emulator(where: str) -> Path:
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or _PROGRAM)
    cure = (
        f"install {_PROGRAM} {_LEAST_VERSION} or later (Debian 13: apt install qemu-user) "
        f"or set {VARIABLE} to its path"
    )
    if found is None:
        said = f"{VARIABLE}={named} is no program" if named else f"{_PROGRAM} is not installed"
        raise MeasurementError(said, where=where, cure=cure)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"qemu-aarch64\S* version (\d+)[.\d]*", done.stdout)
    if version is None:
        raise MeasurementError(f"{found} is not {_PROGRAM}", where=where, cure=cure)
    if int(version[1]) < _LEAST_VERSION:
        raise MeasurementError(
            f"{found} is {version[0]}; onnxruntime crashes under versions before {_LEAST_VERSION}",
            where=where,
            cure=cure,
        )
    return Path(found)


def _libraries(where: str) -> Path:
    """The folder with ``lib/ld-linux-aarch64.so.1``, as QEMU wants it."""
    if machine_arch() == _ARCH:
        return Path("/")
    command = compiler(_ARCH)
    if command is None:
        raise MeasurementError(
            f"there is no C++ compiler for {_ARCH} here to make the agent with",
            where=where,
            cure="apt install g++-aarch64-linux-gnu",
        )
    asked = [*command, "-print-file-name=ld-linux-aarch64.so.1"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    loader = Path(os.path.abspath(done.stdout.strip()))
    if not loader.is_file():
        raise MeasurementError(
            f"{command[0]} has no C library for {_ARCH}",
            where=where,
            cure="apt install libc6-dev-arm64-cross libstdc++-12-dev-arm64-cross",
        )
    return loader.parent.parent
