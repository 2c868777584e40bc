"""Values that outgrow memory: appended to a temporary file without a name, then mapped."""

from __future__ import annotations

import tempfile
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import OutputError

__all__ = ["Spool"]


class Spool:
    """An array of one axis that grows in a temporary file.

    The file has no name where the system allows it, so that nothing is left behind however the
    process ends.

    Args:
        dtype: Of its values.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self.size = 0
        self._file = tempfile.TemporaryFile(prefix="edgecompress-")  # noqa: SIM115
        self._closing = weakref.finalize(self, self._file.close)

    def append(self, values: npt.ArrayLike) -> None:
        """Add values, flattened.

        Raises:
            OutputError: The temporary folder is full.
        """
        flat = np.ascontiguousarray(values, dtype=self.dtype).reshape(-1)
        try:
            self._file.write(flat.view(np.uint8).data)
        except OSError as error:
            raise _full(error) from error
        self.size += len(flat)

    def mapped(self) -> npt.NDArray[Any]:
        """All values, read-only and memory-mapped; the spool takes no more."""
        try:
            self._file.flush()
        except OSError as error:
            raise _full(error) from error
        values: npt.NDArray[Any] = np.empty(0, self.dtype)
        if self.size:
            values = np.memmap(self._file, self.dtype, mode="r", shape=(self.size,))
        self._closing()
        return values


def _full(error: OSError) -> OutputError:
    return OutputError(
        f"rows cannot be kept in a temporary file: {error.strerror or error}",
        where=tempfile.gettempdir(),
        cure="free some space there, or set TMPDIR to another folder",
    )
