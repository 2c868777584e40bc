"""Budgets and their verdicts. Only a measurement passes one, unless the recipe allows estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgecompress.measure import Measurement
from edgecompress.report.data import BudgetVerdict

__all__ = ["Found", "judge_budgets"]

Basis = Literal["measured", "estimated", "unknown"]

_UNITS = {
    "latency_ms": "ms",
    "latency_ratio": "ratio",
    "memory_mb": "MB",
    "size_mb": "MB",
    "size_ratio": "ratio",
    "metric_drop": "",
}


@dataclass(frozen=True)
class Found:
    """What budgets are held against.

    Attributes:
        measurement: Of the model, its ratio taken to the reference.
        size_bytes: Of the delivered file.
        reference_bytes: Of the float file, or None where there is none.
        metric_drop: By how much the metric got worse, or None where it was not taken.
    """

    measurement: Measurement | None
    size_bytes: int
    reference_bytes: int | None
    metric_drop: float | None


def judge_budgets(
    limits: Mapping[str, float], found: Found, *, allow_estimate: bool = False
) -> list[BudgetVerdict]:
    """A verdict for each budget; a value that is unknown does not pass.

    Args:
        limits: Budget name -> the largest value that passes.
        found: The values.
        allow_estimate: Let an estimate pass too.
    """
    verdicts = []
    for name, limit in limits.items():
        value, basis = _value(name, found)
        trusted = basis == "measured" or (basis == "estimated" and allow_estimate)
        verdicts.append(
            BudgetVerdict(
                name=name,
                limit=limit,
                value=value,
                unit=_UNITS[name],
                basis=basis,
                passed=value is not None and trusted and value <= limit,
            )
        )
    return verdicts


def _value(name: str, found: Found) -> tuple[float | None, Basis]:
    if name == "size_mb":
        return found.size_bytes / 1e6, "measured"
    if name == "size_ratio":
        if not found.reference_bytes:
            return None, "unknown"
        return found.size_bytes / found.reference_bytes, "measured"
    if name == "metric_drop":
        return found.metric_drop, "unknown" if found.metric_drop is None else "measured"
    measurement = found.measurement
    if measurement is None:
        return None, "unknown"
    value = {
        "latency_ms": None if measurement.latency_ms is None else measurement.latency_ms.p50,
        "latency_ratio": measurement.latency_ratio,
        "memory_mb": measurement.peak_memory_mb,
    }[name]
    return value, "unknown" if value is None else measurement.basis
