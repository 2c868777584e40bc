"""Whether measurements can be trusted: repeatability, the harness's own cost, peak memory.

- The same file against itself, in turn (A B A B), and in separate measurements one after another.
  Rounds in which the machine was not quiet are told, and not judged.
- What the harness adds to a run: a worker that runs an engine that does nothing, and a loop around
  ``InferenceSession.run`` with nothing but a clock, in turn with the harness's own.
- The peak that a worker tells of itself, against "Maximum resident set size" of ``/usr/bin/time``
  around that very process.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import DATA, MB, REPOSITORY, Outcome, Verdict, note, table

from edgecompress.runtimes import Engine
from edgecompress.runtimes._client import PipePeer, WorkerProcess

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.target import TargetProfile

RATIO_GOAL, REPEAT_GOAL, PEAK_GOAL = 0.02, 0.05, 0.05
OVERHEAD_GOAL_US = 10.0  # 1 % of a run of 1 ms
_MODELS = {
    "resnet20": "resnet20_cifar10.onnx",
    "mobilenet_v2": "mobilenet_v2_cifar10_224.onnx",
}
_TIME = Path("/usr/bin/time")
_ENGINE = "edgecompress.runtimes._session:OnnxRuntimeEngine"
_OPTIONS = {"provider": "CPUExecutionProvider", "threads": 1}


class Nothing(Engine):
    """An engine whose run does nothing, so that what is timed is the harness alone."""

    def start(self) -> str:
        """Import nothing."""
        return "0"

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load nothing."""
        return {"providers": []}

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """Run nothing."""
        return lambda: None

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """No outputs."""
        return {}


def run(*, quick: bool) -> Outcome:
    outcome = Outcome(figures={})
    profile = _profile(quick)
    _repeats(outcome, profile, *((1, 2) if quick else (4, 12)))
    _overhead(outcome, 500 if quick else 5000)
    _peaks(outcome)
    return outcome


def _profile(quick: bool) -> TargetProfile:
    from edgecompress import target

    profile = target.load(target.host_target())
    if not quick:
        return profile
    settings = profile.measurement.model_copy(update={"seconds": 0.5, "runs": 30})
    return profile.model_copy(update={"measurement": settings})


def _feeds(file: Path) -> dict[str, Any]:
    from edgecompress.measure import random_feeds
    from edgecompress.model import Model

    return random_feeds(Model.load(file).signature)


def _repeats(outcome: Outcome, profile: TargetProfile, wanted: int, most: int) -> None:
    """Until there are as many quiet rounds as wanted, or too many in all."""
    figures: dict[str, list[dict[str, Any]]] = {}
    for name, file in _MODELS.items():
        note(f"{name} against itself, until {wanted} quiet rounds or {most} in all")
        path = DATA / file
        feeds = _feeds(path)
        rounds = figures[name] = []
        while len(rounds) < most and sum(f["quiet"] for f in rounds) < wanted:
            rounds.append(_round(path, profile, feeds))
    outcome.figures["repeatability"] = figures
    columns = ("p50_ms", "p99_ms", "ratio", "cpu_ratio", "drift", "quiet")
    rows = [
        (name, *(found[column] for column in columns))
        for name, rounds in figures.items()
        for found in rounds
    ]
    head = ("model", "p50 ms", "p99 ms", "b / a", "cpu b / a", "drift", "quiet")
    outcome.tables.append(table("The same file against itself", head, rows))
    quiet = [[f for f in rounds if f["quiet"]] for rounds in figures.values()]
    ratios = [abs(found["ratio"] - 1) for rounds in quiet for found in rounds]
    repeats = [
        abs(after["p50_ms"] / before["p50_ms"] - 1)
        for rounds in quiet
        for before, after in pairwise(rounds)
    ]
    outcome.verdicts += [
        _worst("A/B ratio of a file against itself", ratios, RATIO_GOAL),
        _worst("p50 of two measurements", repeats, REPEAT_GOAL),
    ]


def _round(file: Path, profile: TargetProfile, feeds: dict[str, Any]) -> dict[str, Any]:
    """One measurement of a file against itself."""
    from edgecompress.measure import measure

    pair = {"a": file, "b": file}
    found = measure(pair, profile, feeds, reference="a", operators=False)
    first, second = found["a"], found["b"]
    assert first.latency_ms is not None, first.reason
    conditions = [each.conditions for each in (first, second) if each.conditions is not None]
    return {
        "p50_ms": first.latency_ms.p50,
        "p99_ms": first.latency_ms.p99,
        "ratio": second.latency_ratio,
        "cpu_ratio": second.cpu_ratio,
        "drift": first.latency_ms.drift,
        "peak_mb": first.peak_memory_mb,
        "quiet": all(each.quiet for each in conditions),
        "noise": [each.noise_note for each in conditions if each.noise_note],
    }


def _worst(goal: str, found: list[float], limit: float) -> Verdict:
    goal = f"{goal} within {limit:.0%}"
    if not found:
        return Verdict(goal, "the machine was not quiet for long enough", None)
    return Verdict(goal, f"{max(found):.1%} at worst of {len(found)}", max(found) <= limit)


def _overhead(outcome: Outcome, runs: int) -> None:
    note("the harness around an engine that does nothing, and around a bare loop")
    empty_us, whole_us = _around_nothing(runs)
    harness_us, bare_us = _around_a_session(runs // 5)
    outcome.figures["overhead"] = {
        "inside_the_clock_us": empty_us,
        "with_clocks_and_transport_us": whole_us,
        "session_harness_us": harness_us,
        "session_bare_us": bare_us,
    }
    rows = [
        ("inside the clock, per run", empty_us),
        ("clocks, storage and transport too, per run", whole_us),
        ("p50 of ResNet-20 in the harness", harness_us),
        ("p50 of ResNet-20 in a bare loop", bare_us),
    ]
    outcome.tables.append(table("The harness's own cost", ("what", "us"), rows))
    outcome.verdicts.append(
        Verdict(
            "harness below 1 % of a run of 1 ms",
            f"{whole_us:.2f} us per run, {empty_us:.2f} us of it inside the clock",
            whole_us < OVERHEAD_GOAL_US,
        )
    )


def _around_nothing(runs: int) -> tuple[float, float]:
    """Microseconds per run that the clock sees, and that the caller sees."""
    from edgecompress.runtimes._remote import write_feeds

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.fspath(Path(__file__).parent)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            WorkerProcess("nothing", threads=1, timeout_seconds=60) as worker,
        ):
            inputs = write_feeds({}, Path(folder))
            worker.load("measurement:Nothing", Path("none"), inputs, _OPTIONS)
            worker.ask("run", count=runs)
            inside, whole = [], []
            for _ in range(5):
                started = time.perf_counter()
                inside += worker.ask("run", count=runs)["wall_ms"]
                whole.append((time.perf_counter() - started) / runs)
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    # Of the turns the least, since other load only ever adds.
    return 1e3 * statistics.median(inside), 1e6 * min(whole)


def _around_a_session(runs: int) -> tuple[float, float]:
    """Median microseconds of a run of ResNet-20 in the worker's loop and in a bare one, in turn."""
    from edgecompress.runtimes._remote import write_feeds
    from edgecompress.runtimes._worker import Worker

    file = DATA / _MODELS["resnet20"]
    feeds = _feeds(file)
    worker = Worker()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            worker.load(_ENGINE, str(file), **write_feeds(feeds, Path(folder)), options=_OPTIONS)
        session: Any = getattr(worker.engine, "session", None)
        harness, bare = [], []
        for _ in range(10):
            harness += [1e3 * ms for ms in worker.run(count=runs // 10)["wall_ms"]]
            session.run(None, feeds)
            for _ in range(runs // 10):
                started = time.perf_counter()
                session.run(None, feeds)
                bare.append(1e6 * (time.perf_counter() - started))
    finally:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
    return statistics.median(harness), statistics.median(bare)


class TimedWorker(PipePeer):
    """A worker with ``/usr/bin/time`` around it."""

    def __init__(self, report: Path) -> None:
        self.report = report
        command = [str(_TIME), "-v", "-o", str(report)]
        super().__init__(
            [*command, sys.executable, "-P", "-m", "edgecompress.runtimes._worker"],
            where="worker",
            who="onnxruntime",
            timeout_seconds=120,
            environment={**os.environ, "PYTHONPATH": os.fspath(REPOSITORY)},
        )

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """Nobody asks for them."""
        raise NotImplementedError("only its memory is asked for")

    def end(self) -> float:
        """Let the worker end by itself; its peak in MB as ``time`` reports it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        for line in self.report.read_text().splitlines():
            label, _, value = line.strip().partition(": ")
            if label == "Maximum resident set size (kbytes)":
                return int(value) * 1024 / MB
        raise RuntimeError(f"{_TIME} did not report a maximum resident set size")


def _peaks(outcome: Outcome) -> None:
    goal = f"peak memory within {PEAK_GOAL:.0%} of {_TIME} -v"
    if not _TIME.exists():
        outcome.verdicts.append(Verdict(goal, "apt-get install time brings the program", None))
        return
    note(f"peak memory against {_TIME} -v")
    figures = {name: _peak(DATA / file) for name, file in _MODELS.items()}
    outcome.figures["peak_memory"] = figures
    rows = [
        (name, f["time_mb"], f["peak_mb"], f["runner_mb"], f["group_mb"])
        for name, f in figures.items()
    ]
    head = ("model", "time -v MB", "peak MB", "runner MB", "control group MB")
    outcome.tables.append(table("Peak memory of a worker", head, rows))
    worst = max(abs(f["peak_mb"] / f["time_mb"] - 1) for f in figures.values())
    outcome.verdicts.append(Verdict(goal, f"{worst:.2%} off at worst", worst <= PEAK_GOAL))


def _peak(file: Path) -> dict[str, float | None]:
    from edgecompress.runtimes._remote import write_feeds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = write_feeds(_feeds(file), folder)
        load = {"engine": _ENGINE, "model": str(file), "options": _OPTIONS, **inputs}
        with TimedWorker(folder / "time.txt") as worker:
            loaded = worker.ask("load", **load)
            worker.ask("run", count=20)
            peak_mb = worker.ask("memory")["peak_mb"]
            time_mb = worker.end()
        with WorkerProcess(str(file), threads=1, timeout_seconds=120) as grouped:
            grouped.load(_ENGINE, file, inputs, _OPTIONS)
            grouped.ask("run", count=20)
            group = grouped.ask("memory")["group"]
    return {
        "time_mb": time_mb,
        "peak_mb": peak_mb,
        "runner_mb": loaded["runner_mb"],
        "group_mb": None if group is None else group["peak_mb"],
    }
