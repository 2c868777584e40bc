"""What a recipe and a model say of text: which columns, which tokenizer, how long."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgecompress.data.text_files import Column
from edgecompress.data.tokenizer import Tokenizer, load_tokenizer
from edgecompress.errors import DataError
from edgecompress.model import TensorSpec

__all__ = ["TextOptions", "TextSetting"]


@dataclass(frozen=True)
class TextOptions:
    """Which texts of a file are rows.

    Attributes:
        columns: Each text of a record is a row of its own.
        pair: Two columns that are encoded together, instead.
        labels: Column of labels.
        header: Whether a table starts with the names of its columns.
        blocks: The whole text is one row after the other, ``max_length`` tokens each.
    """

    columns: tuple[Column, ...] = ()
    pair: tuple[Column, Column] | None = None
    labels: Column | None = None
    header: bool | None = None
    blocks: bool = False


@dataclass(frozen=True)
class TextSetting:
    """What the texts of both splits share.

    Attributes:
        inputs: The model's.
        folder: The transformers directory that the model came from.
        base: Folder that relative paths start from.
        tokenizer: As the recipe names it.
        max_length: As the recipe has it.
    """

    inputs: tuple[TensorSpec, ...]
    folder: Path | None = None
    base: Path = Path()
    tokenizer: str | None = None
    max_length: int | None = None

    @cached_property
    def loaded(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            DataError: There is none.
            MissingDependencyError: Its library is not installed.
        """
        return load_tokenizer(self.tokenizer, self.base, self.folder)

    @cached_property
    def length(self) -> int | None:
        """The model's sequence length where it is fixed.

        Raises:
            DataError: Its inputs differ in it.
        """
        fixed = {
            spec.shape[1]: spec.name
            for spec in self.inputs
            if spec.dtype in ("int64", "int32") and spec.shape is not None and len(spec.shape) == 2
            if isinstance(spec.shape[1], int)
        }
        if len(fixed) > 1:
            listed = ", ".join(f"{name!r} {length}" for length, name in fixed.items())
            raise DataError(f"the inputs have different sequence lengths: {listed}", where="data")
        return next((length for length in fixed if isinstance(length, int)), None)

    @cached_property
    def longest(self) -> int | None:
        """The most tokens of a row: ``max_length``, else what model and tokenizer take.

        Raises:
            DataError: ``max_length`` is more than the model takes.
        """
        if self.length is not None and (self.max_length or 0) > self.length:
            raise DataError(
                f"max_length is {self.max_length}, the model takes {self.length} tokens",
                where="data.max_length",
                cure="lower it, or export the model with a free sequence length",
            )
        return self.max_length or self.length or self.loaded.limit
