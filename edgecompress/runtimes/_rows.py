"""Times per operator as engines answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["mean_rows"]


def mean_rows(
    times: Mapping[tuple[str, str], Sequence[float]], runs: int, provider: str
) -> dict[str, Any]:
    """Means over runs, for :meth:`edgecompress.runtimes.Engine.end_profiling`.

    Args:
        times: Microseconds of each call, by name and operator.
        runs: How often the model ran.
        provider: What ran them.
    """
    count = max(1, runs)
    return {
        "rows": [
            {
                "name": name,
                "op": op,
                "provider": provider,
                "mean_us": sum(taken) / count,
                "calls": len(taken) / count,
            }
            for (name, op), taken in times.items()
        ]
    }
