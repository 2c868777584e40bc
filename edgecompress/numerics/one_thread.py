"""torch on one thread for a while: sums of products depend on how many threads share them out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["alone", "one_thread"]

# The number of threads is the process's, and a worker of a cluster may run several shards at once.
_one_at_a_time = threading.RLock()


def alone() -> None:
    """What each thread of a pool starts with: sums depend on how many threads share them."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Let torch compute on one thread in this one; yield how many it had."""
    with _one_at_a_time:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield before
        finally:
            torch.set_num_threads(before)
