"""The estimate itself: kernels, times what each costs, carried over to the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecompress.estimate.calibration import Calibration, calibrated
from edgecompress.estimate.fitting import typical, works_of
from edgecompress.estimate.kernels import Trace, trace
from edgecompress.estimate.op_costs import CALL, FAR, FAR_WEIGHTS, MEMORY_WEIGHTS, RUN, Work
from edgecompress.estimate.processor import Machine, check_known, is_own, machine_of
from edgecompress.files import ScratchFolder
from edgecompress.target import machine_arch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = ["Estimate", "KernelEstimate", "estimate", "from_trace"]

_MB = 1e6
_FAR = (FAR, FAR_WEIGHTS, MEMORY_WEIGHTS)


@dataclass(frozen=True)
class KernelEstimate:
    """A kernel and its share.

    Attributes:
        name: The runtime's name for it.
        op: Operator that the runtime made of the node.
        kind: Kind of kernel.
        operations: Two per multiply-accumulate, else one per element.
        bytes: Bytes read and written.
        latency_us: Time in microseconds.
        bound: What limits it.
    """

    name: str
    op: str
    kind: str
    operations: float
    bytes: float
    latency_us: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """An estimate; never a measurement.

    Attributes:
        latency_ms: Of one run.
        expected_error: Factor: the truth is expected between the latency over it and times it.
        memory_mb: Weights and the most activations that are alive at a time, in 10^6 bytes.
        kernels: In the order in which they run.
        run_overhead_us: What a run costs beside its kernels.
        note: What it rests on, and how the expected error was found.
    """

    latency_ms: float
    expected_error: float
    memory_mb: float
    kernels: tuple[KernelEstimate, ...]
    run_overhead_us: float
    note: str

    @property
    def by_op(self) -> dict[str, float]:
        """Microseconds by operator, most first."""
        total: dict[str, float] = {}
        for kernel in self.kernels:
            total[kernel.op] = total.get(kernel.op, 0.0) + kernel.latency_us
        return dict(sorted(total.items(), key=lambda pair: -pair[1]))


def estimate(
    model: Model,
    profile: TargetProfile,
    feeds: Arrays,
    *,
    threads: int | None = None,
    calibration: Calibration | None = None,
) -> Estimate:
    """Estimate latency and memory of a model on a target.

    The model is run once on this machine, to learn the shapes and branches that the inputs lead to;
    the time of that run is not used.

    Args:
        model: The model.
        profile: The target.
        feeds: One batch of inputs.
        threads: Threads inside an operator; default: the target's.
        calibration: Of this machine; default: the kept one, or a new one.

    Raises:
        TargetError: The target is no CPU (kernels here tell nothing of those of a GPU or NPU), or
            its profile has no peak.
        MeasurementError: The model cannot be run here, or the machine not be calibrated.
    """
    count = profile.measurement.threads if threads is None else threads
    own = is_own(profile)
    check_known(profile, count)  # before this machine is calibrated, which takes its time
    known = calibrated(count if own else 1) if calibration is None else calibration
    arm = profile.device.arch == "aarch64" and machine_arch() == "x86_64"
    with ScratchFolder() as folder:
        file = model.save(folder / "model.onnx")[0]
        run = trace(file, feeds, folder, arm=arm)
    return from_trace(run, machine_of(profile, known, count), known)


def from_trace(run: Trace, machine: Machine, calibration: Calibration) -> Estimate:
    """The estimate for kernels that are known.

    Args:
        run: The kernels.
        machine: The processor that they are to run on.
        calibration: Of this machine.
    """
    works = works_of(run, calibration.core_cache_bytes)
    crowded = machine.cache_bytes is None or run.peak_bytes > machine.cache_bytes
    kernels = tuple(
        _kernel(name, op, work, machine, calibration, crowded)
        for (name, op), work in zip(
            ((kernel.name, kernel.op) for kernel in run.kernels), works, strict=True
        )
    )
    overhead = 1e6 * calibration.seconds[RUN] * machine.calls
    return Estimate(
        latency_ms=(sum(kernel.latency_us for kernel in kernels) + overhead) / 1e3,
        expected_error=_expected_error(machine, calibration),
        memory_mb=run.peak_bytes / _MB,
        kernels=kernels,
        run_overhead_us=overhead,
        note=f"{machine.note}; {_error_note(machine)}",
    )


def _kernel(
    name: str, op: str, work: Work, machine: Machine, calibration: Calibration, crowded: bool
) -> KernelEstimate:
    costs = {
        count: number * calibration.seconds.get(count, typical(count))
        for count, number in work.counts.items()
    }
    call = costs.pop(CALL) + sum(each for count, each in costs.items() if count.endswith(": calls"))
    # On another device the bytes are held against its own bandwidth.
    busy = sum(
        each
        for count, each in costs.items()
        if not count.endswith(": calls") and (machine.own or count not in _FAR)
    )
    # Of integer kernels only what multiplies goes with the peak of integers; the rest packs and
    # rounds.
    products = costs.get(f"{work.kind}: MACs", 0.0) if work.integer else 0.0
    compute = products * calibration.peak_integer / machine.peak_integer
    compute += (busy - products) * calibration.peak_float / machine.peak_float
    if busy:
        compute = max(compute, work.operations / machine.peak(work.integer))
    memory = work.bytes / machine.bandwidth if machine.bandwidth and crowded else 0.0
    seconds = max(compute, memory)
    fixed = call * machine.calls
    limits = {"compute": compute, "memory": memory, "call": fixed}
    return KernelEstimate(
        name=name,
        op=op,
        kind=work.kind,
        operations=work.operations,
        bytes=work.bytes,
        latency_us=1e6 * (seconds + fixed),
        bound=max(limits, key=lambda limit: limits[limit]),
    )


def _expected_error(machine: Machine, calibration: Calibration) -> float:
    return calibration.error if machine.own else calibration.error * calibration.spread


def _error_note(machine: Machine) -> str:
    found = "expected error: nine of ten probes lie within it when left out of the fit"
    if machine.own:
        return found
    return (
        f"{found}, times the spread of efficiencies between shapes of one kind of kernel; a call "
        "is taken to cost as the root of the peaks' ratio"
    )
