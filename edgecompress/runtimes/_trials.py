"""Running models in turn, each in a process of its own, here or on a device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import Artifact
from edgecompress.runtimes._client import Peer
from edgecompress.runtimes._onnx_file import named_copy
from edgecompress.runtimes._profile import OperatorRow, arena_bytes, operator_rows

if TYPE_CHECKING:
    from edgecompress.target import MeasurementSettings

__all__ = ["Trial", "Start", "OperatorTimes", "run_in_turn", "operator_times"]

Start = Callable[[Artifact, Path | None], Peer]
"""Starts a peer with a model loaded; the path is the prefix of files for times per operator."""

_WARM_UP_ROUNDS = 10
_STEADY = 0.05
_SHORTEST_BLOCK_MS = 20.0
_PROFILED_RUNS = 20


@dataclass
class Trial:
    """One model while it is being measured.

    Attributes:
        worker: Its process; ended once the trials are over.
        first_run_ms: Time of the first run.
        warmup: Untimed runs before the first block.
        run_ms: Time per run when it was warm.
        wall_ms: Wall times per run, by block.
        cpu_ms: Processor times per run, by block.
        waited_ms: How long its process waited for a processor in the timed runs; zero where that
            is unknown.
        memory: What the worker said of its memory at the end.
    """

    worker: Peer
    first_run_ms: float
    warmup: int = 0
    run_ms: float = 0.0
    wall_ms: list[list[float]] = field(default_factory=list)
    cpu_ms: list[list[float]] = field(default_factory=list)
    waited_ms: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def loaded(self) -> dict[str, Any]:
        """What the worker said of loading it."""
        return self.worker.loaded

    @property
    def drift(self) -> float | None:
        """Median time of the last third of the blocks over that of the first; None of too few.

        Each block counts by its median, so that what it tells of is a trend, such as of a device
        that gets hot and lowers its clock, and not single slow runs.
        """
        third = len(self.wall_ms) // 3
        if third == 0:
            return None
        medians = [statistics.median(block) for block in self.wall_ms]
        first = statistics.median(medians[:third])
        return statistics.median(medians[-third:]) / first if first > 0 else None


@dataclass(frozen=True)
class OperatorTimes:
    """Kernels by mean time, and what the runtime's arena took, in bytes by name."""

    rows: list[OperatorRow] = field(default_factory=list)
    arena: dict[str, int] = field(default_factory=dict)


def run_in_turn(
    artifacts: Mapping[str, Artifact],
    start: Start,
    settings: MeasurementSettings,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Trial]:
    """Load all models, warm them up, and let them take turns block by block.

    Raises:
        MeasurementError: A file cannot be loaded or run, or its worker died or hung.
    """
    with ExitStack() as stack:
        trials = {
            name: _first_run(stack.enter_context(start(artifact, None)))
            for name, artifact in artifacts.items()
        }
        for trial in trials.values():
            _warm_up(trial, settings)
        for block in range(settings.blocks):
            order = list(trials.values())
            for trial in order if block % 2 == 0 else reversed(order):
                answer = trial.worker.ask("run", count=_block_runs(trial.run_ms, settings))
                trial.wall_ms.append(answer["wall_ms"])
                trial.cpu_ms.append(answer["cpu_ms"])
                trial.waited_ms += answer.get("waited_ms") or 0.0
            if progress is not None:
                progress("measure", block + 1, settings.blocks)
        for trial in trials.values():
            trial.memory = trial.worker.ask("memory")
    return trials


def _first_run(worker: Peer) -> Trial:
    return Trial(worker, worker.ask("run", count=1, warm=False)["wall_ms"][0])


def _warm_up(trial: Trial, settings: MeasurementSettings) -> None:
    """Run until two rounds agree, for at most the time that the timed runs may take.

    A round of very short runs is as long as a block, since a clock takes some time to rise.
    """
    before, spent, count = 0.0, 0.0, settings.warmup
    for _ in range(_WARM_UP_ROUNDS):
        wall_ms = trial.worker.ask("run", count=count)["wall_ms"]
        trial.warmup += len(wall_ms)
        trial.run_ms = statistics.median(wall_ms)
        spent += sum(wall_ms)
        if abs(trial.run_ms - before) <= _STEADY * before or spent > 1000 * settings.seconds:
            return
        before = trial.run_ms
        count = max(count, int(_SHORTEST_BLOCK_MS / max(trial.run_ms, 1e-3)))


def _block_runs(run_ms: float, settings: MeasurementSettings) -> int:
    run_ms = max(run_ms, 1e-3)
    wanted = max(-(-settings.runs // settings.blocks), int(_SHORTEST_BLOCK_MS / run_ms))
    affordable = int(1000 * settings.seconds / settings.blocks / run_ms)
    return max(1, min(wanted, affordable))


def operator_times(
    artifact: Artifact,
    start: Start,
    settings: MeasurementSettings,
    run_ms: float,
    folder: Path,
) -> OperatorTimes:
    """Time and memory per operator, from a profiled process of its own: profiling disturbs latency.

    Args:
        artifact: The model.
        start: Starts a process with it.
        settings: Of the target.
        run_ms: Expected time per run.
        folder: For temporary files.
    """
    runs = max(1, min(_PROFILED_RUNS, int(1000 * settings.seconds / max(run_ms, 1e-3))))
    original = artifact.path
    file, source = named_copy(original, folder)
    artifact = Artifact((file, *artifact.files[1:]), artifact.notes)
    try:
        with start(artifact, folder / "trace") as worker:
            worker.ask("run", count=1, warm=False)
            worker.ask("run", count=runs)
            answer = worker.ask("end_profiling")
    except MeasurementError as error:
        if error.where == str(file):
            error.where = str(original)
        raise
    if "profile" not in answer:
        return OperatorTimes([OperatorRow(output_names=(), **row) for row in answer["rows"]])
    trace = Path(answer["profile"])
    return OperatorTimes(operator_rows(trace, runs, source), arena_bytes(trace))
