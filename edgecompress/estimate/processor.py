"""The processor of a target, as the roofline needs it; what is not known of it is assumed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgecompress.errors import TargetError
from edgecompress.target import machine_arch

if TYPE_CHECKING:
    from edgecompress.estimate.calibration import Calibration
    from edgecompress.target import TargetProfile

__all__ = ["Machine", "check_known", "is_own", "machine_of"]

_DOT_PRODUCTS = ("vnni", "dotprod", "i8mm")
# What the best kernels reach of a published peak, of computing or of memory, and what part of a run
# cannot be shared between threads. With these, estimates for MobileNet v1 and v2 are within a
# factor of 1.5 of the times in the README of google/XNNPACK (2020), where four threads are 2.3 to
# 3.2 times as fast as one: Raspberry Pi 4 and Pixel 2 with 8 float operations per cycle and core,
# Pixel 3a with 16.
_REACHED = 0.6
_SERIAL = 0.1


@dataclass(frozen=True)
class Machine:
    """What the roofline needs to know of a processor.

    Attributes:
        peak_float: Operations per second in float that its best kernels reach.
        peak_integer: The same in 8-bit integers.
        bandwidth: Bytes per second from main memory; None where unknown.
        cache_bytes: Largest cache in front of main memory; None where unknown.
        calls: Cost of a call relative to this machine's.
        own: Whether it is this machine, with the runtime that was calibrated.
        note: What was assumed.
    """

    peak_float: float
    peak_integer: float
    bandwidth: float | None
    cache_bytes: float | None
    calls: float
    own: bool
    note: str

    def peak(self, integer: bool) -> float:
        """Operations per second."""
        return self.peak_integer if integer else self.peak_float


def is_own(profile: TargetProfile) -> bool:
    """Whether a target is this machine, run as it was calibrated."""
    device = profile.device
    return (
        device.kind == "host"
        and device.address in (None, "local")
        and device.arch in ("any", machine_arch())
        and (profile.runtime, profile.provider) == ("onnxruntime", "CPUExecutionProvider")
    )


def machine_of(profile: TargetProfile, calibration: Calibration, threads: int) -> Machine:
    """The processor of a target.

    Raises:
        TargetError: It is no CPU, or the profile has no peak.
    """
    if is_own(profile):
        return Machine(
            peak_float=calibration.peak_float,
            peak_integer=calibration.peak_integer,
            bandwidth=None,
            cache_bytes=None,
            calls=1.0,
            own=True,
            note="calibrated on this machine",
        )
    check_known(profile, threads)
    notes = [f"efficiencies of kernels are carried over from {calibration.cpu}, relative to peaks"]
    single, whole = _peaks(profile, calibration, threads, notes)
    facts = profile.hardware
    core = _reached(profile, "float32", 1, notes) or single
    bandwidth = facts.bandwidth
    if bandwidth is None:
        notes.append("no bandwidth is known: main memory is not looked at")
    else:
        bandwidth *= _part(profile, ("bandwidth",), notes)
    return Machine(
        peak_float=single,
        peak_integer=whole,
        bandwidth=bandwidth,
        cache_bytes=facts.last_cache_bytes,
        calls=max(1.0, calibration.peak_float / core) ** 0.5,
        own=False,
        note="; ".join(notes),
    )


def _peaks(
    profile: TargetProfile, calibration: Calibration, threads: int, notes: list[str]
) -> tuple[float, float]:
    """Peaks in float and in integers; what had to be assumed is added to ``notes``."""
    single = _reached(profile, "float32", threads, notes)
    whole = _reached(profile, "int8", threads, notes)
    if single is not None and whole is not None:
        return single, whole
    if single is not None:
        dots = any(word in str(profile.hardware.figures.get("isa")) for word in _DOT_PRODUCTS)
        taken = "four times that of float, for its dot products," if dots else "that of float"
        notes.append(f"no int8 peak is known: {taken} was taken")
        return single, 4 * single if dots else single
    if whole is not None:
        notes.append("no float peak is known: half of that of int8 was taken")
        return whole / 2, whole
    notes.append(f"kernels of onnxruntime stand in for those of {profile.runtime}")
    return calibration.peak_float, calibration.peak_integer


def _reached(
    profile: TargetProfile, dtype: Literal["float32", "int8"], threads: int, notes: list[str]
) -> float | None:
    """Operations per second that the best kernels get, from the peak of a profile."""
    facts = profile.hardware
    peak = facts.peak(dtype, threads)
    if peak is None:
        return None
    busy = min(threads, facts.figure("cores") or threads)
    together = peak / (1 + _SERIAL * (busy - 1))
    return together * _part(profile, (facts.wanted(dtype), facts.of_a_core(dtype)), notes)


def _part(profile: TargetProfile, quantities: Collection[str], notes: list[str]) -> float:
    """What part of a figure is reached: of a published one not all, of a measured one all."""
    sources = {fact.confidence for fact in profile.facts if fact.quantity in quantities}
    if sources == {"measured"}:
        return 1.0
    note = f"{_REACHED:.0%} of published peaks are taken to be reached"
    if note not in notes:
        notes.append(note)
    return _REACHED


def check_known(profile: TargetProfile, threads: int) -> None:
    """Refuse a target that nothing is known of.

    Raises:
        TargetError: It is no CPU, or has no peak and is not the processor of this machine either.
    """
    facts, device = profile.hardware, profile.device
    if facts.processor != "cpu":
        raise TargetError(
            f"no estimate is possible for {profile.name}: kernels of this machine's CPU tell "
            f"nothing of those of its {facts.processor.upper()}",
            where=profile.name,
            cure="measure there",
        )
    here = device.kind == "host" and device.address is None
    if here and device.arch in ("any", machine_arch()):
        return
    if facts.peak("float32", threads) is None and facts.peak("int8", threads) is None:
        raise TargetError(
            f"no estimate is possible for {profile.name}: it has no peak of its CPU",
            where=profile.name,
            cure=f'give it a fact with quantity = "{facts.wanted("float32")}", or measure there',
        )
