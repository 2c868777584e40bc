"""Activations of many rows: in memory up to a budget, behind it in a memory-mapped file.

The file has no name, so it is gone with the process, however that ends.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from edgecompress.errors import OutputError

__all__ = ["Budget", "Store"]


@dataclass
class Budget:
    """Memory that all stores of a walk share.

    Attributes:
        limit: Bytes of activations that stay in memory; None for all of them.
        folder: Where the scratch files are made; None for the system's temporary folder.
        used: Bytes held now.
        peak: Most bytes held at once.
        spilled: Bytes written to scratch files so far.
    """

    limit: int | None = None
    folder: Path | None = None
    used: int = field(default=0, init=False)
    peak: int = field(default=0, init=False)
    spilled: int = field(default=0, init=False)

    def take(self, size: int) -> bool:
        """Reserve memory, if it is there."""
        if self.limit is not None and self.used + size > self.limit:
            return False
        self.used += size
        self.peak = max(self.peak, self.used)
        return True

    def give(self, size: int) -> None:
        """Hand memory back."""
        self.used -= size


@dataclass(frozen=True)
class _Spilled:
    offset: int
    shape: torch.Size
    dtype: torch.dtype
    size: int


class Store:
    """Values of one name, by batch number."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: dict[int, Tensor] = {}
        self._spilled: dict[int, _Spilled] = {}
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, number: int, values: Tensor) -> None:
        """Keep the values of a batch.

        Raises:
            OutputError: The scratch folder is gone, cannot be written, or the disk is full.
        """
        values = values.detach().to("cpu")
        size = _size(values)
        if self._budget.take(size):
            # A view would keep the whole of what it is a part of.
            shared = values.untyped_storage().nbytes() > size
            self._kept[number] = values.clone() if shared else values
        else:
            self._spill(number, values.contiguous(), size)

    def get(self, number: int) -> Tensor:
        """The values of a batch; what is written to them does not reach the store's file."""
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        place = self._spilled[number]
        if place.size == 0 or self._file is None:
            return torch.empty(place.shape, dtype=place.dtype)
        mapped = mmap.mmap(
            self._file.fileno(), place.size, access=mmap.ACCESS_COPY, offset=place.offset
        )
        return torch.frombuffer(mapped, dtype=place.dtype).reshape(place.shape)

    def drop(self, number: int) -> None:
        """Forget the values of a batch."""
        kept = self._kept.pop(number, None)
        if kept is not None:
            self._budget.give(_size(kept))
        elif self._spilled.pop(number, None) is not None and not self._spilled:
            self._close_file()

    def close(self) -> None:
        """Forget everything and free the disk."""
        self._budget.give(sum(map(_size, self._kept.values())))
        self._kept.clear()
        self._spilled.clear()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._end = None, 0

    def _spill(self, number: int, values: Tensor, size: int) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(  # noqa: SIM115
                    dir=self._budget.folder, prefix="edgecompress-"
                )
            offset = -(-self._end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            self._file.seek(offset)
            # As bytes: numpy does not know all of torch's types.
            self._file.write(values.reshape(-1).view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            folder = self._budget.folder or tempfile.gettempdir()
            raise OutputError(
                f"the scratch folder cannot be written: {error.strerror or error}",
                where=str(folder),
                cure="free some space, name another with --scratch, or allow more --memory",
            ) from error
        self._end = offset + size
        self._budget.spilled += size
        self._spilled[number] = _Spilled(offset, values.shape, values.dtype, size)


def _size(values: Tensor) -> int:
    return values.numel() * values.element_size()
