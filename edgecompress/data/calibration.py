"""CalibrationSet: batches of named arrays to calibrate on, and others to validate on.

Calibration and validation rows are disjoint by construction: where both come from one source, they
are cut from one seeded permutation of its rows, and texts or image files that are to validate are
left out of calibration wherever they occur. All data are checked against the model when the set is
opened, not when they are used. Raw rows are held once, memory-mapped where the format allows it;
preprocessed rows exist only for the batch at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.data.feeds import Rows
from edgecompress.data.open_parts import fixed_batch, open_part, preprocess_by_input, without_copies
from edgecompress.data.parts import Batch, Part
from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.data.rows import RowsSpec
from edgecompress.data.splits import DataSpec, Split, draw, open_tables
from edgecompress.data.text_setting import TextSetting
from edgecompress.errors import DataError
from edgecompress.model import Signature

__all__ = ["Batch", "CalibrationSet", "DataSpec", "PreprocessSpec", "RowsSpec", "Split"]


@dataclass(frozen=True)
class _Origin:
    """What a set was opened from, so that another process can open the same."""

    spec: DataSpec
    signature: Signature
    base: Path
    seed: int
    folder: Path | None
    preprocess: PreprocessSpec | None


@dataclass(frozen=True)
class _Taken:
    """Rows of each split, and how many copies of validation rows were left out."""

    rows: Mapping[Split, Rows] = field(default_factory=dict)
    left_out: int = 0


class CalibrationSet:
    """Checked rows of both splits. Made by :meth:`open`.

    It can be pickled: what is pickled is where the rows come from and which they are. Another
    process opens them again without checking them, and encodes text only of the split it uses.

    Attributes:
        spec: What it was opened from.
        batch_size: Rows per batch: the model's where its batch axis is fixed, else the spec's.
    """

    def __init__(
        self,
        origin: _Origin,
        parts: Mapping[Split, Part],
        fixed_batch: int | None,
        left_out: int = 0,
    ) -> None:
        self.spec = origin.spec
        self.batch_size = fixed_batch or origin.spec.batch_size
        self._origin = origin
        self._parts = dict(parts)
        self._fixed_batch = fixed_batch
        self._left_out = left_out

    @classmethod
    def open(
        cls,
        spec: DataSpec,
        signature: Signature,
        *,
        base: Path = Path("."),
        seed: int = 0,
        folder: Path | None = None,
        preprocess: PreprocessSpec | None = None,
        checked: bool = False,
    ) -> CalibrationSet:
        """Read and check the rows that ``spec`` names.

        Args:
            spec: The ``[data]`` table.
            signature: The model's inputs.
            base: Folder that relative paths start from: the recipe's.
            seed: The build's seed; rows are drawn by it and ``spec.seed`` together.
            folder: The transformers directory that the model came from: its tokenizer, lengths
                and names of classes are the defaults for text.
            preprocess: The model's own preprocessing: the default where pixels feed a float
                input and ``spec`` names none.
            checked: The same rows were checked before; their values are not looked at again.

        Raises:
            DataError: The data are missing or broken, do not fit the model, or are too few.
            MissingDependencyError: Image files need Pillow; text needs tokenizers.
        """
        origin = _Origin(spec, signature, base.resolve(), seed, folder, preprocess)
        return cls._open(origin, checked, None)

    @classmethod
    def _open(cls, origin: _Origin, checked: bool, taken: _Taken | None) -> CalibrationSet:
        spec = origin.spec
        setting = TextSetting(
            origin.signature.inputs, origin.folder, origin.base, spec.tokenizer, spec.max_length
        )
        tables = open_tables(spec, setting)
        rng = np.random.default_rng([spec.seed, origin.seed])
        rows = draw(spec, tables, rng) if taken is None else taken.rows
        inputs = origin.signature.inputs
        named = preprocess_by_input(spec, inputs)
        preprocess = origin.preprocess if named is None else named
        parts = {
            split: open_part(inputs, source.name, table, rows[split], preprocess)
            for split, (source, table) in tables.items()
        }
        fixed = fixed_batch([feed for part in parts.values() for feed in part.feeds])
        if taken is not None:
            return cls(origin, parts, fixed, taken.left_out)
        for part in () if checked else parts.values():
            part.check()
        parts, left_out = without_copies(parts)
        whole = {split: part.whole_batches(split, fixed) for split, part in parts.items()}
        return cls(origin, whole, fixed, left_out)

    def __reduce__(self) -> tuple[Any, ...]:
        taken = _Taken({split: part.rows for split, part in self._parts.items()}, self._left_out)
        return _reopened, (self._origin, taken)

    @property
    def calibration_rows(self) -> int:
        """Number of rows to calibrate on."""
        return self._count("calibration")

    @property
    def validation_rows(self) -> int:
        """Number of rows to validate on."""
        return self._count("validation")

    def labels(self, split: Split) -> npt.NDArray[Any] | None:
        """Labels of all rows of a split, in order, if there are any.

        Texts of one record have its label each. Labels of words are one per token, ``[rows,
        length of the longest]``, and -100 where a token has none.
        """
        part = self._parts.get(split)
        return None if part is None else part.labels

    def group(self, split: Split) -> int:
        """Rows of a split that belong together: 2 for pairs of texts that are rows each."""
        part = self._parts.get(split)
        return 1 if part is None else part.group

    def batches(
        self, split: Split, batch_size: int | None = None, *, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """All rows of a split, once.

        A batch holds rows of one shape. Where all rows have one, batches keep the order of the
        source; else they come in the order of their first rows, and ``Batch.index`` tells which
        rows they hold.

        Args:
            split: Which rows.
            batch_size: Rows per batch; a model with a fixed batch axis wins. The last batch of
                each shape may be smaller.
            shard: ``(k, n)``: only batches whose number leaves k when divided by n. The batches
                are the same for every n.

        Raises:
            DataError: The spec names no rows for this split.
        """
        if split not in self._parts:
            raise DataError(
                f"there are no {split} rows",
                where="data",
                cure=f"add a [data.{split}] table, or one path with a validation_share above 0",
            )
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"expected a shard (k, n) with 0 <= k < n, got {shard}")
        step = self._fixed_batch or batch_size or self.batch_size
        return self._parts[split].batches(step, shard)

    def sample(self, rows: int = 1) -> dict[str, npt.NDArray[Any]]:
        """Some validation rows (calibration rows where none validate), as a feed for timing.

        The first ones; of rows of many shapes, those of the middle size. Where the model fixes
        its batch axis, it gives that many rows, whatever ``rows`` says.
        """
        part = self._parts.get("validation") or self._parts["calibration"]
        return part.batch(part.middle(self._fixed_batch or rows)).inputs

    def describe(self) -> dict[str, Any]:
        """Sources, row counts and digest, for the report.

        ``left_out_copies`` counts rows of calibration that were copies of validation rows, and
        ``truncated_texts`` texts longer than ``max_length``; both only where there are any.
        """
        calibration, validation = self._parts.get("calibration"), self._parts.get("validation")
        tokens = [part.tokens for part in self._parts.values() if part.tokens is not None]
        counts = {
            "left_out_copies": self._left_out,
            "truncated_texts": sum(rows.truncated for rows in tokens),
        }
        return {
            "calibration_source": "none" if calibration is None else calibration.source,
            "calibration_rows": self.calibration_rows,
            "validation_source": None if validation is None else validation.source,
            "validation_rows": self.validation_rows,
            "digest": self.digest,
            **{name: count for name, count in counts.items() if count},
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the rows that are used and of how they are fed; free of paths."""
        fed = self.spec.model_dump_json(include={"preprocess", "batch_size"})
        default = self._origin.preprocess
        sha = hashlib.sha256(f"{fed}{default and default.model_dump_json()}".encode())
        for split, part in sorted(self._parts.items()):
            sha.update(f"{split}:{len(part.rows)}:{part.group}".encode())
            part.hash_into(sha)
        return sha.hexdigest()

    def _count(self, split: Split) -> int:
        part = self._parts.get(split)
        return 0 if part is None else len(part.rows)


def _reopened(origin: _Origin, taken: _Taken) -> CalibrationSet:
    return CalibrationSet._open(origin, True, taken)
