"""Measurement: latency, memory, load time, size and time per operator, with their conditions.

Each model is loaded in a fresh process of its own. Models that are compared take turns in small
blocks of runs, forwards and backwards, so that other load on the machine hits all of them alike;
their ratio is the median over the blocks.

The data classes load neither a runtime nor torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from edgecompress.errors import DataError, MeasurementError, nearest
from edgecompress.files import ScratchFolder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.model import Signature, TensorSpec
    from edgecompress.runtimes import Artifact
    from edgecompress.runtimes._client import Peer
    from edgecompress.runtimes._profile import OperatorRow
    from edgecompress.runtimes._trials import Trial
    from edgecompress.target import TargetProfile

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = [
    "Measurement",
    "Latency",
    "OperatorTime",
    "Conditions",
    "measure",
    "reachable",
    "random_feeds",
]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Latency(_Record):
    """Wall time per run in milliseconds; ``cpu_min_ms`` is the least processor time of a run.

    ``warmup`` counts the untimed runs before the first block.
    """

    p50: float
    p90: float
    p99: float
    min: float
    mean: float
    runs: int
    warmup: int
    cpu_min_ms: float


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

    ``quiet`` is false where the machine was busy or its speed changed; ``noise_note`` says how.
    ``cpus`` are the processors that all files were pinned to, empty where the system cannot pin.
    """

    cpu: str
    os: str
    runtime: str
    runtime_version: str
    provider: str
    threads: int
    cpus: tuple[int, ...] = ()
    inputs: dict[str, list[int]]
    quiet: bool
    noise_note: str | None = None


class Measurement(_Record):
    """What was found out about one model on one target.

    Attributes:
        basis: ``measured``, ``estimated`` or ``unknown``.
        reason: Why it is unknown.
        latency_ms: Time per run.
        latency_ratio: Time per run over that of the reference, which ran in turn with it; below 1
            is faster. The median over blocks of the blocks' median times.
        cpu_ratio: The same of processor time.
        load_ms: Time to load the file and optimize the graph.
        first_run_ms: Time of the first run.
        peak_memory_mb: Largest resident set of the process (10^6 bytes).
        memory_over_runner_mb: The same less what the process held just before it loaded the model:
            interpreter, runtime and inputs.
        size_bytes: Bytes of the model's files.
        operators: Time per operator, longest first.
        conditions: Under what conditions.
    """

    basis: Literal["measured", "estimated", "unknown"]
    reason: str | None = None
    latency_ms: Latency | None = None
    latency_ratio: float | None = None
    cpu_ratio: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    peak_memory_mb: float | None = None
    memory_over_runner_mb: float | None = None
    size_bytes: int
    operators: tuple[OperatorTime, ...] = ()
    conditions: Conditions | None = None


def measure(
    artifacts: Mapping[str, Artifact | Path],
    profile: TargetProfile,
    feeds: Arrays,
    *,
    device: str | None = None,
    reference: str | None = None,
    operators: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Measurement]:
    """Measure model files on a target, against one another.

    Args:
        artifacts: Files that the target's runtime loads, by name; a path is an ONNX file.
        profile: The target; how long and how often is in its ``measurement`` table.
        feeds: One batch of inputs, given to all of them.
        device: Address of the device; default: the target's own.
        reference: Name of the file that the others' ratios are to.
        operators: Also take the time of each operator, in another process.
        progress: Called with a label, the blocks done, and the blocks in all.

    Returns:
        A measurement for each name; ``basis="unknown"`` with the reason where the target cannot be
        reached from this machine.

    Raises:
        MeasurementError: A file is missing, cannot be loaded or run, or its worker died or hung.
    """
    from edgecompress.devices import connect
    from edgecompress.machine.noise import NoiseMeter
    from edgecompress.runtimes._onnx_file import artifact_of
    from edgecompress.runtimes._trials import operator_times, run_in_turn

    if reference is not None and reference not in artifacts:
        raise MeasurementError(
            f"unknown reference {reference!r}; {nearest(reference, artifacts)}", where="measure"
        )
    files = {name: artifact_of(each) for name, each in artifacts.items()}
    can, reason = reachable(profile, device)
    if not can:
        return {
            name: Measurement(basis="unknown", reason=reason, size_bytes=artifact.size_bytes)
            for name, artifact in files.items()
        }
    with ScratchFolder() as folder, connect(_address(profile, device)) as place:

        def start(artifact: Artifact, trace: Path | None) -> Peer:
            return place.start(artifact, profile, feeds, where=str(artifact.path), trace=trace)

        noise_meter = NoiseMeter()
        trials = run_in_turn(files, start, profile.measurement, progress)
        noise = noise_meter.found(sum(trial.memory["cpu_s"] for trial in trials.values()))
        rows = {
            name: operator_times(
                artifact, start, profile.measurement, trials[name].run_ms, folder
            )
            for name, artifact in files.items()
            if operators
        }
    base = None if reference is None else trials[reference]
    return {
        name: Measurement(
            basis="measured",
            latency_ms=_latency(trial),
            latency_ratio=_ratio(trial, base, "wall_ms"),
            cpu_ratio=_ratio(trial, base, "cpu_ms"),
            load_ms=trial.loaded["load_ms"],
            first_run_ms=trial.first_run_ms,
            peak_memory_mb=trial.memory["peak_mb"],
            memory_over_runner_mb=_difference(trial.memory["peak_mb"], trial.loaded["runner_mb"]),
            size_bytes=files[name].size_bytes,
            operators=_operators(rows.get(name, [])),
            conditions=_conditions(profile, feeds, trial, noise),
        )
        for name, trial in trials.items()
    }


def _address(profile: TargetProfile, device: str | None) -> str:
    return device or profile.device.address or "local"


def reachable(profile: TargetProfile, device: str | None = None) -> tuple[bool, str]:
    """Whether models can be measured on a target from here; if not, why.

    Args:
        profile: The target.
        device: Address of the device; default: the target's own.

    Raises:
        TargetError: The address is malformed.
    """
    from edgecompress.devices import connect
    from edgecompress.machine.host import host
    from edgecompress.runtimes import runtime_class

    address = _address(profile, device)
    place = connect(address)
    if place.scheme != "local":
        if not place.timed:
            return False, f"{address} is an emulation: outputs can be taken there, times cannot"
        return True, address
    if profile.device.kind == "none" and device is None:
        return False, f"{profile.name} is a device that cannot be reached from this machine"
    arch = host().arch
    if profile.device.arch not in ("any", arch):
        return False, f"{profile.name} needs an {profile.device.arch} machine, this is {arch}"
    return runtime_class(profile.runtime)().present(profile)


def _latency(trial: Trial) -> Latency:
    import numpy as np

    wall_ms = np.concatenate(trial.wall_ms)
    p50, p90, p99 = (float(p) for p in np.percentile(wall_ms, (50, 90, 99)))
    return Latency(
        p50=p50,
        p90=p90,
        p99=p99,
        min=float(wall_ms.min()),
        mean=float(wall_ms.mean()),
        runs=wall_ms.size,
        warmup=trial.warmup,
        cpu_min_ms=min(map(min, trial.cpu_ms)),
    )


def _ratio(trial: Trial, base: Trial | None, clock: Literal["wall_ms", "cpu_ms"]) -> float | None:
    if base is None or base is trial:
        return None
    pairs = zip(getattr(trial, clock), getattr(base, clock), strict=True)
    ratios = [
        statistics.median(own) / below
        for own, other in pairs
        if (below := statistics.median(other)) > 0
    ]
    return statistics.median(ratios) if ratios else None


def _difference(peak: float | None, before: float | None) -> float | None:
    return None if peak is None or before is None else peak - before


def _operators(rows: Sequence[OperatorRow]) -> tuple[OperatorTime, ...]:
    total = sum(row.mean_us for row in rows) or 1.0
    return tuple(OperatorTime(**asdict(row), share=row.mean_us / total) for row in rows)


def _conditions(
    profile: TargetProfile, feeds: Arrays, trial: Trial, noise: Sequence[str]
) -> Conditions:
    from edgecompress.machine.host import host

    return Conditions(
        cpu=host().cpu,
        os=host().os,
        runtime=profile.runtime,
        runtime_version=trial.loaded["version"],
        provider=profile.provider,
        threads=profile.measurement.threads,
        cpus=tuple(trial.loaded["cpus"]),
        inputs={name: list(array.shape) for name, array in feeds.items()},
        quiet=not noise,
        noise_note="; ".join(noise) or None,
    )


def random_feeds(
    signature: Signature, dims: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the right type and shape for a model: good enough for times, not for accuracy.

    Floats are uniform in [0, 1). Integers and truth values are 1, which is a valid token, mask,
    index and position in nearly every model.

    Args:
        signature: The model's inputs.
        dims: Numbers for symbolic dimensions; an unnamed leading one is the batch and 1.
        seed: Seed of the floats.

    Raises:
        DataError: A dimension or type is unknown.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    feeds: dict[str, npt.NDArray[Any]] = {}
    for spec in signature.inputs:
        shape = _shape(spec, dims or {})
        kind = np.dtype(spec.dtype) if spec.dtype in np.sctypeDict else None
        if kind is None or kind.kind not in "fiub":
            raise DataError(
                f"cannot make up values of type {spec.dtype}",
                where=f"input {spec}",
                cure="give data",
            )
        values = rng.random(shape) if kind.kind == "f" else np.ones(shape)
        feeds[spec.name] = values.astype(kind)
    return feeds


def _shape(spec: TensorSpec, dims: Mapping[str, int]) -> tuple[int, ...]:
    cure = "give the numbers of its dimensions"
    if spec.shape is None:
        raise DataError("its shape is unknown", where=f"input {spec}", cure=cure)
    shape = []
    for place, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif dim in dims:
            shape.append(dims[str(dim)])
        elif place == 0:
            shape.append(1)
        else:
            raise DataError(
                f"dimension {dim or '?'!r} has no number", where=f"input {spec}", cure=cure
            )
    return tuple(shape)
