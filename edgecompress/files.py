"""Files that appear whole or not at all, and what a process that was killed has left of them.

What is written lies aside until it is whole. A single file then replaces its elder by one rename.
Several files that belong together are declared whole by one rename of their folder, from ``.part``
to ``.ready``, and move to their places afterwards; where that is cut short, the next writer of the
folder finishes it. Temporary files are locked by whoever writes them, so that the next writer
knows those of the dead, and removes them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from edgecompress.errors import OutputError
from edgecompress.locks import Lock, lock, locked_new

__all__ = [
    "write_aside",
    "folder_aside",
    "finish_earlier",
    "finish_all",
    "flush",
    "refused",
    "is_full",
    "write_text",
    "write_bytes",
    "sha256_file",
    "ScratchFolder",
]

_ASIDE = ".edgecompress-"
_PART, _READY = ".part", ".ready"
_SCRATCH = "edgecompress-scratch-"
_MANIFEST, _REMOVED = "manifest.json", ".removed"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refused(error: OSError, path: Path) -> OutputError:
    """What the system said against writing ``path``, with what can be done about it."""
    if is_full(error):
        return _full(error, path)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            "the folder is not writable",
            where=str(path.parent),
            cure="choose another output folder, or change its permissions",
        )
    if error.errno == errno.ENOENT:
        return OutputError(
            "the folder vanished while it was written to",
            where=str(path.parent),
            cure="run again, and keep cleaners away from it",
        )
    return OutputError(f"cannot be written: {error.strerror or error}", where=str(path))


def is_full(error: OSError) -> bool:
    """Whether the system said that a disk is full."""
    # numpy says in words alone how many of its items were written.
    return error.errno in _FULL or (error.errno is None and " requested and " in str(error))


def _full(error: OSError, path: Path) -> OutputError:
    place = next((each for each in (path, *path.parents) if each.exists()), Path())
    free = ": the quota is used up" if error.errno == errno.EDQUOT else ""
    with suppress(OSError):
        free = free or f": {shutil.disk_usage(place).free / 1e6:,.1f} MB are free"
    scratch = Path(tempfile.gettempdir())
    temporary = next((p for p in path.parents if p.parent == scratch), None)
    if temporary is not None and temporary.name.startswith(_SCRATCH):
        return OutputError(
            f"no space left on the disk of temporary files{free}",
            where=str(scratch),
            cure="free some space, or set TMPDIR to a folder on a larger disk",
        )
    return OutputError(
        f"no space left on the disk{free}",
        where=str(path),
        cure="free some space or write elsewhere",
    )


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    held = Lock(None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead(path.parent, f".{path.name}.", _PART)
        temporary, held = locked_new(lambda: _new_file(path))
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise refused(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        else:  # an interrupt came between making the file and knowing its name
            with contextlib.suppress(OSError):
                _remove_dead(path.parent, f".{path.name}.", _PART)
        held.release()


def _new_file(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
    os.close(handle)
    return Path(name)


@contextmanager
def folder_aside(path: Path, *, owned: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; its files move into ``path`` if the block succeeds.

    Files of the same names in ``path`` are replaced. An old ``manifest.json`` goes first and a new
    one comes last, so that whoever sees a manifest sees all that it speaks of. A process that is
    killed before all files are whole leaves ``path`` as it was; one that is killed while they move
    leaves the rest to :func:`finish_earlier`.

    Args:
        path: The folder.
        owned: Names that are removed from ``path`` where the block has not written them. All other
            files there are left alone.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    held = Lock(None)
    try:
        path.mkdir(parents=True, exist_ok=True)
        finish_earlier(path)
        temporary, held = locked_new(
            lambda: Path(tempfile.mkdtemp(dir=path, prefix=_ASIDE, suffix=_PART))
        )
        yield temporary
        gone = sorted(set(owned) - {file.name for file in temporary.iterdir()})
        (temporary / _REMOVED).write_text("\n".join(gone), encoding="utf-8")
        ready = temporary.with_suffix(_READY)
        temporary.rename(ready)
        _move_in(ready, path)
    except OSError as error:
        raise refused(error, path / "model.onnx") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        held.release()


def finish_earlier(folder: Path) -> None:
    """Bring to its end what a process that was killed has begun in ``folder``.

    Files that were all written move to their places; others are removed.

    Raises:
        OSError: The files cannot be moved.
    """
    for ready, held in _dead(folder, _ASIDE, _READY):
        try:
            _move_in(ready, folder)
        finally:
            held.release()
    _remove_dead(folder, _ASIDE, _PART)


def finish_all(folder: Path) -> None:
    """Do :func:`finish_earlier` in ``folder`` and in the folders below it, as far as it goes."""
    with suppress(OSError):
        for place in (folder, *(each for each in folder.iterdir() if each.is_dir())):
            finish_earlier(place)
            _remove_dead(place, ".", _PART)


def _move_in(ready: Path, path: Path) -> None:
    """Put files in their places; may be called again where it was cut short."""
    try:
        _move(ready, path)
    except OSError:
        raise
    except BaseException:  # an interrupt: half of the files would be worse than all of them
        _move(ready, path)
        raise


def _move(ready: Path, path: Path) -> None:
    removed = ready / _REMOVED
    gone = removed.read_text(encoding="utf-8").split("\n") if removed.exists() else []
    if (ready / _MANIFEST).exists():
        gone.append(_MANIFEST)
    for name in filter(None, gone):
        (path / name).unlink(missing_ok=True)
    for file in sorted(ready.iterdir(), key=lambda file: (file.name == _MANIFEST, file.name)):
        if file != removed:
            os.replace(file, path / file.name)
    shutil.rmtree(ready, ignore_errors=True)


def _dead(folder: Path, prefix: str, suffix: str) -> Iterator[tuple[Path, Lock]]:
    """Temporary files and folders that no living process holds; the caller releases the locks."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(prefix) and entry.name.endswith(suffix):
                held = None
                with suppress(OSError):  # another user's
                    held = lock(Path(entry.path))
                if held is not None and held.descriptor is not None:
                    yield Path(entry.path), held


def _remove_dead(folder: Path, prefix: str, suffix: str) -> None:
    for path, held in _dead(folder, prefix, suffix):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        held.release()


class ScratchFolder:
    """A temporary folder; making one removes those of processes that were killed.

    In a ``with`` block, errors of a full disk or a folder that vanished name the temporary folder.

    Attributes:
        path: The folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Make one.

        Args:
            parent: Where; None for the system's folder of temporary files.

        Raises:
            OutputError: There is no place for temporary files.
        """
        try:
            place = Path(tempfile.gettempdir()) if parent is None else parent
            _remove_dead(place, _SCRATCH, "")
            self.path, self._lock = locked_new(
                lambda: Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=place))
            )
        except OSError as error:
            raise _no_place(error, parent) from error
        self._finalizer = weakref.finalize(self, _discard, self.path, self._lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder.

        Raises:
            OutputError: The block failed since the disk is full or the folder vanished.
        """
        there = self.path.is_dir()
        self._finalizer()
        if isinstance(error, OSError):
            if is_full(error):
                raise _full(error, self.path / "file") from error
            named = str(error.filename).startswith(os.fspath(self.path))
            if named or (not there and error.filename is None):
                raise OutputError(
                    "the temporary folder vanished, or files in it did, while they were needed",
                    where=str(self.path),
                    cure="run again, and keep cleaners away from it, or set TMPDIR to another",
                ) from error


def _no_place(error: OSError, parent: Path | None) -> OutputError:
    if parent is not None:
        return OutputError(
            f"the scratch folder cannot be written: {error.strerror or error}",
            where=str(parent),
            cure="name a folder that exists and can be written",
        )
    return OutputError(
        f"there is no folder for temporary files: {error.strerror or error}",
        where=os.environ.get("TMPDIR"),
        cure="set TMPDIR to a folder that exists and can be written",
    )


def _discard(path: Path, held: Lock) -> None:
    shutil.rmtree(path, ignore_errors=True)
    held.release()


def flush(folder: Path) -> None:
    """See that all files of ``folder`` are on the disk, not only on their way to it.

    Raises:
        OSError: They cannot be written.
    """
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with write_aside(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
