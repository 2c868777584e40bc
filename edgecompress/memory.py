"""Memory of this process."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["give_back"]


def give_back() -> None:
    """Hand memory that was freed back to the system.

    The C library of Linux keeps freed pieces below 32 MB for later, in an arena for each thread:
    block after block, the weights of a large model would pile up there.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library than GNU's
        return None
