"""The tree sum: the same bits whatever the partition and the order of merges."""

from __future__ import annotations

import functools
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.numerics.tree_sum import TreeSum


def summands(count: int, seed: int) -> list[Tensor]:
    """Of widely different magnitudes, so that each order of additions rounds differently."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-20, 21, (count, 3), generator=generator).double().exp2().float()
    return list(torch.randn(count, 3, generator=generator) * scale)


def sum_of(values: dict[int, Tensor]) -> TreeSum:
    total = TreeSum()
    for batch, value in values.items():
        total.add(batch, value)
    return total


def pairwise(values: list[Tensor]) -> Tensor:
    """The definition, by recursion: full binary trees from the left, then their sums in order."""
    if len(values) == 1:
        return values[0]
    size = 1 << (len(values) - 1).bit_length()
    if size == len(values):
        return pairwise(values[: size // 2]) + pairwise(values[size // 2 :])
    parts, rest = [], values
    while rest:
        full = 1 << (len(rest).bit_length() - 1)
        parts.append(pairwise(rest[:full]))
        rest = rest[full:]
    return functools.reduce(torch.add, parts)


def assert_same(a: TreeSum, b: TreeSum) -> None:
    assert a.nodes.keys() == b.nodes.keys()
    assert all(torch.equal(a.nodes[node], b.nodes[node]) for node in a.nodes)
    assert torch.equal(a.total(), b.total())


@st.composite
def shards(draw: st.DrawFn) -> tuple[list[Tensor], list[dict[int, Tensor]]]:
    """Summands, and the same shared out at random: any partition, any order inside a shard."""
    values = summands(draw(st.integers(1, 40)), draw(st.integers(0, 2**20)))
    owners = draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    order = draw(st.permutations(range(len(values))))
    return values, [{i: values[i] for i in order if owners[i] == k} for k in range(5)]


@given(st.integers(1, 70), st.integers(0, 2**20))
def test_it_is_the_pairwise_sum(count: int, seed: int) -> None:
    values = summands(count, seed)
    total = sum_of(dict(enumerate(values)))
    assert torch.equal(total.total(), pairwise(values))
    assert total.batches == count


@given(shards(), st.randoms(use_true_random=False))
def test_any_partition_and_any_order_of_merges_give_the_same_bits(
    shared_out: tuple[list[Tensor], list[dict[int, Tensor]]], random: Random
) -> None:
    values, parts = shared_out
    pending = [sum_of(part) for part in parts]
    while len(pending) > 1:
        random.shuffle(pending)
        pending.append(pending.pop().merge(pending.pop()))
    assert_same(pending[0], sum_of(dict(enumerate(values))))


@given(shards())
def test_merge_is_associative_and_commutative(
    shared_out: tuple[list[Tensor], list[dict[int, Tensor]]],
) -> None:
    elsewhere = {10**6: torch.ones(3)}
    first, second, third = (sum_of(part) for part in (*shared_out[1][:2], elsewhere))
    assert_same(first.merge(second).merge(third), first.merge(second.merge(third)))
    assert_same(first.merge(second).merge(third), third.merge(second).merge(first))


@given(st.lists(st.integers(0, 63), unique=True, min_size=1))
def test_gaps_between_batches_do_no_harm(batches: list[int]) -> None:
    values = dict(zip(batches, summands(len(batches), 0), strict=True))
    assert_same(sum_of(values), sum_of(dict(sorted(values.items()))))


def test_merging_changes_neither_sum() -> None:
    first, second = (sum_of({i: torch.full((2,), float(i))}) for i in (0, 1))
    first.merge(second)
    assert [*first.nodes, *second.nodes] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("first", [0, 37])
def test_contiguous_batches_take_few_tensors(first: int) -> None:
    total = TreeSum()
    for i in range(first, first + 1000):
        total.add(i, torch.tensor(1.0))
        assert len(total.nodes) <= 2 * (total.batches.bit_length() + 1)
    assert total.total() == total.batches == 1000


def test_rounding_error_does_not_grow_with_the_count() -> None:
    total = sum_of(dict.fromkeys(range(2**16), torch.tensor(0.1)))
    exact = 2**16 * float(torch.tensor(0.1))
    assert float(total.total()) == exact


@pytest.mark.parametrize(
    ("here", "there", "first"),
    [
        ([0], [0], 0),
        ([0, 1, 2, 3], [2], 2),
        ([2], [0, 1, 2, 3], 2),
        ([4, 5], [4, 5, 6, 7], 4),
        ([0, 1, 2, 3], [0, 1, 2, 3], 0),
        ([8, 9, 11], [10, 11], 11),
    ],
)
def test_a_batch_counts_once(here: list[int], there: list[int], first: int) -> None:
    one, other = (sum_of(dict.fromkeys(part, torch.ones(1))) for part in (here, there))
    with pytest.raises(ValueError, match=f"batch {first} is in the sum already"):
        one.merge(other)


@pytest.mark.parametrize(
    ("batch", "value", "text"),
    [
        (-1, torch.ones(2), "expected the number of a batch, from 0, got -1"),
        (5, torch.ones(2), "batch 5 is in the sum already"),
        (0, torch.ones(1), r"expected torch.float32\[2\] as before, got torch.float32\[1\]"),
        (0, torch.ones(2).double(), r"got torch.float64\[2\]"),
    ],
)
def test_refuses(batch: int, value: Tensor, text: str) -> None:
    total = sum_of({5: torch.ones(2)})
    with pytest.raises(ValueError, match=text):
        total.add(batch, value)


def test_an_empty_sum_has_no_total() -> None:
    with pytest.raises(ValueError, match="there is no batch to sum up"):
        TreeSum().total()
