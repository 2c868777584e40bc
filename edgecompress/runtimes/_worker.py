"""The worker: a fresh process that loads one model, runs it and tells times and memory.

It reads one JSON object per line from standard input and answers each with one line. It ends with
its input, so that it never outlives the process that started it. Only numpy and the runtime are
loaded, so that little of the measured memory is its own, and so that it can run in an environment
that has nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.machine.cgroup import MemoryGroup
from edgecompress.machine.process_memory import die_first, forget_peak, limit_data, resident
from edgecompress.machine.waiting import waited_ms
from edgecompress.runtimes import Engine
from edgecompress.runtimes._session import open_session

__all__ = ["main"]

# Of several models in turn: each turn takes some milliseconds, and not fewer runs than these.
_TURNS = 12
_TURN_S = 0.004
_WARM_UP_RUNS = 3
_LEAST_RUNS, _MOST_RUNS = 1, 200


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


# What onnxruntime calls otherwise than numpy.
_TYPES = {"float": "float32", "double": "float64"}


def _random_feeds(session: Any) -> dict[str, Any]:
    """Normal floats, and ones of all other types: a valid index in nearly every model."""
    rng = np.random.default_rng(0)
    feeds = {}
    for each in session.get_inputs():
        name = each.type.removeprefix("tensor(").removesuffix(")")
        kind = np.dtype(_TYPES.get(name, name))
        values = rng.standard_normal(each.shape) if kind.kind == "f" else np.ones(each.shape)
        feeds[each.name] = values.astype(kind)
    return feeds


class Worker:
    """One loaded model; each public method is a request."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.feeds: dict[str, Any] = {}
        self.step: Callable[[], object]
        self.group = MemoryGroup.mine()
        self.group_before: int | None = None

    def limit(self, memory_mb: float) -> dict[str, Any]:
        """Take no more memory than this, where the system can see to it."""
        return {"limited": limit_data(memory_mb)}

    def convert(
        self, engine: str, source: str, folder: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Let the runtime make its own files of an ONNX file."""
        return dict(_engine(engine).convert(source, folder, options))

    def load(
        self, engine: str, model: str, feeds: str, names: list[str], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Load the inputs, then the model."""
        self.engine = loaded = _engine(engine)
        version = loaded.start()
        cpus = pin(options["threads"])
        self.feed(feeds, names)
        forget_peak()
        before = resident()
        if self.group is not None and self.group.forget_peak():
            held = self.group.memory()
            self.group_before = None if held is None else held.peak
        start = time.perf_counter_ns()
        facts = loaded.load(model, options)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        self.step = loaded.bind(self.feeds)
        return {
            "load_ms": load_ms,
            "runner_mb": before.peak_mb,
            "version": version,
            "cpus": cpus,
            **facts,
        }

    def feed(self, feeds: str, names: list[str]) -> dict[str, Any]:
        """Read inputs; where a model is loaded, the next runs take them."""
        with np.load(feeds) as arrays:
            self.feeds = {name: arrays[f"arr_{place}"] for place, name in enumerate(names)}
        if self.engine is not None and hasattr(self, "step"):
            self.step = self.engine.bind(self.feeds)
        return {}

    def outputs(self, file: str) -> dict[str, Any]:
        """Run once and write the outputs."""
        assert self.engine is not None
        found = self.engine.collect(self.step())
        np.savez(file, *found.values())
        return {"names": list(found)}

    def run(self, count: int, warm: bool = True) -> dict[str, Any]:
        """Run ``count`` times; one run goes before, untimed, to ``warm`` the caches again.

        Beside the times per run it tells how long the process waited for a processor in all.
        """
        step = self.step
        if warm:
            step()
        wall_ms, cpu_ms = [], []
        before = waited_ms()
        for _ in range(count):
            cpu = time.process_time_ns()
            wall = time.perf_counter_ns()
            step()
            wall_ms.append((time.perf_counter_ns() - wall) / 1e6)
            cpu_ms.append((time.process_time_ns() - cpu) / 1e6)
        after = waited_ms()
        waited = None if before is None or after is None else after - before
        return {"wall_ms": wall_ms, "cpu_ms": cpu_ms, "waited_ms": waited}

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
        """Peak memory so far, the runtime's own figures, and processor time."""
        now = resident()
        return {
            "peak_mb": now.peak_mb,
            "basis": now.basis,
            "anonymous_mb": now.anonymous_mb,
            "file_mb": now.file_mb,
            "shared_mb": now.shared_mb,
            "group": self._group_memory(),
            "arena": {} if self.engine is None else dict(self.engine.memory()),
            "cpu_s": time.process_time(),
        }

    def _group_memory(self) -> dict[str, float | None] | None:
        held = None if self.group is None else self.group.memory()
        if held is None:
            return None
        before = self.group_before
        return {
            "peak_mb": held.peak / 1e6,
            "over_runner_mb": None if before is None else (held.peak - before) / 1e6,
            "anonymous_mb": held.anonymous / 1e6,
            "file_mb": held.file / 1e6,
        }

    def end_profiling(self) -> dict[str, Any]:
        """Times per operator, or where they were written."""
        assert self.engine is not None
        return dict(self.engine.end_profiling())


def _engine(name: str) -> Engine:
    module, _, cls = name.partition(":")
    engine: Engine = getattr(importlib.import_module(module), cls)()
    return engine


def main() -> None:
    """Answer requests until the input ends."""
    # An interrupt of the terminal reaches the whole group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_first()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # Whatever the runtime prints must not be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # the parent reports it, whatever it is
            answer = {
                "error": str(error).strip() or type(error).__name__,
                "kind": type(error).__name__,
            }
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
