"""What layers see in the quantized graph, summed up over the rows at a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from edgecompress.numerics.moments import SecondMoments, products
from edgecompress.numerics.one_thread import alone
from edgecompress.parallel.threads import in_order
from edgecompress.quantization.candidate import Candidate, User, finite
from edgecompress.quantization.rounded_layer import RoundingRun
from edgecompress.walk.step import WalkStep
from edgecompress.walk.streams import WalkBatch

__all__ = ["input_key", "input_means", "input_moments"]

# Places that are looked at: for each column of a weight, and of each row at least and at most.
# Neighbours in an image tell nearly the same.
_PLACES_PER_COLUMN = 16
_PLACES_PER_ROW = (64, 512)

_Key = tuple[object, ...]
T = TypeVar("T")


def input_key(item: Candidate, user: User) -> _Key:
    """The same for layers that multiply the same columns, such as queries, keys and values."""
    form = item.form
    kernel = form.shape[2:] if form.attributes is not None else ()
    return user.input, form.groups, form.attributes, kernel


def input_moments(
    step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
) -> dict[_Key, SecondMoments]:
    """Second moments of all inputs, each once, however many layers read it.

    Raises:
        PassError: Activations are not finite.
    """
    moments: dict[_Key, SecondMoments] = {}
    for found in _batches(step, candidates, run, products):
        for key, (summand, places) in found.items():
            moments.setdefault(key, SecondMoments()).add(summand, places)
    for item in candidates:
        for user in item.users:
            finite(moments[input_key(item, user)].total(), user.layer.output)
    return moments


def input_means(
    step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
) -> dict[_Key, Tensor]:
    """Means of the columns of all inputs: float32 [groups, columns]."""
    sums: dict[_Key, Tensor] = {}
    counts: dict[_Key, int] = {}
    for found in _batches(step, candidates, run, lambda columns: columns.sum(1)):
        for key, (summand, places) in found.items():
            sums[key] = summand.double() + sums.get(key, 0)
            counts[key] = counts.get(key, 0) + places
    return {key: (total / max(counts[key], 1)).float() for key, total in sums.items()}


def _batches(
    step: WalkStep,
    candidates: Sequence[Candidate],
    run: RoundingRun,
    reduce: Callable[[Tensor], T],
) -> Iterator[dict[_Key, tuple[T, int]]]:
    """By batch: what is left of the columns of each input, and how many places were seen."""
    readers = {input_key(item, user): (item, user) for item in candidates for user in item.users}
    names = {user.input for _, user in readers.values()}
    graph = step.current

    def look(batch: WalkBatch) -> dict[_Key, tuple[T, int]]:
        values: dict[str, Tensor] = {}
        found = {}
        with torch.no_grad():  # it holds for one thread
            graph(batch.current, observe=values.__setitem__, watch=names, outputs=())
            for key, (item, user) in readers.items():
                most = _places_per_row(item, run.rows) * batch.source.rows
                x, mask, generator = (
                    values[user.input],
                    batch.source.mask,
                    run.generator(batch.place),
                )
                places, count = item.form.places(x, mask, most, generator)
                found[key] = reduce(item.form.columns(x, places)), count
        return found

    for _, found in in_order(look, step.batches(), run.threads, alone):
        yield found


def _places_per_row(item: Candidate, rows: int) -> int:
    wanted = _PLACES_PER_COLUMN * item.weight.shape[2] // max(rows, 1)
    least, most = _PLACES_PER_ROW
    return max(least, min(wanted, most))
