"""What kernels cost on this machine: probes are timed once, and the result is kept.

It is kept in the user's cache folder under the processor, the runtime's version, the number of
threads and the probes, so that another of these brings a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgecompress import files
from edgecompress.errors import OutputError
from edgecompress.estimate.fitting import counts_of, fit, works_of
from edgecompress.estimate.kernels import Trace, trace
from edgecompress.estimate.op_costs import RUN, Work
from edgecompress.estimate.probes import Probe, probes
from edgecompress.machine.host import host
from edgecompress.runtimes._times import run_times
from edgecompress.target import MeasurementSettings, host_target, load

if TYPE_CHECKING:
    from edgecompress.target import Host

__all__ = ["Calibration", "calibrate", "calibrated", "cache_folder", "cache_sizes"]

_CACHE_BYTES = 1 << 20  # of a core, where the system does not tell
_COPIED_BYTES = 256 << 20
_COPIES = 4
_USERS = ("__init__.py", "processor.py", "roofline.py")  # the rest here decides a calibration
_SIZES = Path("/sys/devices/system/cpu/cpu0/cache")


class Calibration(BaseModel):
    """What was learned of this machine.

    Attributes:
        cpu: Name of the processor.
        runtime_version: Version of onnxruntime.
        threads: Threads inside an operator.
        seconds: Time of each count; see :mod:`edgecompress.estimate.op_costs`.
        peak_float: Most operations per second of a probe in float32; a multiply-accumulate is two.
        peak_integer: The same in 8-bit integers.
        bandwidth: Bytes per second that a copy in main memory reads and writes.
        caches: Bytes of the caches that a core reaches, by level; 1 is the data cache.
        error: Factor within which nine of ten probes lie of what all others say of them.
        spread: Factor by which the efficiency of kernels of one kind differs between shapes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    runtime_version: str
    threads: int
    seconds: Mapping[str, float]
    peak_float: float
    peak_integer: float
    bandwidth: float
    caches: Mapping[int, int]
    error: float
    spread: float

    @property
    def core_cache_bytes(self) -> float:
        """The largest cache of a core's own."""
        return _core_cache(self.caches)

    def peak(self, integer: bool) -> float:
        """Most operations per second."""
        return self.peak_integer if integer else self.peak_float


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "edgecompress"


def calibrated(threads: int = 1, folder: Path | None = None) -> Calibration:
    """The calibration of this machine: the kept one, or a new one, which takes half a minute.

    Args:
        threads: Threads inside an operator.
        folder: Where it is kept; default: :func:`cache_folder`. Where that cannot be written it is
            made again the next time.

    Raises:
        MeasurementError: onnxruntime cannot run the probes.
    """
    place = cache_folder() if folder is None else folder
    file = place / f"estimate-{_key(threads)}.json"
    try:
        return Calibration.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        found = calibrate(probes(), threads)
    try:
        place.mkdir(parents=True, exist_ok=True)
        files.write_text(file, found.model_dump_json(indent=1))
    except (OSError, OutputError):
        return found
    return found


def calibrate(made: Sequence[Probe], threads: int = 1) -> Calibration:
    """Time the probes and learn from them.

    Raises:
        MeasurementError: onnxruntime cannot run them.
    """
    settings = MeasurementSettings(threads=threads)
    profile = load(host_target()).model_copy(update={"measurement": settings})
    caches = cache_sizes()
    works = [works_of(each, _core_cache(caches)) for each in _traces(made)]
    seconds = run_times([probe.model for probe in made], profile)
    learned = fit([counts_of(each) for each in works], seconds, [probe.weight for probe in made])
    fixed = learned.seconds[RUN]
    return Calibration(
        cpu=host().cpu,
        runtime_version=_version(),
        threads=threads,
        seconds=learned.seconds,
        peak_float=_peak(works, seconds, fixed, integer=False),
        peak_integer=_peak(works, seconds, fixed, integer=True),
        bandwidth=_bandwidth(),
        caches=caches,
        error=learned.error,
        spread=_spread(works, learned.seconds),
    )


def _core_cache(caches: Mapping[int, int]) -> float:
    return float(caches.get(2) or caches.get(1) or _CACHE_BYTES)


def _version() -> str:
    from importlib.metadata import version

    return version("onnxruntime")


def _key(threads: int) -> str:
    here: Host = host()
    facts = [here.cpu, sorted(here.isa), here.physical_cores, _version(), threads]
    sha = hashlib.sha256(json.dumps(facts).encode())
    for part in sorted(Path(__file__).parent.glob("*.py")):
        if part.name not in _USERS:
            sha.update(part.read_bytes())
    return sha.hexdigest()[:16]


def _traces(made: Sequence[Probe]) -> list[Trace]:
    import numpy as np

    rng = np.random.default_rng(0)
    found = []
    with files.ScratchFolder() as folder:
        file = folder / "probe.onnx"
        for probe in made:
            file.write_bytes(probe.model)
            feeds: dict[str, Any] = {"x": rng.standard_normal(probe.shape, dtype=np.float32)}
            found.append(trace(file, feeds, folder, apart=False))
    return found


def _peak(
    works: Sequence[Sequence[Work]], seconds: Sequence[float], fixed: float, *, integer: bool
) -> float:
    """Operations per second of the fastest probe whose kernels are nearly all of that type."""
    best = 0.0
    for each, time_taken in zip(works, seconds, strict=True):
        operations = sum(work.operations for work in each if work.integer == integer)
        if operations > 0.9 * sum(work.operations for work in each):
            best = max(best, operations / max(time_taken - fixed, 0.5 * time_taken))
    return best


def _spread(works: Sequence[Sequence[Work]], seconds: Mapping[str, float]) -> float:
    """Typical factor between the efficiencies of two shapes of a kind that multiplies."""
    import numpy as np

    rates: dict[str, list[float]] = {}
    for work in (work for each in works for work in each):
        if any(name.endswith(": MACs") for name in work.counts):
            taken = sum(seconds[name] * count for name, count in work.counts.items())
            rates.setdefault(work.kind, []).append(float(np.log(work.operations / taken)))
    deviations = [np.array(each) - np.mean(each) for each in rates.values()]
    return float(np.exp(np.sqrt(np.mean(np.concatenate(deviations) ** 2))))


def _bandwidth() -> float:
    """Bytes per second read and written by a large copy; the fastest of a few."""
    import numpy as np

    source = np.ones(_COPIED_BYTES // 8)
    target = np.empty_like(source)
    best = 0.0
    for _ in range(_COPIES):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best


def cache_sizes(folder: Path = _SIZES) -> dict[int, int]:
    """Bytes of the caches of the first processor by level, without that of instructions.

    From Linux's sysfs; empty on other systems.
    """
    found: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, size = (
                (index / name).read_text().strip() for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[int(level)] = int(size[:-1]) * 1024
    return found
