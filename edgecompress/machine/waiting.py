"""How long a process could have run but had to wait for a processor.

Worker processes import this, perhaps in an environment that has nothing else.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["waited_ms"]

_TASKS = Path("/proc/self/task")


def waited_ms() -> float | None:
    """Milliseconds that the threads of this process have waited so far; None where unknown.

    The second figure of ``schedstat`` (kernel documentation, ``scheduler/sched-stats.rst``): time
    on a run queue. Other programs on the same processors show there, sleeping does not.
    """
    waited = 0
    try:
        for task in _TASKS.iterdir():
            try:
                waited += int((task / "schedstat").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                continue
    except (OSError, ValueError, IndexError):
        return None
    return waited / 1e6
