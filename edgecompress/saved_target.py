"""A user's own target profile: the machine at hand, with what was measured on it."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress import files
from edgecompress.errors import OutputError
from edgecompress.progress import Progress, silent
from edgecompress.target import TargetProfile, host_target, load
from edgecompress.target_tables import UNITS

if TYPE_CHECKING:
    import os

    from edgecompress.estimate import Calibration
    from edgecompress.target import Host

__all__ = ["own_profile", "write_own_profile"]

_GIGA, _KIB = 1e9, 1024
_DIGITS = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# What of the many extensions decides about number formats and speed.
_TELLING = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


def write_own_profile(
    path: str | os.PathLike[str], *, progress: Progress = silent
) -> TargetProfile:
    """Measure this machine and write a profile of it, which is used like any other.

    Args:
        path: The ``.toml`` file; its name is the profile's.
        progress: Told how far the work is.

    Raises:
        OutputError: The file cannot be written, or its name is none for a profile.
        TargetError: There is no profile to start from for this processor.
        MeasurementError: onnxruntime cannot be measured here.
    """
    from edgecompress.estimate import calibrated
    from edgecompress.machine.host import host

    file = Path(path)
    if file.suffix != ".toml" or not _NAME.fullmatch(file.stem):
        raise OutputError(
            "expected a name of small letters, digits, - and _, and .toml behind it",
            where=str(file),
            cure="write it to a file such as my-board.toml",
        )
    progress("calibrate", 0, 1)
    text = own_profile(file.stem, host(), calibrated())
    progress("calibrate", 1, 1)
    files.write_text(file, text)
    return load(file)


def own_profile(name: str, host: Host, calibration: Calibration) -> str:
    """TOML text of a profile of this machine.

    Args:
        name: Of the profile.
        host: What the machine tells of itself.
        calibration: What was measured, with one thread.

    Raises:
        TargetError: There is no profile to start from for this processor.
    """
    lines = [
        f"name = {_text(name)}",
        f"extends = {_text(host_target())}",
        f"description = {_text(f'{host.cpu}, {host.os}; measured on the machine itself.')}",
        "",
        "[device]",
        'kind = "host"',
    ]
    measured = dict(_measured(host, calibration))
    told = dict(_told(host, calibration))
    for confidence, source, figures in (
        ("measured", _source(calibration), measured),
        ("vendor", f"{host.os}, as it describes the machine, {_today()}", told),
    ):
        for quantity, (label, value, note) in figures.items():
            lines += ["", *_fact(quantity, label, value, source, confidence, note)]
    return "\n".join(lines) + "\n"


def _source(calibration: Calibration) -> str:
    from edgecompress import __version__

    return (
        f"measured by edgecompress {__version__} with onnxruntime "
        f"{calibration.runtime_version}, {_today()}"
    )


def _today() -> str:
    return datetime.date.today().isoformat()


_Figure = tuple[str, float | int | str, str | None]


def _measured(host: Host, found: Calibration) -> Iterator[tuple[str, _Figure]]:
    fastest = "the fastest of the small models that the machine was calibrated with; one thread"
    yield "core_fp32", ("float32 rate of a core", _rounded(found.peak_float / _GIGA), fastest)
    yield "core_int8", ("int8 rate of a core", _rounded(found.peak_integer / _GIGA), fastest)
    copy = "bytes read and written by a copy of 256 MB; one thread"
    yield "bandwidth", ("memory bandwidth", _rounded(found.bandwidth / _GIGA), copy)


def _told(host: Host, found: Calibration) -> Iterator[tuple[str, _Figure]]:
    names: Mapping[int, str] = {1: "cache_l1d", 2: "cache_l2", 3: "cache_l3"}
    for level, size in sorted(found.caches.items()):
        if level in names:
            yield names[level], (f"level {level} cache", size / _KIB, None)
    yield "cores", ("cores", host.physical_cores or host.logical_cores, None)
    yield "ram", ("main memory", _rounded(host.ram_bytes / _GIGA), None)
    telling = " ".join(name for name in _TELLING if name in host.isa)
    if telling:
        yield "isa", ("instruction sets", telling, None)


def _fact(
    quantity: str, label: str, value: float | str, source: str, confidence: str, note: str | None
) -> list[str]:
    lines = [
        "[[facts]]",
        f"name = {_text(label)}",
        f"quantity = {_text(quantity)}",
        f"value = {_text(value) if isinstance(value, str) else f'{value:g}'}",
        f"unit = {_text(UNITS[quantity])}",
        f"source = {_text(source)}",
        f"confidence = {_text(confidence)}",
    ]
    return lines if note is None else [*lines, f"note = {_text(note)}"]


def _rounded(value: float) -> float:
    return round(value, _DIGITS - 1 - math.floor(math.log10(value)))


def _text(value: str) -> str:
    """A TOML basic string, whose escapes are those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
