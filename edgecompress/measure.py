"""Measurement: latency, memory, load time, size and time per operator, with their conditions.

Each model is loaded in a fresh process of its own. Models that are compared take turns in small
blocks of runs, forwards and backwards, so that other load on the machine hits all of them alike;
their ratio is the median over the blocks.

This module loads neither a runtime nor torch before something is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import MeasurementError, nearest
from edgecompress.files import ScratchFolder
from edgecompress.measurement_records import (
    Conditions,
    Latency,
    Measurement,
    Memory,
    OperatorTime,
)
from edgecompress.random_feeds import random_feeds

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.runtimes import Artifact
    from edgecompress.runtimes._peer import Peer
    from edgecompress.runtimes._trials import Start
    from edgecompress.target import TargetProfile

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = [
    "Measurement",
    "Latency",
    "Memory",
    "OperatorTime",
    "Conditions",
    "measure",
    "reachable",
    "random_feeds",
]


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
        MeasurementError: A file is missing, cannot be loaded or run, or its worker died or hung;
            where the runtime crashed, it names the first node that makes it do so.
    """
    from edgecompress.devices import connect
    from edgecompress.machine.noise import NoiseMeter
    from edgecompress.runtimes._onnx_file import artifact_of
    from edgecompress.runtimes._sizes import compressed_bytes
    from edgecompress.runtimes._trials import OperatorTimes, operator_times, run_in_turn
    from edgecompress.trial_records import measurement, unsteady

    if reference is not None and reference not in artifacts:
        raise MeasurementError(
            f"unknown reference {reference!r}; {nearest(reference, artifacts)}", where="measure"
        )
    files = {name: artifact_of(each) for name, each in artifacts.items()}
    # Before anything is timed, since it keeps a processor busy.
    compressed = {name: compressed_bytes(artifact.files) for name, artifact in files.items()}
    can, reason = reachable(profile, device)
    if not can:
        return {
            name: Measurement(
                basis="unknown",
                reason=reason,
                size_bytes=artifact.size_bytes,
                compressed_bytes=compressed[name],
            )
            for name, artifact in files.items()
        }
    settings = profile.measurement
    with ScratchFolder() as folder, connect(_address(profile, device)) as place:

        def start(artifact: Artifact, trace: Path | None) -> Peer:
            return place.start(artifact, profile, feeds, where=str(artifact.path), trace=trace)

        with _crashes_named(start, folder):
            before = place.facts()
            noise_meter = NoiseMeter() if place.here else None
            trials = run_in_turn(files, start, settings, progress)
            noise = place.warnings()
            if noise_meter is not None:
                noise += noise_meter.found(sum(trial.memory["cpu_s"] for trial in trials.values()))
            after = place.facts()
            kernels = {
                name: operator_times(artifact, start, settings, trials[name].run_ms, folder)
                if operators
                else OperatorTimes()
                for name, artifact in files.items()
            }
    base = None if reference is None else trials[reference]
    return {
        name: measurement(
            trial,
            kernels[name],
            base=base,
            size_bytes=files[name].size_bytes,
            compressed_bytes=compressed[name],
            conditions=Conditions(
                cpu=before.cpu,
                os=before.os,
                device=place.address,
                runtime=profile.runtime,
                runtime_version=trial.loaded["version"],
                provider=profile.provider,
                threads=settings.threads,
                cpus=tuple(trial.loaded["cpus"]),
                inputs={name: list(array.shape) for name, array in feeds.items()},
                quiet=not (reasons := [*noise, *unsteady(trial)]),
                noise_note="; ".join(reasons) or None,
                clock_mhz=(before.clock_mhz, after.clock_mhz),
                temperature_c=(before.temperature_c, after.temperature_c),
            ),
        )
        for name, trial in trials.items()
    }


@contextmanager
def _crashes_named(start: Start, folder: Path) -> Iterator[None]:
    """Let the error of a runtime that crashed name the node that makes it crash."""
    from edgecompress.runtimes import Artifact
    from edgecompress.runtimes._crash import named_crash
    from edgecompress.runtimes._faults import RuntimeCrashError

    def attempt(model: Path) -> None:
        with start(Artifact((model,)), None) as worker:
            worker.ask("run", count=1, warm=False)

    try:
        yield
    except RuntimeCrashError as crash:
        if crash.where is None:
            raise
        raise named_crash(crash, Path(crash.where), folder, attempt) from None


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
        if not place.here:
            return True, address
        present, reason = runtime_class(profile.runtime)().present(profile)
        return present, address if present else reason
    if profile.device.kind == "none" and device is None:
        return False, f"{profile.name} is a device that cannot be reached from this machine"
    arch = host().arch
    if profile.device.arch not in ("any", arch):
        return False, f"{profile.name} needs an {profile.device.arch} machine, this is {arch}"
    runtime = runtime_class(profile.runtime)
    if not runtime.timed:
        return False, runtime.untimed_reason
    return runtime().present(profile)
