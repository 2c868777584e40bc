"""Memory of the process that asks, as its kernel tells.

Worker processes import this, perhaps in an environment that has nothing else.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Resident", "resident", "forget_peak", "die_first", "limit_data"]

_STATUS = Path("/proc/self/status")
MB = 1e6


@dataclass(frozen=True)
class Resident:
    """What a process holds in main memory, in MB (10^6 bytes); None where the system is silent.

    Pages of files count as long as they are mapped, also where others share them; file pages that
    are only read through the page cache never do.

    Attributes:
        peak_mb: Largest resident set so far.
        basis: Where the peak comes from: ``vmhwm``, the high-water mark of this address space, or
            ``rusage``, that of the process, which starts at what its parent held.
        anonymous_mb: Heap, stacks and what was written to, at this moment.
        file_mb: Pages of mapped files, libraries included, at this moment.
        shared_mb: Shared memory at this moment.
    """

    peak_mb: float | None
    basis: Literal["vmhwm", "rusage"] | None
    anonymous_mb: float | None = None
    file_mb: float | None = None
    shared_mb: float | None = None


def resident() -> Resident:
    """What this process holds, and has held at most."""
    try:
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kib = {
        key: value.split()[0]
        for key, _, value in (line.partition(":") for line in lines)
        if value.endswith("kB")
    }
    if "VmHWM" not in kib:
        return _by_usage()

    def mb(key: str) -> float | None:
        return int(kib[key]) * 1024 / MB if key in kib else None

    return Resident(mb("VmHWM"), "vmhwm", mb("RssAnon"), mb("RssFile"), mb("RssShmem"))


def _by_usage() -> Resident:
    try:
        import resource
    except ImportError:
        return Resident(None, None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return Resident(peak * unit / MB, "rusage")


def forget_peak() -> None:
    """Let the peak start again at what is resident now, where the system can do that."""
    # Imports peak higher than what stays; the model would otherwise hide below that peak.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def die_first() -> None:
    """Have this process killed before others where memory runs out, so that its parent survives."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_data(limit_mb: float) -> bool:
    """Refuse this process more memory of its own than ``limit_mb``; whether the system can.

    Counts what can be written to and is not shared, touched or not (Linux ``RLIMIT_DATA``): a
    little more than what a control group counts.
    """
    if sys.platform != "linux":
        return False
    import resource

    limit = int(limit_mb * MB)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except (OSError, ValueError):
        return False
    return True
