"""Text files as columns of token ids, with the labels that lie beside the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.callables import IGNORED_LABEL
from edgecompress.data.spool import Spool
from edgecompress.data.text_files import Column, index
from edgecompress.data.text_records import Records, blocks_of_text
from edgecompress.data.text_setting import TextOptions, TextSetting
from edgecompress.data.tokenizer import Encoded, Text, read_json
from edgecompress.data.tokens import TokenRows, Tokens, Window
from edgecompress.errors import DataError, nearest

__all__ = ["TOKEN_ARRAYS", "TextColumn", "Texts", "open_texts"]

Rows = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]

TOKEN_ARRAYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""What a text can feed, under these names."""

_AT_ONCE = 512


@dataclass(frozen=True)
class Texts:
    """Rows of text, encoded when a split takes some of them.

    Attributes:
        setting: Tokenizer and lengths.
        source: Records of a file, or windows over its whole text.
        group: Texts of one record, each a row: rows ``group * i`` onwards are of record ``i``.
        paired: The two texts of a record are encoded together.
        classes: Label names by number, where labels of words are names.
        token_labels: Each record has a list of labels, one per word.
        name: Of the file, for messages.
    """

    setting: TextSetting
    source: Records | Window
    group: int
    paired: bool
    classes: tuple[str, ...]
    token_labels: bool
    name: str

    def __len__(self) -> int:
        return len(self.source) * self.group

    def take(self, rows: Rows) -> TokenRows:
        """Rows of one split, ascending."""
        encode = self.source.encode if isinstance(self.source, Window) else self._encode
        setting = self.setting
        return TokenRows(rows, encode, setting.length, setting.loaded.pad, self.name)

    def _encode(self, rows: Rows) -> Iterator[Tokens]:
        waiting = self._texts(rows)
        while part := list(islice(waiting, _AT_ONCE)):
            texts = [text for text, _ in part]
            encoded = self.setting.loaded.encode(texts, self.setting.longest)
            for found, (_, labels) in zip(encoded, part, strict=True):
                yield Tokens(found, None if labels is None else self._aligned(found, labels))

    def _texts(self, rows: Rows) -> Iterator[tuple[Text, list[Any] | None]]:
        assert isinstance(self.source, Records)
        for row, record in zip(rows, self.source.read(rows // self.group), strict=True):
            labels = record.pop() if self.token_labels else None
            text: Text = (record[0], record[1]) if self.paired else record[row % self.group]
            if isinstance(text, list) != self.token_labels or (
                labels is not None and len(labels) != len(text)
            ):
                raise DataError(
                    f"record {row // self.group}: words and labels do not fit one another",
                    where=self.name,
                    cure="give lists of the same length: a word and its label each, or a text "
                    "and one label",
                )
            yield text, labels

    def _aligned(self, encoded: Encoded, labels: list[Any]) -> list[int]:
        """A label for the first token of each word, as token classifiers are trained."""
        aligned, before = [], None
        for word in encoded.words:
            first = word is not None and word != before
            aligned.append(
                self._number(labels[word]) if first and word is not None else IGNORED_LABEL
            )
            before = word
        return aligned

    def _number(self, label: Any) -> int:
        number = self.classes.index(label) if label in self.classes else _number(label)
        if not isinstance(number, int):
            raise DataError(
                f"expected the number or name of a class for each word, got {label!r:.60}",
                where=self.name,
            )
        return number


@dataclass(frozen=True)
class TextColumn:
    """One of the arrays that texts become.

    Attributes:
        texts: The rows.
        array: One of ``TOKEN_ARRAYS``.
    """

    texts: Texts
    array: str

    def __len__(self) -> int:
        return len(self.texts)


def open_texts(
    file: Path, name: str, options: TextOptions, setting: TextSetting
) -> tuple[Texts, Labels | None]:
    """Index a text file, and read its labels.

    Args:
        file: ``.txt``, ``.csv``, ``.tsv`` or ``.jsonl``.
        name: What to call it in errors.
        options: Which columns.
        setting: Tokenizer and lengths.

    Returns:
        The rows, and the labels of records: integers, numbers, or numbers of classes.

    Raises:
        DataError: The file or its labels cannot be used, or there is no tokenizer.
        MissingDependencyError: The tokenizer's library is not installed.
    """
    if options.blocks:
        return _open_blocks(file, name, options, setting), None
    columns: Sequence[Column] = options.pair or options.columns
    records = index(file, name, columns, options.labels, options.header)
    labels = records.labels
    names = _class_names(labels, setting.folder, name)
    nested = bool(labels) and isinstance(labels, list) and isinstance(labels[0], list)
    group = 1 if options.pair else max(1, len(options.columns))
    if nested and (group > 1 or options.pair is not None):
        raise DataError("labels of words need one text per record", where=name)
    texts = Texts(setting, records, group, options.pair is not None, names, nested, name)
    _ = setting.loaded, setting.longest  # their errors belong here
    return texts, None if labels is None or nested else _numbers(labels, names, name)


def _open_blocks(file: Path, name: str, options: TextOptions, setting: TextSetting) -> Texts:
    if file.suffix.lower() != ".txt" or options.columns or options.pair or options.labels:
        raise DataError(
            "blocks are cut from a whole .txt file, without columns or labels", where=name
        )
    longest = setting.longest
    if longest is None:
        raise DataError(
            "blocks need a length, and neither model nor tokenizer names one",
            where=name,
            cure="set max_length in [data]",
        )
    ids, pieces = Spool(np.int32), blocks_of_text(file, name)
    while part := list(islice(pieces, 16)):
        for encoded in setting.loaded.encode(part, None, special=False):
            ids.append(np.asarray(encoded.ids, np.int32))
    if ids.size == 0:
        raise DataError("holds no text", where=name)
    window = Window(ids.mapped(), longest)
    return Texts(setting, window, 1, False, (), False, name)


def _class_names(labels: list[Any] | None, folder: Path | None, where: str) -> tuple[str, ...]:
    """Names of classes in the model's order: its config's, else alphabetical; none for numbers."""
    flat = {x for label in labels or () for x in (label if isinstance(label, list) else (label,))}
    names = sorted(x for x in flat if isinstance(x, str) and _number(x) is None)
    if not names:
        return ()
    by_name = {} if folder is None else read_json(folder / "config.json").get("label2id", {})
    unknown = [name for name in names if name not in by_name]
    if not unknown:
        return tuple(sorted(by_name, key=lambda name: int(by_name[name])))
    if len(unknown) < len(names):
        raise DataError(
            f"the model knows no label {unknown[0]!r}; {nearest(unknown[0], by_name)}", where=where
        )
    return tuple(names)


def _numbers(labels: list[Any], names: tuple[str, ...], where: str) -> Labels:
    if names:
        numbers = {name: number for number, name in enumerate(names)}
        wrong = next((row for row, label in enumerate(labels) if label not in numbers), None)
        if wrong is not None:
            raise DataError(
                f"record {wrong}: expected the name of a class, got {labels[wrong]!r}", where=where
            )
        return np.array([numbers[label] for label in labels], np.int64)
    found = [_number(label) for label in labels]
    wrong = next((row for row, value in enumerate(found) if value is None), None)
    if wrong is not None:
        raise DataError(f"record {wrong}: expected a label, got {labels[wrong]!r:.60}", where=where)
    return np.array(found)


def _number(label: Any) -> int | float | None:
    """An integer or a finite number, from itself or from its text; None for anything else."""
    if isinstance(label, bool | int):
        return int(label)
    for kind in (int, float):
        try:
            value: int | float = kind(label)
        except (TypeError, ValueError, OverflowError):
            continue
        if np.isfinite(value) and (kind is float or not isinstance(label, float)):
            return value
    return None
