"""onnxruntime's library for a device: given by the user, or taken from this environment."""

from __future__ import annotations

import importlib.util
import os
import platform
import zipfile
from pathlib import Path

from edgecompress.devices._build import elf_arch
from edgecompress.errors import MeasurementError
from edgecompress.target import machine_arch

__all__ = ["VARIABLE", "given_library", "own_library", "missing_library", "unusable_library"]

VARIABLE = "EDGECOMPRESS_DEVICE_RUNTIME"
"""Environment variable: a libonnxruntime.so for the device, or a .whl or .aar that holds it."""

_HEAD = 20
_NAME = "libonnxruntime.so"


def given_library(arch: str, folder: Path) -> Path | None:
    """The library that the user named by :data:`VARIABLE`, or None.

    Args:
        arch: Of the device.
        folder: Where it is put if it lies in an archive.

    Raises:
        MeasurementError: There is none of this architecture in it.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    source = Path(named).expanduser()
    where = f"{VARIABLE}={named}"
    if not source.is_file():
        raise MeasurementError("no such file", where=where, cure="check the path")
    found: set[str] = set()
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                if not Path(name).name.startswith(_NAME):
                    continue
                with archive.open(name) as entry:
                    its = elf_arch(entry.read(_HEAD)) or "something else"
                if its == arch:
                    place = folder / _NAME
                    place.write_bytes(archive.read(name))
                    return place
                found.add(its)
    else:
        with source.open("rb") as file:
            its = elf_arch(file.read(_HEAD)) or "something else"
        if its == arch:
            return source
        found.add(its)
    came = f"is for {', '.join(sorted(found))}" if found else f"holds no {_NAME}"
    raise MeasurementError(f"{came}, but the device is {arch}", where=where, cure=_bring(arch))


def own_library(arch: str) -> Path | None:
    """The library of this Python environment, where it fits the device's architecture."""
    if arch != machine_arch() or platform.system() != "Linux":
        return None
    spec = importlib.util.find_spec("onnxruntime")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(package).glob(f"capi/{_NAME}*")):
            return file
    return None


def missing_library(arch: str, address: str, *, android: bool) -> MeasurementError:
    """The error for a device without onnxruntime."""
    return MeasurementError(
        f"onnxruntime was not found on the device ({arch}), nor is there one here that fits it",
        where=address,
        cure=_bring(arch, android=android),
    )


def unusable_library(said: str, arch: str, where: str) -> MeasurementError:
    """The error for a library that the device does not load."""
    return MeasurementError(f"the device cannot use it: {said}", where=where, cure=_bring(arch))


def _bring(arch: str, *, android: bool = False) -> str:
    if android:
        return (
            "download the .aar of com.microsoft.onnxruntime:onnxruntime-android from Maven Central "
            f"and set {VARIABLE} to its path"
        )
    return (
        f"pip download onnxruntime --platform manylinux_2_28_{arch} --only-binary :all: --no-deps, "
        f"and set {VARIABLE} to the path of the .whl"
    )
