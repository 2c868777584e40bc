"""From times of probes to a time for each count: least squares of relative errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgecompress.estimate.kernels import Trace
from edgecompress.estimate.least_squares import left_out, nonnegative
from edgecompress.estimate.op_costs import (
    CALL,
    FAR,
    FAR_WEIGHTS,
    MEMORY_WEIGHTS,
    RUN,
    Work,
    work_of,
)

__all__ = ["Fit", "fit", "works_of", "counts_of", "typical"]

_TYPICAL: Mapping[str, float] = {
    RUN: 7e-6,
    CALL: 3e-7,
    FAR: 4e-11,
    FAR_WEIGHTS: 1e-11,
    MEMORY_WEIGHTS: 5e-11,
    "MACs": 2e-11,
    "narrow": 5e-12,
    "weights": 1e-10,
    "columns": 1e-10,
    "made": 3e-10,
    "read": 1e-10,
    "second": 3e-10,
    "matrices": 1e-7,
    "elements": 4e-10,
    "rows": 2e-8,
    "calls": 3e-7,
    "steps": 1e-6,
}
_PULL = 0.05
_INTEGER_MAC = 4e-12
_MOST = 0.9
_ROUNDS = 3
_LEAST = 0.1


@dataclass(frozen=True)
class Fit:
    """What was learned.

    Attributes:
        seconds: Time of each count, by name.
        error: Factor within which nine of ten probes lie of what the fit to the others says.
    """

    seconds: Mapping[str, float]
    error: float


def typical(count: str) -> float:
    """A likely time of a count on a core of the 2020s, for what no probe tells.

    The fit is pulled to it a little, since some counts always come together and cannot be told
    apart by times alone.
    """
    name = re.sub(r"^.*: ", "", count)
    if name == "MACs" and count.startswith("integer"):
        return _INTEGER_MAC
    return _TYPICAL[name]


def works_of(trace: Trace, cache_bytes: float) -> list[Work]:
    """What each kernel of a run does."""
    return [work_of(kernel, cache_bytes, trace.weight_bytes) for kernel in trace.kernels]


def counts_of(works: Sequence[Work]) -> dict[str, float]:
    """All counts of a run."""
    total = {RUN: 1.0}
    for work in works:
        for name, count in work.counts.items():
            total[name] = total.get(name, 0.0) + count
    return total


def fit(
    runs: Sequence[Mapping[str, float]],
    seconds: Sequence[float],
    weights: Sequence[float] | None = None,
) -> Fit:
    """Times of counts.

    Args:
        runs: Counts of runs.
        seconds: Their times.
        weights: How much the relative error of each matters; default: all alike.
    """
    import numpy as np

    names = sorted({name for run in runs for name in run})
    typically = np.array([typical(name) for name in names])
    counts = np.array([[run.get(name, 0.0) for name in names] for run in runs]) * typically
    times, x = np.array(seconds), np.ones(len(names))
    matter = np.ones(len(runs)) if weights is None else np.array(weights)
    pull = _PULL * np.eye(len(names))
    for _ in range(_ROUNDS):
        # Errors below and above count alike: relative to the mean of found and predicted.
        middle = (np.sqrt(times * np.maximum(counts @ x, 0.1 * times)) / matter)[:, None]
        a = np.vstack([counts / middle, pull])
        b = np.concatenate([times / middle[:, 0], np.full(len(names), _PULL)])
        x = nonnegative(a, b)
    missed = left_out(a, b, x)[: len(runs)] / b[: len(runs)]
    errors = np.abs(np.log(np.maximum(missed, _LEAST)))
    return Fit(
        dict(zip(names, map(float, x * typically), strict=True)),
        math.exp(float(np.quantile(errors, _MOST))),
    )
