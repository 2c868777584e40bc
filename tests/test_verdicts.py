"""Budgets: what passes them, and what never does."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgecompress.measure import Latency, Measurement
from edgecompress.recipe import BudgetSpec
from edgecompress.verdicts import Found, judge_budgets

MEASURED = Measurement(
    basis="measured",
    latency_ms=Latency(
        p50=2.0, p90=9.0, p99=9.0, min=1.0, mean=3.0, runs=5, warmup=1, cpu_min_ms=1.0
    ),
    latency_ratio=0.5,
    peak_memory_mb=60.0,
    size_bytes=3_000_000,
)
ESTIMATED = MEASURED.model_copy(update={"basis": "estimated"})
UNKNOWN = Measurement(basis="unknown", reason="out of reach", size_bytes=3_000_000)


def found(measurement: Measurement | None = MEASURED, **changes: Any) -> Found:
    values = {"size_bytes": 3_000_000, "reference_bytes": 12_000_000, "metric_drop": 0.01}
    return Found(measurement=measurement, **{**values, **changes})


# Budget, limit, what was found, estimates allowed, then value, basis and verdict.
CASES: list[tuple[str, float, Found, bool, float | None, str, bool]] = [
    ("latency_ms", 2.0, found(), False, 2.0, "measured", True),
    ("latency_ms", 1.9, found(), False, 2.0, "measured", False),
    ("latency_ms", 5.0, found(ESTIMATED), False, 2.0, "estimated", False),
    ("latency_ms", 5.0, found(ESTIMATED), True, 2.0, "estimated", True),
    ("latency_ms", 1.0, found(ESTIMATED), True, 2.0, "estimated", False),
    ("latency_ms", 5.0, found(UNKNOWN), False, None, "unknown", False),
    ("latency_ms", 5.0, found(UNKNOWN), True, None, "unknown", False),
    ("latency_ms", 5.0, found(None), True, None, "unknown", False),
    ("latency_ratio", 0.5, found(), False, 0.5, "measured", True),
    ("latency_ratio", 0.4, found(), False, 0.5, "measured", False),
    ("latency_ratio", 0.4, found(UNKNOWN), True, None, "unknown", False),
    ("memory_mb", 60.0, found(), False, 60.0, "measured", True),
    ("memory_mb", 59.0, found(), False, 60.0, "measured", False),
    ("memory_mb", 59.0, found(UNKNOWN), True, None, "unknown", False),
    ("size_mb", 3.0, found(), False, 3.0, "measured", True),
    ("size_mb", 2.9, found(), False, 3.0, "measured", False),
    ("size_mb", 3.0, found(UNKNOWN), False, 3.0, "measured", True),
    ("size_ratio", 0.25, found(), False, 0.25, "measured", True),
    ("size_ratio", 0.24, found(), False, 0.25, "measured", False),
    ("size_ratio", 0.25, found(reference_bytes=None), True, None, "unknown", False),
    ("metric_drop", 0.01, found(), False, 0.01, "measured", True),
    ("metric_drop", 0.0, found(), False, 0.01, "measured", False),
    ("metric_drop", 0.0, found(metric_drop=-0.1), False, -0.1, "measured", True),
    ("metric_drop", 9.0, found(metric_drop=math.inf), False, math.inf, "measured", False),
    ("metric_drop", 9.0, found(metric_drop=math.nan), False, math.nan, "measured", False),
    ("metric_drop", 9.0, found(metric_drop=None), True, None, "unknown", False),
]


@pytest.mark.parametrize(
    ("name", "limit", "what", "allow_estimate", "value", "basis", "passed"), CASES
)
def test_verdict(
    name: str,
    limit: float,
    what: Found,
    allow_estimate: bool,
    value: float | None,
    basis: str,
    passed: bool,
) -> None:
    (verdict,) = judge_budgets({name: limit}, what, allow_estimate=allow_estimate)
    assert (verdict.name, verdict.limit) == (name, limit)
    assert (verdict.basis, verdict.passed) == (basis, passed)
    assert verdict.value == pytest.approx(value, nan_ok=True)


def test_there_is_a_verdict_for_every_budget_that_a_recipe_may_name() -> None:
    limits = dict.fromkeys(BudgetSpec.model_fields, 1000.0)
    verdicts = judge_budgets(limits, found())
    assert [verdict.name for verdict in verdicts] == list(limits)
    assert all(verdict.passed for verdict in verdicts)
