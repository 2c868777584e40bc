"""Text files as records of columns: lines, tables and JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edgecompress.data.text_records import Lines, Records, index_records
from edgecompress.errors import DataError, nearest

__all__ = ["TEXT_SUFFIXES", "Column", "index"]

TEXT_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")

Column = int | str
"""Name of a column, or its number from 1."""


def index(
    file: Path, name: str, texts: Sequence[Column], labels: Column | None, header: bool | None
) -> Records:
    """Go through a file once, check every record, and note where it lies.

    Args:
        file: ``.txt``: each line that is not blank is a record. ``.csv`` and ``.tsv``: a table,
            separated by tabs where its first line has any (quotes are then plain characters), else
            by semicolons or commas. ``.jsonl``: an object per line.
        name: What to call it in errors.
        texts: Columns of text; none for the only column there is.
        labels: Column of labels.
        header: Whether a table starts with the names of its columns; None: where a column is
            asked for by name.

    Raises:
        DataError: It is empty, not UTF-8, or a record lacks a column.
    """
    if file.suffix.lower() == ".txt":
        if texts or labels is not None:
            raise DataError(
                "a .txt file has no columns: each line is a text",
                where=name,
                cure="save texts and labels as .tsv, .csv or .jsonl to name columns",
            )
        return index_records(file, name, Lines, _line)
    if file.suffix.lower() == ".jsonl":
        return _index_json(file, name, texts, labels)
    return _index_table(file, name, texts, labels, header)


def _line(raw: bytes) -> list[Any]:
    return [raw.decode("utf-8").rstrip("\r\n")]


def _index_json(file: Path, name: str, texts: Sequence[Column], labels: Column | None) -> Records:
    with file.open("rb") as stream:
        first = next((line for line in Lines(stream, name) if line.strip()), "{}")
    known = list(_object(first, f"{name}, line 1"))
    keys = [str(key) for key in texts] or _only(known, labels, name)
    wanted = [*keys, *([] if labels is None else [str(labels)])]

    def check(line: str, where: str) -> list[Any]:
        record = _object(line, where)
        for key in wanted:
            if key not in record:
                raise DataError(f"has no column {key!r}; {nearest(key, record)}", where=where)
        for key in keys:
            value = record[key]
            words = isinstance(value, list) and all(isinstance(word, str) for word in value)
            if not isinstance(value, str) and not words:
                kind = type(value).__name__
                raise DataError(
                    f"column {key!r}: expected a text or a list of words, got {kind}", where=where
                )
        return [record[key] for key in wanted]

    def parse(raw: bytes) -> list[Any]:
        record = json.loads(raw)
        return [record[key] for key in wanted]

    return index_records(file, name, Lines, parse, labels is not None, check)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"is not JSON: {error}", where=where, cure="write one JSON object per line"
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"expected a JSON object, got {type(record).__name__}", where=where)
    return record


class _Table:
    """Records of a table; quoted fields may hold line ends."""

    def __init__(self, stream: BinaryIO, name: str, delimiter: str) -> None:
        self._lines, self._name = Lines(stream, name), name
        self._reader = _reader(self._lines, delimiter)

    def __iter__(self) -> _Table:
        return self

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as error:
            raise DataError(
                f"cannot be read as a table: {error}",
                where=f"{self._name}, line {self.number}",
                cure="double the quotes inside of quoted fields, or separate columns by tabs: "
                "quotes are plain characters then",
            ) from error

    @property
    def end(self) -> int:
        return self._lines.end

    @property
    def number(self) -> int:
        return self._lines.number


def _reader(lines: Any, delimiter: str) -> Any:
    if delimiter == "\t":
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _index_table(
    file: Path, name: str, texts: Sequence[Column], labels: Column | None, header: bool | None
) -> Records:
    with file.open("rb") as stream:
        first = next(Lines(stream, name), "")
    tabs = file.suffix.lower() == ".tsv" or "\t" in first
    delimiter = "\t" if tabs else ";" if first.count(";") > first.count(",") else ","
    with file.open("rb") as stream:
        names = next(_Table(stream, name, delimiter), [])
    asked: list[Column] = [*texts, *([] if labels is None else [labels])]
    if header is None:
        header = any(not str(column).isdecimal() for column in asked)
    columns = [_position(column, names if header else None, len(names), name) for column in asked]
    if not texts:
        known = names if header else [str(i + 1) for i in range(len(names))]
        columns = [known.index(_only(known, labels, name)[0]), *columns]

    def check(record: list[str], where: str) -> list[str]:
        if len(record) <= max(columns):
            raise DataError(
                f"expected at least {max(columns) + 1} columns, got {len(record)}",
                where=where,
                cure="repair or remove this line",
            )
        return [record[i] for i in columns]

    def parse(raw: bytes) -> list[str]:
        record = next(_reader(io.StringIO(raw.decode("utf-8"), newline="\n"), delimiter))
        return [record[i] for i in columns]

    def table(stream: BinaryIO, name: str) -> _Table:
        return _Table(stream, name, delimiter)

    return index_records(file, name, table, parse, labels is not None, check, skip=int(header))


def _position(column: Column, names: list[str] | None, count: int, where: str) -> int:
    if names is not None and str(column) in names:
        return names.index(str(column))
    if str(column).isdecimal() and 1 <= int(column) <= count:
        return int(column) - 1
    known = f"there are {count}" if names is None else nearest(str(column), names)
    raise DataError(
        f"has no column {column!r}; {known}",
        where=where,
        cure="name columns by the header, or by number from 1 where there is none",
    )


def _only(known: Sequence[str], labels: Column | None, where: str) -> list[str]:
    left = [name for name in known if name != str(labels)]
    if len(left) != 1:
        raise DataError(
            f"which column holds the text? there are: {', '.join(known)}",
            where=where,
            cure='name it: text = "...", texts = [...] or pair = [...]',
        )
    return left
