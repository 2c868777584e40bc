"""Records of a text file: found by byte in one pass, read again when they are needed."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError

__all__ = ["Lines", "Records", "blocks_of_text", "index_records"]

_BOM = b"\xef\xbb\xbf"
_BLOCK_CHARACTERS = 1 << 14


@dataclass(frozen=True)
class Records:
    """Where the records of a file lie; their texts stay on disk.

    Attributes:
        file: The file.
        starts: First byte of each record.
        ends: Byte behind each record.
        labels: Value of the label column of each record, None without such a column.
        parse: From the bytes of one record to the wanted columns, the label last where there is
            one.
    """

    file: Path
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    labels: list[Any] | None
    parse: Callable[[bytes], list[Any]]

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, records: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[list[Any]]:
        """Wanted columns of some records, in the order asked for."""
        with self.file.open("rb") as stream:
            for record in records:
                stream.seek(self.starts[record])
                yield self.parse(stream.read(self.ends[record] - self.starts[record]))


class Lines:
    """Lines of a file in UTF-8, with their place."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        if stream.read(3) != _BOM:
            stream.seek(0)
        self.end, self.number = stream.tell(), 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        self.number += 1
        self.end += len(line)
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{self._name}, line {self.number}", error) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"is not UTF-8: byte {error.object[error.start]:#04x}",
        where=where,
        cure="save the file as UTF-8: iconv -f latin1 -t utf-8",
    )


def index_records(
    file: Path,
    name: str,
    records: Callable[[BinaryIO, str], Any],
    parse: Callable[[bytes], list[Any]],
    labelled: bool = False,
    check: Callable[[Any, str], list[Any]] | None = None,
    skip: int = 0,
) -> Records:
    """Note the place of each record of ``records``, an iterator with ``end`` and ``number``."""
    starts, ends = array("q"), array("q")
    labels: list[Any] = []
    with file.open("rb") as stream:
        found = records(stream, name)
        before = found.end
        for number, record in enumerate(found):
            start, before = before, found.end
            blank = not record.strip() if isinstance(record, str) else not any(record)
            if blank or number < skip:
                continue
            if check is not None:
                values = check(record, f"{name}, line {found.number}")
                if labelled:
                    labels.append(values[-1])
            starts.append(start)
            ends.append(found.end)
    if not starts:
        raise DataError("holds no text", where=name, cure="put one text on each line")
    first, behind = (np.frombuffer(part, np.int64) for part in (starts, ends))
    return Records(file, first, behind, labels if labelled else None, parse)


def blocks_of_text(file: Path, name: str) -> Iterator[str]:
    """The whole text in pieces of about 16 Ki characters, cut behind a line end or a space.

    Raises:
        DataError: It is not UTF-8.
    """
    rest = ""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            while piece := stream.read(_BLOCK_CHARACTERS):
                text = rest + piece
                cut = text.rfind("\n") + 1 or text.rfind(" ") or len(text)
                cut = cut if cut > 0 else len(text)
                yield text[:cut]
                rest = text[cut:]
    except UnicodeDecodeError:
        with file.open("rb") as binary:
            for _ in Lines(binary, name):
                pass
        raise
    if rest:
        yield rest
