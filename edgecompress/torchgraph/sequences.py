"""Sequences, which are lists of tensors, and optionals, which are a value or None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    """A sequence without elements; their type needs no place."""
    return []


@op("SequenceConstruct", since=11)
def sequence_construct(*tensors: Tensor) -> list[Tensor]:
    """The inputs as a sequence."""
    return list(tensors)


@op("SequenceLength", since=11)
def sequence_length(sequence: list[Tensor]) -> Tensor:
    """Number of elements."""
    return torch.tensor(len(sequence))


@op("SequenceAt", since=11, host=(1,))
def sequence_at(sequence: list[Tensor], position: Tensor) -> Tensor:
    """One element; a negative position counts from the end."""
    return sequence[int(position)]


def _position(position: Tensor, low: int, high: int) -> int:
    found = int(position)
    if not low <= found <= high:
        raise ModelError(f"expected a position in [{low}, {high}], got {found}")
    return found


@op("SequenceInsert", since=11, host=(2,))
def sequence_insert(
    sequence: list[Tensor], tensor: Tensor, position: Tensor | None = None
) -> list[Tensor]:
    """With one more element before ``position``; default: at the end."""
    length = len(sequence)
    at = length if position is None else _position(position, -length, length)
    return [*sequence[:at], tensor, *sequence[at:]]


@op("SequenceErase", since=11, host=(1,))
def sequence_erase(sequence: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    """Without one element; default: the last."""
    length = len(sequence)
    at = length - 1 if position is None else _position(position, -length, length - 1) % length
    return [*sequence[:at], *sequence[at + 1 :]]


@op("SplitToSequence", since=11, host=(1,))
def split_to_sequence(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    """Pieces along an axis: of one slice, of a fixed length, or of given lengths."""
    if split is None:
        return list(torch.split(x, 1, axis) if keepdims else x.unbind(axis))
    lengths = int(split) if split.ndim == 0 else split.tolist()
    return list(torch.split(x, lengths, axis))


@op("ConcatFromSequence", since=11)
def concat_from_sequence(sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """The elements side by side, on an axis they have or on a new one."""
    return torch.stack(sequence, axis) if new_axis else torch.cat(sequence, axis)


@op("Optional", since=15)
def optional(value: Any = None, *, type: Any = None) -> Any:  # noqa: A002
    """The value, or without one an empty optional."""
    return value


@op("OptionalHasElement", since=15)
def optional_has_element(value: Any = None) -> Tensor:
    """Whether there is a value."""
    return torch.tensor(value is not None)


@op("OptionalGetElement", since=15)
def optional_get_element(value: Any) -> Any:
    """The value.

    Raises:
        ModelError: There is none.
    """
    if value is None:
        raise unsupported("the element of an empty optional")
    return value
