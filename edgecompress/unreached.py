"""What can be said of a model on a device that is not at hand: an estimate, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgecompress.errors import EdgeCompressError
from edgecompress.measurement_records import Latency, Measurement, OperatorTime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.estimate import Estimate
    from edgecompress.model import Model
    from edgecompress.runtimes import Runtime
    from edgecompress.target import TargetProfile

__all__ = ["estimated"]


def estimated(
    model: Model,
    runtime: Runtime,
    profile: TargetProfile,
    feeds: Mapping[str, npt.NDArray[np.generic]],
    *,
    size_bytes: int,
    why: str,
) -> Measurement:
    """The vendor's estimate, else a roofline from the target's facts, else ``unknown``.

    Args:
        model: The model.
        runtime: The target's runtime.
        profile: The target.
        feeds: One batch of inputs.
        size_bytes: Of the files for the target.
        why: Why it was not measured.
    """
    from edgecompress.estimate import estimate

    try:
        vendor = runtime.estimate(model, profile)
        if vendor is not None:
            return Measurement(
                basis="estimated",
                reason=why,
                note=str(vendor["source"]),
                latency_ms=_latency(vendor["latency_ms"]),
                peak_memory_mb=vendor["memory_mb"],
                size_bytes=size_bytes,
            )
        return _of(estimate(model, profile, feeds), size_bytes, why)
    except EdgeCompressError as error:
        return Measurement(basis="unknown", reason=f"{why}; {error.what}", size_bytes=size_bytes)


def _of(found: Estimate, size_bytes: int, why: str) -> Measurement:
    whole = sum(kernel.latency_us for kernel in found.kernels) or 1.0
    return Measurement(
        basis="estimated",
        reason=why,
        note=found.note,
        expected_error=found.expected_error,
        latency_ms=_latency(found.latency_ms),
        peak_memory_mb=found.memory_mb,
        size_bytes=size_bytes,
        operators=tuple(
            OperatorTime(
                name=kernel.name,
                op=kernel.op,
                provider="estimated",
                mean_us=kernel.latency_us,
                share=kernel.latency_us / whole,
                calls=1,
            )
            for kernel in sorted(found.kernels, key=lambda each: -each.latency_us)
        ),
    )


def _latency(milliseconds: float) -> Latency:
    """One figure in the place of all: nothing ran that could differ."""
    return Latency(
        p50=milliseconds,
        p90=milliseconds,
        p99=milliseconds,
        min=milliseconds,
        mean=milliseconds,
        runs=0,
        warmup=0,
    )
