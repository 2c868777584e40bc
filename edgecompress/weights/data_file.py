"""A file of weights that a model in use reads from, and the guard that it stays the same file."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgecompress.errors import ModelError

__all__ = ["DataFile", "keep_readable"]

_open_files: weakref.WeakSet[DataFile] = weakref.WeakSet()


class DataFile:
    """A file of weights, and a guard that it stays the one that it was.

    Args:
        path: The file.
        held: Its open, unbuffered handle, where it has no name; it is closed with this object.

    Raises:
        ModelError: There is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], held: BinaryIO | None = None) -> None:
        self.path = os.path.abspath(path)
        self._lock = threading.Lock()
        self._held: BinaryIO | None = None
        if held is not None:
            self._hold(held)
            return
        try:
            self._identity = _identify(os.stat(self.path))
        except OSError as error:
            raise self._refused(f"cannot be read: {error.strerror}") from error
        _open_files.add(self)

    def fill(self, start: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes of the file from ``start`` on.

        Raises:
            ModelError: The file is gone, cannot be read, or is another one by now.
        """
        with self._opened() as file:
            file.seek(start)
            done = 0
            while done < len(buffer):
                got = file.readinto(buffer[done:])  # type: ignore[attr-defined]
                if not got:
                    raise self._refused(
                        f"is cut short: expected at least {start + len(buffer):,} bytes, "
                        f"got {start + done:,}"
                    )
                done += got

    def check(self) -> None:
        """See that the file is the one that it was.

        Raises:
            ModelError: It is gone, or another one by now.
        """
        with self._opened():
            pass

    def hold(self) -> None:
        """Keep the content readable after another file has taken the path."""
        if self._held is None:
            with self._opened() as file:
                held = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)
            self._hold(held)

    def append(self, pieces: Iterable[bytes | memoryview], alignment: int) -> int:
        """Write at the end of a file that is held open for it; returns where.

        Raises:
            OSError: The disk is full, or failed.
        """
        with self._opened() as file:
            offset = file.seek(0, os.SEEK_END)
            padding = -offset % alignment
            for piece in (bytes(padding), *pieces):
                rest = memoryview(piece)
                while rest:
                    rest = rest[file.write(rest) :]
            return offset + padding

    def close(self) -> None:
        """Let go of a file that is held; one without a name is gone."""
        if self._held is not None:
            self._held.close()

    def _hold(self, file: BinaryIO) -> None:
        weakref.finalize(self, file.close)
        self._held = file

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self._held is not None:
            with self._lock:
                if self._held.closed:
                    raise self._refused("was closed")
                yield self._held
            return
        try:
            with open(self.path, "rb", buffering=0) as file:
                if _identify(os.fstat(file.fileno())) != self._identity:
                    raise self._refused("changed after the model was loaded")
                yield file
        except OSError as error:
            raise self._refused(f"cannot be read: {error.strerror}") from error

    def _refused(self, what: str) -> ModelError:
        return ModelError(
            f"the data file {what}",
            where=self.path,
            cure="leave it alone while the model is in use; load the model again",
        )


def _identify(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def keep_readable(path: Path) -> None:
    """Let all models in use that read from ``path`` go on doing so when another file takes it."""
    real = os.path.realpath(path)
    for file in [file for file in _open_files if os.path.realpath(file.path) == real]:
        with suppress(ModelError):  # gone or another one before: lost already
            file.hold()
