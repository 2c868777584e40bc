"""From the times and figures of one model's runs to the record that reports hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from edgecompress.measurement_records import (
    Conditions,
    Latency,
    Measurement,
    Memory,
    OperatorTime,
)

if TYPE_CHECKING:
    from edgecompress.runtimes._profile import OperatorRow
    from edgecompress.runtimes._trials import OperatorTimes, Trial

    Clock = Literal["wall_ms", "cpu_ms"]

__all__ = ["measurement", "unsteady"]

_DRIFT = 0.1
_WAITED = 0.03


def measurement(
    trial: Trial,
    kernels: OperatorTimes,
    *,
    base: Trial | None,
    size_bytes: int,
    compressed_bytes: int,
    conditions: Conditions,
) -> Measurement:
    """The record of one model.

    Args:
        trial: Its runs.
        kernels: Time per operator.
        base: Runs of the model that its times are compared with, taken in turn with its own.
        size_bytes: Bytes of its files.
        compressed_bytes: The same after deflate.
        conditions: Under which it ran.
    """
    memory = _memory(trial, kernels.arena)
    return Measurement(
        basis="measured",
        latency_ms=_latency(trial),
        latency_ratio=_ratio(trial, base, "wall_ms"),
        cpu_ratio=_ratio(trial, base, "cpu_ms"),
        load_ms=trial.loaded["load_ms"],
        first_run_ms=trial.first_run_ms,
        peak_memory_mb=memory.peak_mb,
        memory_over_runner_mb=_difference(memory.peak_mb, memory.runner_mb),
        memory=memory,
        size_bytes=size_bytes,
        compressed_bytes=compressed_bytes,
        operators=_operators(kernels.rows),
        conditions=conditions,
    )


def unsteady(trial: Trial) -> list[str]:
    """Reasons to distrust the times of one model."""
    reasons = []
    share = trial.waited_ms / max(sum(map(sum, trial.wall_ms)), 1e-9)
    if share > _WAITED:
        reasons.append(f"it had to wait for a processor for {share:.0%} of the time")
    drift = trial.drift
    if drift is not None and abs(drift - 1) > _DRIFT:
        why = ", as they do where a device gets hot" if drift > 1 else ""
        reasons.append(f"its last runs took {drift:.2f} times as long as its first{why}")
    return reasons


def _latency(trial: Trial) -> Latency:
    import numpy as np

    wall_ms = np.concatenate(trial.wall_ms)
    cpu_ms = [ms for block in trial.cpu_ms for ms in block if not math.isnan(ms)]
    p50, p90, p99 = (float(p) for p in np.percentile(wall_ms, (50, 90, 99)))
    return Latency(
        p50=p50,
        p90=p90,
        p99=p99,
        min=float(wall_ms.min()),
        mean=float(wall_ms.mean()),
        runs=wall_ms.size,
        warmup=trial.warmup,
        cpu_min_ms=min(cpu_ms, default=None),
        drift=trial.drift,
    )


def _ratio(trial: Trial, base: Trial | None, clock: Clock) -> float | None:
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


def _memory(trial: Trial, arena: Mapping[str, int]) -> Memory:
    told = trial.memory
    peak_mb = told.get("peak_mb")
    parts = {key: told.get(key) for key in ("anonymous_mb", "file_mb", "shared_mb")}
    group = {f"group_{key}": figure for key, figure in (told.get("group") or {}).items()}
    return Memory(
        peak_mb=peak_mb,
        basis=told.get("basis") or (None if peak_mb is None else "device"),
        runner_mb=trial.loaded.get("runner_mb"),
        arena_mb={name: size / 1e6 for name, size in {**arena, **told.get("arena", {})}.items()},
        **parts,
        **group,
    )


def _operators(rows: Sequence[OperatorRow]) -> tuple[OperatorTime, ...]:
    total = sum(row.mean_us for row in rows) or 1.0
    return tuple(OperatorTime(**asdict(row), share=row.mean_us / total) for row in rows)
