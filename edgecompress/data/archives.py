"""Arrays of .npy and .npz files, memory-mapped where the format allows it."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError

__all__ = ["UNREADABLE", "open_npy", "open_npz", "unreadable"]

Array = npt.NDArray[Any]

UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
"""What numpy raises for files that are broken."""

_MAP_ABOVE_BYTES = 16 << 20
_LOCAL_HEADER = struct.Struct("<26xHH")


def unreadable(where: str, error: Exception, what: str = "") -> DataError:
    """The error for a file that numpy cannot read."""
    return DataError(
        f"{what}cannot be read: {str(error).splitlines()[0] if str(error) else 'it is truncated'}",
        where=where,
        cure="save plain number arrays with numpy.savez or numpy.save, or copy the file again",
    )


def open_npy(file: Path) -> Array:
    """The array of an .npy file, memory-mapped.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except UNREADABLE as error:
        raise unreadable(str(file), error) from error


def open_npz(file: Path) -> Mapping[str, Array]:
    """Arrays of an .npz file by name.

    Raises:
        DataError: It is no archive.
    """
    try:
        return _Archive(file)
    except UNREADABLE as error:
        raise unreadable(str(file), error) from error


class _Archive(Mapping[str, Array]):
    """Arrays of an .npz file, each read when it is asked for; the file is not kept open.

    Large members that are not compressed (``numpy.savez``) are memory-mapped where they lie.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("rb") as stream, self._load(stream) as archive:
            self._names = tuple(archive.files)

    def _load(self, stream: BinaryIO) -> Any:
        # numpy takes a file that is no archive for a pickle, and advises to allow those.
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is no .npz archive")
        stream.seek(0)
        loaded = np.load(stream, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz archive")
        return loaded

    def __getitem__(self, name: str) -> Array:
        with self._file.open("rb") as stream, self._load(stream) as archive:
            member = {i.filename: i for i in archive.zip.infolist()}.get(f"{name}.npy")
            if (
                member is not None
                and member.compress_type == zipfile.ZIP_STORED
                and member.file_size > _MAP_ABOVE_BYTES
                and not member.flag_bits & 1
            ):
                return _mapped(self._file, stream, member)
            found: Array = archive[name]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _mapped(file: Path, stream: BinaryIO, member: zipfile.ZipInfo) -> Array:
    """The array of a stored member, mapped in place; its checksum is compared first."""
    stream.seek(member.header_offset)
    name_bytes, extra_bytes = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    start = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    stream.seek(start)
    _check_sum(stream, member)
    stream.seek(start)
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"it has a header of version {version[0]}.{version[1]}")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    values: Array = np.memmap(file, dtype, mode="r", offset=stream.tell(), shape=shape[::-1])
    return values.T if fortran else values.reshape(shape)


def _check_sum(stream: BinaryIO, member: zipfile.ZipInfo) -> None:
    left, found = member.file_size, 0
    while left:
        chunk = stream.read(min(left, 1 << 20))
        if not chunk:
            raise EOFError("it is truncated")
        found, left = zlib.crc32(chunk, found), left - len(chunk)
    if found != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
