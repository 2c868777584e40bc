"""Locks that the system itself releases when their holder dies, so that no lock is ever stale.

A lock belongs to an open file or folder, by ``flock``; Windows locks files only, and disks that
cannot lock at all are written to without. Whoever finds a temporary file unlocked knows that the
process which made it is dead.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecompress.errors import BuildError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["Lock", "lock", "locked_new", "only_writer"]

_LOCK_FILE = ".edgecompress.lock"
_WINDOWS = sys.platform == "win32"


@dataclass
class Lock:
    """A lock that is held, or None in its place where the system cannot lock."""

    descriptor: int | None

    def release(self) -> None:
        """Let others have it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def lock(path: Path) -> Lock | None:
    """Lock a file or folder; None where another process holds it, or it is not there any more."""
    if _WINDOWS:  # an open file could not be renamed, and a folder cannot be opened
        return Lock(None)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    return _locked(descriptor, path)


def locked_new(make: Callable[[], Path]) -> tuple[Path, Lock]:
    """Make a temporary file or folder, and lock it before somebody else takes it for a dead one."""
    while True:
        path = make()
        held = lock(path)
        if held is not None:
            return path, held


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only process that builds into ``folder``, and make it where it is missing.

    A folder that was made and is still empty at the end is taken away again.

    Raises:
        BuildError: Another build writes to it; names the process.
        OSError: The folder cannot be made or written.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _LOCK_FILE
    held = _lock_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()  # while it is locked: nobody else's file has this name
        held.release()
        if _WINDOWS:
            with contextlib.suppress(OSError):
                file.unlink()
        for each in made:
            with contextlib.suppress(OSError):  # filled meanwhile
                each.rmdir()


def _lock_file(file: Path) -> Lock:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        held = _locked(descriptor, file)
        if held is not None:
            _sign(descriptor)
            return held
        holder = _holder(file)
        if holder is not None:
            raise BuildError(
                f"another build writes to this folder ({holder})",
                where=str(file.parent),
                cure="wait until it is done, or name another folder with --output",
            )


def _locked(descriptor: int, path: Path) -> Lock | None:
    """Lock what is open; None where another has it, or ``path`` became another file meanwhile."""
    try:
        _take(descriptor)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError:  # the disk cannot lock
        os.close(descriptor)
        return Lock(None)
    held, found = os.fstat(descriptor), None
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
    if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
        os.close(descriptor)
        return None
    return Lock(descriptor)


def _take(descriptor: int) -> None:
    if sys.platform == "win32":
        # Far behind the end, since Windows lets nobody read what is locked.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sign(descriptor: int) -> None:
    """Say who holds the lock; a full disk is no reason not to build."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())


def _holder(file: Path) -> str | None:
    """Who holds the lock; None where it was given back meanwhile."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    return text or "its process is unknown"
