"""CalibrationSet: batches of named arrays to calibrate on, and others to validate on.

Calibration and validation rows are disjoint by construction: where both come from one source, they
are cut from one seeded permutation of its rows. All data are checked against the model when the set
is opened, not when they are used. Raw rows are held once, memory-mapped where the format allows it;
preprocessed rows exist only for the batch at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError, nearest
from edgecompress.feeds import Feed, Rows, open_feed
from edgecompress.model import Signature
from edgecompress.preprocess import PreprocessSpec
from edgecompress.rows import RowsSpec
from edgecompress.splits import DataSpec, Split, draw, open_tables

__all__ = ["Batch", "CalibrationSet", "DataSpec", "PreprocessSpec", "RowsSpec", "Split"]


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them.

    Attributes:
        inputs: Model input -> array of its dtype, contiguous.
        labels: One per row, if the source has them.
        rows: How many rows it holds.
    """

    inputs: dict[str, npt.NDArray[Any]]
    labels: npt.NDArray[Any] | None
    rows: int


@dataclass(frozen=True)
class _Part:
    """One split: its feeds, labels and the rows taken, in the order of the source."""

    source: str
    feeds: tuple[Feed, ...]
    labels: npt.NDArray[Any] | None
    rows: Rows


class CalibrationSet:
    """Checked rows of both splits. Made by :meth:`open`.

    Attributes:
        spec: What it was opened from.
        batch_size: Rows per batch: the model's where its batch axis is fixed, else the spec's.
    """

    def __init__(
        self, spec: DataSpec, parts: Mapping[Split, _Part], fixed_batch: int | None
    ) -> None:
        self.spec = spec
        self.batch_size = fixed_batch or spec.batch_size
        self._parts = dict(parts)
        self._fixed_batch = fixed_batch

    @classmethod
    def open(
        cls, spec: DataSpec, signature: Signature, *, base: Path = Path("."), seed: int = 0
    ) -> CalibrationSet:
        """Read and check the rows that ``spec`` names.

        Args:
            spec: The ``[data]`` table.
            signature: The model's inputs.
            base: Folder that relative paths start from: the recipe's.
            seed: The build's seed; rows are drawn by it and ``spec.seed`` together.

        Raises:
            DataError: The data are missing or broken, do not fit the model, or are too few.
            MissingDependencyError: Image files need Pillow.
        """
        tables = open_tables(spec, [i.name for i in signature.inputs], base)
        rows = draw(spec, tables, np.random.default_rng([spec.seed, seed]))
        preprocess = _preprocess_by_input(spec, signature)
        parts: dict[Split, _Part] = {}
        for split, (source, table) in tables.items():
            feeds = tuple(
                open_feed(i, table.columns[i.name], preprocess.get(i.name), source.name)
                for i in signature.inputs
            )
            parts[split] = _Part(source.name, feeds, table.labels, rows[split])
        fixed = _fixed_batch([feed for part in parts.values() for feed in part.feeds])
        whole = {split: _whole_batches(part, split, fixed) for split, part in parts.items()}
        for part in whole.values():
            _check(part)
        return cls(spec, whole, fixed)

    @property
    def calibration_rows(self) -> int:
        """Number of rows to calibrate on."""
        return self._count("calibration")

    @property
    def validation_rows(self) -> int:
        """Number of rows to validate on."""
        return self._count("validation")

    def labels(self, split: Split) -> npt.NDArray[Any] | None:
        """Labels of all rows of a split, in order, if there are any."""
        part = self._parts.get(split)
        return None if part is None or part.labels is None else part.labels[part.rows]

    def batches(self, split: Split, batch_size: int | None = None) -> Iterator[Batch]:
        """All rows of a split, once and in the order of their source.

        Args:
            split: Which rows.
            batch_size: Rows per batch; a model with a fixed batch axis wins. The last batch may
                be smaller.

        Raises:
            DataError: The spec names no rows for this split.
        """
        if split not in self._parts:
            raise DataError(
                f"there are no {split} rows",
                where="data",
                cure=f"add a [data.{split}] table, or one path with a validation_share above 0",
            )
        part, step = self._parts[split], self._fixed_batch or batch_size or self.batch_size
        return (_batch(part, part.rows[i : i + step]) for i in range(0, len(part.rows), step))

    def sample(self, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
        """First validation rows (calibration rows where none validate), as a feed for timing.

        Where the model fixes its batch axis, it gives that many rows, whatever ``rows`` says.
        """
        part = self._parts.get("validation") or self._parts["calibration"]
        return _batch(part, part.rows[: self._fixed_batch or rows]).inputs

    def describe(self) -> dict[str, Any]:
        """Sources, row counts and digest, for the report."""
        calibration, validation = self._parts.get("calibration"), self._parts.get("validation")
        return {
            "calibration_source": "none" if calibration is None else calibration.source,
            "calibration_rows": self.calibration_rows,
            "validation_source": None if validation is None else validation.source,
            "validation_rows": self.validation_rows,
            "digest": self.digest,
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rows that are used and of how they are fed; free of paths."""
        fed = self.spec.model_dump_json(include={"preprocess", "batch_size"})
        sha = hashlib.sha256(fed.encode())
        for split, part in sorted(self._parts.items()):
            sha.update(f"{split}:{len(part.rows)}".encode())
            for feed in part.feeds:
                sha.update(f"{feed.spec}:{feed.digest(part.rows)}".encode())
            if part.labels is not None:
                sha.update(np.ascontiguousarray(part.labels[part.rows]).tobytes())
        return sha.hexdigest()

    def _count(self, split: Split) -> int:
        part = self._parts.get(split)
        return 0 if part is None else len(part.rows)


def _preprocess_by_input(spec: DataSpec, signature: Signature) -> Mapping[str, PreprocessSpec]:
    names = [i.name for i in signature.inputs]
    if spec.preprocess is None:
        return {}
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


def _fixed_batch(feeds: list[Feed]) -> int | None:
    demanded = {feed.batch: feed for feed in feeds if feed.batch is not None}
    if len(demanded) > 1:
        listed = ", ".join(f"{feed.spec.name!r} {batch}" for batch, feed in demanded.items())
        raise DataError(
            f"the inputs demand different numbers of rows per batch: {listed}",
            where=feeds[0].where,
            cure="give each of them one whole feed per row: an array of one axis more",
        )
    return next(iter(demanded), None)


def _whole_batches(part: _Part, split: Split, fixed: int | None) -> _Part:
    """Leave out the last rows where they do not fill a batch of fixed size."""
    if fixed is None:
        return part
    if len(part.rows) < fixed:
        raise DataError(
            f"the model takes {fixed} rows at once, there are only {len(part.rows)} {split} rows",
            where=part.source,
            cure="add rows, or export the model with a free batch axis",
        )
    return replace(part, rows=part.rows[: len(part.rows) // fixed * fixed])


def _check(part: _Part) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for feed in part.feeds:
        shape = feed.check(part.rows)
        for dim, size in zip(feed.row_dims or (), shape, strict=False):
            if not isinstance(dim, str):
                continue
            known, name = sizes.setdefault(dim, (size, feed.spec.name))
            if known != size:
                raise DataError(
                    f"the dimension {dim!r} is {known} for the input {name!r} and {size} here",
                    where=feed.where,
                    cure="pad or cut the arrays to one length",
                )


def _batch(part: _Part, rows: Rows) -> Batch:
    inputs = {feed.spec.name: feed.read(rows) for feed in part.feeds}
    return Batch(inputs, None if part.labels is None else part.labels[rows], len(rows))
