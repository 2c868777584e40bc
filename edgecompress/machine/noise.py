"""Whether the machine was quiet while something was measured."""

from __future__ import annotations

import os
import statistics
import time

import psutil

__all__ = ["NoiseMeter"]

_CALIBRATION_DRIFT = 0.15
_OTHER_LOAD = 0.2


class NoiseMeter:
    """Tells whether the machine was quiet between its creation and :meth:`found`."""

    def __init__(self) -> None:
        self._calibration = _calibrate()
        self._busy, self._own, self._start = _busy_s(), time.process_time(), time.perf_counter()

    def found(self, workers_cpu_s: float) -> list[str]:
        """Reasons to distrust the times; empty where the machine was quiet."""
        wall = time.perf_counter() - self._start
        own = time.process_time() - self._own + workers_cpu_s
        cores = os.cpu_count() or 1
        other = max(0.0, _busy_s() - self._busy - own) / (wall * cores)
        drift = _calibrate() / self._calibration
        reasons = []
        if other > _OTHER_LOAD:
            reasons.append(f"other programs used {other:.0%} of the processor")
        if abs(drift - 1) > _CALIBRATION_DRIFT:
            reasons.append(f"a fixed calculation took {drift:.2f} times as long after as before")
        return reasons


def _calibrate() -> float:
    """Median time of a fixed calculation, in seconds."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        sum(range(200_000))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _busy_s() -> float:
    """Seconds that all processors together have been busy since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
