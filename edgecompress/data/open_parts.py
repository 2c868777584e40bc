"""From tables of raw rows to checked parts: one per split, without rows that are in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgecompress.data.feeds import Feed, Rows
from edgecompress.data.open_feed import Opened, open_feed, takes_pixels
from edgecompress.data.parts import Part
from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.data.rows import Column, Table
from edgecompress.data.splits import DataSpec, Split
from edgecompress.data.texts import TextColumn
from edgecompress.data.tokens import TokenArray, TokenRows
from edgecompress.errors import DataError, nearest
from edgecompress.model import TensorSpec

__all__ = ["fixed_batch", "open_part", "preprocess_by_input", "without_copies"]


def open_part(
    inputs: Sequence[TensorSpec],
    source: str,
    table: Table,
    rows: Rows,
    preprocess: Mapping[str, PreprocessSpec] | PreprocessSpec | None,
) -> Part:
    """One split, with a feed for each input.

    Args:
        inputs: The model's.
        source: The path as the recipe has it.
        table: Raw rows of the source.
        rows: Those taken, ascending.
        preprocess: By input, or the model's own, for inputs that take pixels.

    Raises:
        DataError: Rows do not fit their input.
    """
    tokens: dict[int, TokenRows] = {}

    def opened(column: Column) -> Opened:
        if not isinstance(column, TextColumn):
            return column
        texts = column.texts
        return TokenArray(tokens.setdefault(id(texts), texts.take(rows)), column.array)

    feeds = []
    for spec in inputs:
        column = opened(table.columns[spec.name])
        own = None
        if isinstance(preprocess, Mapping):
            own = preprocess.get(spec.name)
        elif takes_pixels(spec, column):
            own = preprocess
        feeds.append(open_feed(spec, column, own, source))
    text = next(iter(tokens.values()), None)
    return Part(source, tuple(feeds), table.labels, rows, table.group, text)


def without_copies(parts: dict[Split, Part]) -> tuple[dict[Split, Part], int]:
    """Leave out rows of calibration that are copies of validation rows.

    Raises:
        DataError: None is left.
    """
    if len(parts) < 2:
        return parts, 0
    calibration, validation = parts["calibration"], parts["validation"]
    ours, theirs = calibration.contents(), validation.contents()
    if ours is None or theirs is None:
        return parts, 0
    copies = np.isin(ours, theirs)
    if copies.all():
        raise DataError(
            f"all {len(copies)} calibration rows are copies of validation rows",
            where=calibration.source,
            cure="calibrate on other rows than those that validate",
        )
    if not copies.any():
        return parts, 0
    return {**parts, "calibration": calibration.without(copies)}, int(copies.sum())


def preprocess_by_input(
    spec: DataSpec, inputs: Sequence[TensorSpec]
) -> Mapping[str, PreprocessSpec] | None:
    """What the spec says of each input; None where it says nothing.

    Raises:
        DataError: It names no input, where there are several, or one that does not exist.
    """
    names = [i.name for i in inputs]
    if spec.preprocess is None:
        return None
    if isinstance(spec.preprocess, PreprocessSpec):
        if len(names) > 1:
            raise DataError(
                f"which input are the images? the model has {', '.join(names)}",
                where="data.preprocess",
                cure="name it: [data.preprocess.INPUT]",
            )
        return {names[0]: spec.preprocess}
    for name in spec.preprocess:
        if name not in names:
            raise DataError(
                f"the model has no input {name!r}; {nearest(name, names)}", where="data.preprocess"
            )
    return spec.preprocess


def fixed_batch(feeds: Sequence[Feed]) -> int | None:
    """Rows that the model takes at once, None where it takes any number.

    Raises:
        DataError: Its inputs demand different numbers.
    """
    demanded = {feed.batch: feed for feed in feeds if feed.batch is not None}
    if len(demanded) > 1:
        listed = ", ".join(f"{feed.spec.name!r} {batch}" for batch, feed in demanded.items())
        raise DataError(
            f"the inputs demand different numbers of rows per batch: {listed}",
            where=feeds[0].where,
            cure="give each of them one whole feed per row: an array of one axis more",
        )
    return next(iter(demanded), None)
