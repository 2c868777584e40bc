"""The table of ONNX operators that can be written.

An operator is one function of the translation and the node. It adds TFLite operators and says
where the node's outputs are found, or raises :class:`RefusalError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from edgecompress.litert_writer.translation import Translation

__all__ = ["RefusalError", "Writer", "find", "known_operators", "op"]

Writer = Callable[["Translation", ir.Node], None]

_WRITERS: dict[str, Writer] = {}


class RefusalError(Exception):
    """A node that cannot be written; the text says why, and what would help."""


def op(*names: str) -> Callable[[Writer], Writer]:
    """Register a function for ONNX operators of the standard domain."""

    def register(function: Writer) -> Writer:
        _WRITERS.update(dict.fromkeys(names, function))
        return function

    return register


def find(name: str) -> Writer | None:
    """The function for an operator, or None."""
    return _WRITERS.get(name)


def known_operators() -> list[str]:
    """Names of all operators that can be written, sorted."""
    return sorted(_WRITERS)
