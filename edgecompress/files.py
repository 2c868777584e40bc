"""Files that appear whole or not at all: written aside, flushed, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecompress.errors import OutputError

__all__ = ["write_aside", "folder_aside", "write_text", "write_bytes", "sha256_file"]


def _refused(error: OSError, path: Path) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(
            "no space left on the disk", where=str(path), cure="free some space or write elsewhere"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            "the folder is not writable",
            where=str(path.parent),
            cure="choose another output folder, or change its permissions",
        )
    return OutputError(f"cannot be written: {error.strerror or error}", where=str(path))


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise _refused(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; its files move into ``path`` if the block succeeds.

    Files of the same names in ``path`` are replaced; others there are left alone. The last file
    to move is ``manifest.json``, so that whoever sees a manifest sees all that it speaks of.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path, prefix=".edgecompress-", suffix=".part"))
        yield temporary
        for file in sorted(temporary.iterdir(), key=lambda f: (f.name == "manifest.json", f.name)):
            os.replace(file, path / file.name)
    except OSError as error:
        raise _refused(error, path / "model.onnx") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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
