"""Calls on several threads, their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

T = TypeVar("T")
R = TypeVar("R")


def in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    prepare: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, R]]:
    """Each item with what the function makes of it.

    Items are taken one after the other, never more than ``threads`` ahead of the last result.

    Args:
        function: Called from the threads; from this one where ``threads`` is 1.
        items: Taken in this thread.
        threads: How many calls may run at once.
        prepare: Called first in each thread that is started.
    """
    if threads == 1:
        for item in items:
            yield item, function(item)
        return
    with ThreadPoolExecutor(threads, "edgecompress", prepare) as pool:
        running: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            if len(running) == threads:
                first, future = running.popleft()
                yield first, future.result()
            running.append((item, pool.submit(function, item)))
        while running:
            first, future = running.popleft()
            yield first, future.result()
