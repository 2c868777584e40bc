"""The worker: a fresh process that loads one model, runs it and tells times and memory.

It reads one JSON object per line from standard input and answers each with one line. It ends with
its input, so that it never outlives the process that started it. Only numpy and onnxruntime are
loaded, so that little of the measured memory is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.runtimes._session import open_session

__all__ = ["main", "peak_memory_mb"]

_STATUS = Path("/proc/self/status")
# Of several models in turn: each turn takes some milliseconds, and not fewer runs than these.
_TURNS = 12
_TURN_S = 0.004
_WARM_UP_RUNS = 3
_LEAST_RUNS, _MOST_RUNS = 1, 200


def peak_memory_mb() -> float | None:
    """Largest resident set of this process so far, in MB (10^6 bytes); None where unknown."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return peak * unit / 1e6


def forget_peak() -> None:
    """Let the peak start again at what is resident now, where the system can do that."""
    # Imports peak higher than what stays; the model would otherwise hide below that peak.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def pin(threads: int) -> list[int]:
    """Stay on as many processors as there are threads; on the same ones in every worker.

    Processors of a shared machine differ in speed from moment to moment: models that take turns can
    be compared only if they take them on the same ones. Returns their numbers, none where the
    system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    cpus = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cpus)
    return cpus


def _timed(session: Any, feeds: dict[str, Any]) -> float:
    start = time.perf_counter_ns()
    session.run(None, feeds)
    return (time.perf_counter_ns() - start) / 1e9


def _random_feeds(session: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        each.name: rng.standard_normal(each.shape, dtype=np.float32)
        for each in session.get_inputs()
    }


class Worker:
    """One loaded model; each public method is a request."""

    def __init__(self) -> None:
        self.session: Any = None
        self.feeds: dict[str, Any] = {}

    def load(
        self,
        model: str,
        feeds: str,
        names: list[str],
        provider: str,
        threads: int,
        profile: str | None,
    ) -> dict[str, Any]:
        """Load the inputs, then the model."""
        import onnxruntime

        cpus = pin(threads)
        with np.load(feeds) as arrays:
            self.feeds = {name: arrays[f"arr_{place}"] for place, name in enumerate(names)}
        forget_peak()
        before = peak_memory_mb()
        start = time.perf_counter_ns()
        self.session = open_session(
            Path(model),
            provider=provider,
            threads=threads,
            profile=None if profile is None else Path(profile),
        )
        return {
            "load_ms": (time.perf_counter_ns() - start) / 1e6,
            "runner_mb": before,
            "version": onnxruntime.__version__,
            "providers": self.session.get_providers(),
            "cpus": cpus,
        }

    def run(self, count: int, warm: bool = True) -> dict[str, Any]:
        """Run ``count`` times; one run goes before, untimed, to ``warm`` the caches again."""
        run, feeds = self.session.run, self.feeds
        if warm:
            run(None, feeds)
        wall_ms, cpu_ms = [], []
        for _ in range(count):
            cpu = time.process_time_ns()
            wall = time.perf_counter_ns()
            run(None, feeds)
            wall_ms.append((time.perf_counter_ns() - wall) / 1e6)
            cpu_ms.append((time.process_time_ns() - cpu) / 1e6)
        return {"wall_ms": wall_ms, "cpu_ms": cpu_ms}

    def times(self, models: list[str], provider: str, threads: int) -> dict[str, Any]:
        """Least seconds of a run of each of some models with random inputs, taken in turn."""
        pin(threads)
        loaded = [open_session(Path(model), provider=provider, threads=threads) for model in models]
        feeds = [_random_feeds(session) for session in loaded]
        least = [
            min(_timed(*pair) for _ in range(_WARM_UP_RUNS))
            for pair in zip(loaded, feeds, strict=True)
        ]
        counts = [max(_LEAST_RUNS, min(_MOST_RUNS, int(_TURN_S / each))) for each in least]
        for turn in range(_TURNS):
            places = range(len(loaded))
            for i in places if turn % 2 == 0 else reversed(places):
                taken = [_timed(loaded[i], feeds[i]) for _ in range(counts[i])]
                least[i] = min(least[i], *taken)
        return {"seconds": least}

    def memory(self) -> dict[str, Any]:
        """Peak memory so far, and processor time."""
        return {"peak_mb": peak_memory_mb(), "cpu_s": time.process_time()}

    def end_profiling(self) -> dict[str, Any]:
        """Write the profile and tell where it is."""
        return {"profile": self.session.end_profiling()}


def main() -> None:
    """Answer requests until the input ends."""
    # An interrupt of the terminal reaches the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # Whatever the runtime prints must not be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # the parent reports it, whatever it is
            answer = {"error": str(error).strip() or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
