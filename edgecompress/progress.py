"""How long work tells how far it is; the command line draws a bar from it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "silent"]


class Progress(Protocol):
    """Called as work goes on."""

    def __call__(self, label: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` units of the work called ``label`` are through."""


def silent(label: str, done: int, total: int) -> None:
    """Report nothing."""
