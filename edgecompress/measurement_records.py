"""What is found out about a model on a target, as reports hold it.

These classes load neither a runtime nor torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["Measurement", "Latency", "Memory", "OperatorTime", "Conditions"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Latency(_Record):
    """Wall time per run in milliseconds, of all runs: none is left out as an outlier.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        min: Of the fastest run.
        mean: Mean.
        runs: How many were timed.
        warmup: Untimed runs before them, until two rounds agreed.
        cpu_min_ms: Least processor time of a run; None where the device does not tell, as a page
            in a browser.
        drift: Median of the last third of the runs over that of the first; well above 1 where the
            device got hot and slower. None where there were too few.
    """

    p50: float
    p90: float
    p99: float
    min: float
    mean: float
    runs: int
    warmup: int
    cpu_min_ms: float | None = None
    drift: float | None = None


class Memory(_Record):
    """Memory of the process that ran the model, taken in several ways, in MB (10^6 bytes).

    Attributes:
        peak_mb: Its largest resident set, from just before the model was loaded.
        basis: How that was taken: ``vmhwm``, the kernel's high-water mark of a fresh process;
            ``rusage``, the same figure of a system that cannot start it again, so that imports
            may hide the model; ``device``, what a device's agent told.
        runner_mb: Of that, what the process held before the model was loaded: interpreter, runtime
            and inputs.
        anonymous_mb: Heap and stacks, and whatever was written to, after the last run. Beside the
            peak it tells how much only loading took.
        file_mb: Pages of mapped files after the last run: libraries, and weights that are mapped.
            Other processes may share them.
        shared_mb: Shared memory after the last run.
        group_peak_mb: The kernel's peak of a control group around the process, from just before the
            model was loaded. It has what a resident set lacks, such as file pages that were only
            read, and lacks pages of files that another process had read before.
        group_over_runner_mb: By how much that is above what the group held before.
        group_anonymous_mb: What the group held that no file is behind, after the last run.
        group_file_mb: What the group held of files, after the last run.
        arena_mb: Figures of the runtime's own allocator, by the names that it gives them. They
            leave out the runtime itself and, in onnxruntime, weights packed for its kernels.
    """

    peak_mb: float | None = None
    basis: Literal["vmhwm", "rusage", "device"] | None = None
    runner_mb: float | None = None
    anonymous_mb: float | None = None
    file_mb: float | None = None
    shared_mb: float | None = None
    group_peak_mb: float | None = None
    group_over_runner_mb: float | None = None
    group_anonymous_mb: float | None = None
    group_file_mb: float | None = None
    arena_mb: dict[str, float] = {}


class OperatorTime(_Record):
    """Time of one kernel of the runtime's optimized graph, from a profiled run of its own.

    Attributes:
        name: The runtime's name for it.
        op: Operator that the runtime made of the node.
        provider: Back end that ran it.
        mean_us: Mean time per run of the model.
        share: Part of the time of all kernels.
        calls: Calls per run.
        output_names: Outputs, in the model's file, of the nodes that it stands for, first of the
            one that gave it its operator; empty where the runtime added it.
    """

    name: str
    op: str
    provider: str
    mean_us: float
    share: float
    calls: float
    output_names: tuple[str, ...] = ()


class Conditions(_Record):
    """Under what conditions a measurement was taken.

    Attributes:
        cpu: Name of the device's processor.
        os: Name and version of its system.
        device: Its address; ``local`` for this machine.
        runtime: Name of the runtime.
        runtime_version: What the runtime says of itself.
        provider: Back end of the runtime.
        threads: Threads inside an operator.
        cpus: Processors that all files were pinned to; empty where the system cannot pin.
        inputs: Shapes of the inputs.
        quiet: Whether nothing speaks against the times: no other load, no wait for a processor, no
            change of speed.
        noise_note: What does.
        clock_mhz: Of the fastest core, before and after the runs, where the device tells.
        temperature_c: Of the hottest sensor in degrees Celsius, before and after, where it tells.
    """

    cpu: str
    os: str
    device: str = "local"
    runtime: str
    runtime_version: str
    provider: str
    threads: int
    cpus: tuple[int, ...] = ()
    inputs: dict[str, list[int]]
    quiet: bool
    noise_note: str | None = None
    clock_mhz: tuple[float | None, float | None] = (None, None)
    temperature_c: tuple[float | None, float | None] = (None, None)


class Measurement(_Record):
    """What was found out about one model on one target.

    Attributes:
        basis: ``measured``, ``estimated`` or ``unknown``.
        reason: Why it was not measured.
        note: What an estimate rests on.
        expected_error: Of an estimate: the truth is expected within this factor of it.
        latency_ms: Time per run; of an estimate, which has no runs, all figures are the same.
        latency_ratio: Time per run over that of the reference, which ran in turn with it; below 1
            is faster. The median over blocks of the blocks' median times.
        cpu_ratio: The same of processor time.
        load_ms: Time to load the file and optimize the graph.
        first_run_ms: Time of the first run.
        peak_memory_mb: Largest resident set of the process (10^6 bytes).
        memory_over_runner_mb: The same less what the process held just before it loaded the model:
            interpreter, runtime and inputs.
        memory: How that was taken, its parts, and other figures beside it.
        size_bytes: Bytes of the model's files.
        compressed_bytes: Bytes of these files after deflate at level 6, as app bundles ship them.
        operators: Time per operator, longest first.
        conditions: Under what conditions.
    """

    basis: Literal["measured", "estimated", "unknown"]
    reason: str | None = None
    note: str | None = None
    expected_error: float | None = None
    latency_ms: Latency | None = None
    latency_ratio: float | None = None
    cpu_ratio: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    peak_memory_mb: float | None = None
    memory_over_runner_mb: float | None = None
    memory: Memory | None = None
    size_bytes: int
    compressed_bytes: int | None = None
    operators: tuple[OperatorTime, ...] = ()
    conditions: Conditions | None = None
