"""What the kernel of this machine tells of a browser's tab: processor time and memory."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from edgecompress.runtimes._browser_chromium import Chromium

__all__ = ["OwnTab"]

_TRIES = 20
_WORKED_S = 0.005
_FIGURES = {
    "VmHWM": "peak_mb",
    "RssAnon": "anonymous_mb",
    "RssFile": "file_mb",
    "RssShmem": "shared_mb",
}


class OwnTab:
    """What the kernel of this machine tells of a tab's renderer process.

    Args:
        chromium: The browser.
        tabs: How many tabs are open.

    Attributes:
        pid: The renderer process; None until :meth:`find`, or where it cannot be told.
    """

    def __init__(self, chromium: Chromium, tabs: Callable[[], int]) -> None:
        self._chromium, self._tabs = chromium, tabs
        self._threads = 1
        self._peak_mb = 0.0
        self.pid: int | None = None

    def find(self, work: Callable[[], object]) -> None:
        """Find the process: Chromium tells which it has, but not whose, and keeps one in spare.

        Args:
            work: Lets the page's thread work for more than ``_WORKED_S``, on any machine.
        """
        for _ in range(_TRIES):
            before = {pid: _main_thread_s(pid) for pid in self._chromium.renderers()}
            work()
            worked = {pid: _main_thread_s(pid) - earlier for pid, earlier in before.items()}
            busy = [pid for pid, spent in worked.items() if spent > _WORKED_S]
            if len(busy) == 1:
                self.pid = busy[0]
                return

    def pin(self, threads: int) -> list[int]:
        """Keep the page's one thread on the processor that every page gets; its number.

        With several threads the system places them.
        """
        self._threads = threads
        if self.pid is None or threads != 1 or not hasattr(os, "sched_setaffinity"):
            return []
        cpus = sorted(os.sched_getaffinity(0))[-1:]
        with contextlib.suppress(OSError):
            os.sched_setaffinity(self.pid, cpus)  # this thread alone, and not its helpers
            return cpus
        return []

    def cpu_s(self) -> float:
        """Processor time so far of the threads that run the model; NaN where unknown."""
        if self.pid is None:
            return math.nan
        if self._threads == 1:
            return _main_thread_s(self.pid)
        return _cpu_s(Path(f"/proc/{self.pid}/task").glob("*/schedstat"))

    def share_of_cpu_s(self) -> float:
        """Processor time of the whole browser so far, shared among the open tabs."""
        spent = sum(each["cpuTime"] for each in self._chromium.processes())
        return float(spent) / max(1, self._tabs())

    def forget_peak(self) -> None:
        """Let the peak start again at what is resident now, where the system can do that."""
        self._peak_mb = 0.0
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def memory_mb(self) -> dict[str, float]:
        """Peak and present memory of the renderer process in MB (10^6 bytes), as workers tell it.

        Empty where the system is silent.
        """
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return {}
        kib = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
        found = {name: int(kib[key]) * 1024 / 1e6 for key, name in _FIGURES.items() if key in kib}
        # Chromium lets the kernel's figure start again now and then, for statistics of its own.
        self._peak_mb = found["peak_mb"] = max(self._peak_mb, found.get("peak_mb", 0.0))
        return found


def _main_thread_s(pid: int) -> float:
    return _cpu_s([Path(f"/proc/{pid}/schedstat")])


def _cpu_s(files: Iterable[Path]) -> float:
    """Processor time in the ``schedstat`` files of some threads; NaN where there are none."""
    spent = []
    for file in files:
        with contextlib.suppress(OSError):  # the thread has ended
            spent.append(int(file.read_text().split()[0]) / 1e9)
    return sum(spent) if spent else math.nan
