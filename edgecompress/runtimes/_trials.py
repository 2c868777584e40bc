"""Running models in turn, each in a worker process of its own."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import MeasurementError
from edgecompress.runtimes._client import WorkerProcess
from edgecompress.runtimes._onnx_file import named_copy
from edgecompress.runtimes._profile import OperatorRow, operator_rows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.target import MeasurementSettings, TargetProfile

__all__ = ["Trial", "write_feeds", "run_in_turn", "operator_times"]

_WARM_UP_ROUNDS = 10
_STEADY = 0.05
_SHORTEST_BLOCK_MS = 20.0
_PROFILED_RUNS = 20


@dataclass
class Trial:
    """One model while it is being measured.

    Attributes:
        worker: Its process; ended once the trials are over.
        loaded: What the worker said of loading it.
        first_run_ms: Time of the first run.
        warmup: Untimed runs before the first block.
        run_ms: Time per run when it was warm.
        wall_ms: Wall times per run, by block.
        cpu_ms: Processor times per run, by block.
        memory: What the worker said of its memory at the end.
    """

    worker: WorkerProcess
    loaded: dict[str, Any]
    first_run_ms: float
    warmup: int = 0
    run_ms: float = 0.0
    wall_ms: list[list[float]] = field(default_factory=list)
    cpu_ms: list[list[float]] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)


def write_feeds(feeds: Mapping[str, npt.NDArray[np.generic]], folder: Path) -> dict[str, Any]:
    """Arguments of the worker's ``load`` that name the inputs."""
    import numpy as np

    file = folder / "feeds.npz"
    np.savez(file, *feeds.values())  # by place, since a name could be one of savez's parameters
    return {"feeds": os.fspath(file), "names": list(feeds)}


def run_in_turn(
    artifacts: Mapping[str, Path],
    profile: TargetProfile,
    inputs: Mapping[str, Any],
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Trial]:
    """Load all models, warm them up, and let them take turns block by block.

    Raises:
        MeasurementError: A file cannot be loaded or run, or its worker died or hung.
    """
    settings = profile.measurement
    with ExitStack() as stack:
        trials = {name: _start(stack, path, profile, inputs) for name, path in artifacts.items()}
        for trial in trials.values():
            _warm_up(trial, settings)
        for block in range(settings.blocks):
            order = list(trials.values())
            for trial in order if block % 2 == 0 else reversed(order):
                answer = trial.worker.ask("run", count=_block_runs(trial.run_ms, settings))
                trial.wall_ms.append(answer["wall_ms"])
                trial.cpu_ms.append(answer["cpu_ms"])
            if progress is not None:
                progress("measure", block + 1, settings.blocks)
        for trial in trials.values():
            trial.memory = trial.worker.ask("memory")
    return trials


def _start(
    stack: ExitStack,
    path: Path,
    profile: TargetProfile,
    inputs: Mapping[str, Any],
    trace: Path | None = None,
) -> Trial:
    settings = profile.measurement
    worker = stack.enter_context(
        WorkerProcess(str(path), threads=settings.threads, timeout_seconds=settings.timeout_seconds)
    )
    loaded = worker.ask(
        "load",
        model=os.fspath(path),
        provider=profile.provider,
        threads=settings.threads,
        profile=None if trace is None else os.fspath(trace),
        **inputs,
    )
    if loaded["providers"][0] != profile.provider:
        raise MeasurementError(
            f"onnxruntime did not take {profile.provider}, but {loaded['providers'][0]}",
            where=str(path),
            cure="check that the provider's libraries and drivers are installed",
        )
    first_run_ms = worker.ask("run", count=1, warm=False)["wall_ms"][0]
    return Trial(worker, loaded, first_run_ms)


def _warm_up(trial: Trial, settings: MeasurementSettings) -> None:
    """Run until two rounds agree, for at most the time that the timed runs may take."""
    before, spent = 0.0, 0.0
    for _ in range(_WARM_UP_ROUNDS):
        wall_ms = trial.worker.ask("run", count=settings.warmup)["wall_ms"]
        trial.warmup += len(wall_ms)
        trial.run_ms = statistics.median(wall_ms)
        spent += sum(wall_ms)
        if abs(trial.run_ms - before) <= _STEADY * before or spent > 1000 * settings.seconds:
            return
        before = trial.run_ms


def _block_runs(run_ms: float, settings: MeasurementSettings) -> int:
    run_ms = max(run_ms, 1e-3)
    wanted = max(-(-settings.runs // settings.blocks), int(_SHORTEST_BLOCK_MS / run_ms))
    affordable = int(1000 * settings.seconds / settings.blocks / run_ms)
    return max(1, min(wanted, affordable))


def operator_times(
    path: Path,
    profile: TargetProfile,
    inputs: Mapping[str, Any],
    run_ms: float,
    folder: Path,
) -> list[OperatorRow]:
    """Time per operator, from a profiled process of its own: profiling disturbs latency.

    Args:
        path: The model.
        profile: The target.
        inputs: What :func:`write_feeds` returned.
        run_ms: Expected time per run.
        folder: For temporary files.
    """
    runs = max(1, min(_PROFILED_RUNS, int(1000 * profile.measurement.seconds / max(run_ms, 1e-3))))
    file, source = named_copy(path, folder)
    with ExitStack() as stack:
        worker = _start(stack, file, profile, inputs, trace=folder / "trace").worker
        worker.ask("run", count=runs)
        trace = Path(worker.ask("end_profiling")["profile"])
    return operator_rows(trace, runs, source)
