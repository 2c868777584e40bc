"""Sums of floating-point tensors that do not depend on who added what, and in which order.

Floating-point addition is not associative: where two shards each add up their own batches, the last
bits of the sum depend on how the batches were shared out. Here they are always added up in the same
binary tree over the numbers of the batches, as in pairwise summation (Higham 1993), whose rounding
error also grows with log n instead of n.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["TreeSum"]

_LEVELS = 64  # of the tree; more batches than 2**64 there never are


@dataclass
class TreeSum:
    """Partial sums of numbered batches; merging is exact, associative and commutative.

    Node ``(level, index)`` sums up the batches ``[index * 2**level, (index + 1) * 2**level)``.
    As soon as both halves of a node are there, they are replaced by their sum. So n batches in a
    row take O(log n) tensors, and the nodes depend only on the set of batches.

    Attributes:
        nodes: Partial sums by ``(level, index)``, all of one shape and dtype.
    """

    nodes: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def add(self, batch: int, value: Tensor) -> None:
        """Take in the summand of one batch.

        Args:
            batch: Number of the batch, from 0.
            value: Its summand, of any shape; kept, not copied.

        Raises:
            ValueError: The batch is in the sum already, its number is negative, or its summand has
                another shape or dtype than those before.
        """
        if batch < 0:
            raise ValueError(f"expected the number of a batch, from 0, got {batch}")
        self._insert(0, batch, value)

    def merge(self, other: TreeSum) -> TreeSum:
        """The sum over both sets of batches; the same bits in whatever order sums are merged.

        Raises:
            ValueError: A batch is in both sums, or shapes or dtypes differ.
        """
        merged = TreeSum(dict(self.nodes))
        for (level, index), value in sorted(other.nodes.items(), key=lambda item: item[0]):
            merged._insert(level, index, value)
        return merged

    @property
    def batches(self) -> int:
        """How many batches are in the sum."""
        return sum(1 << level for level, _ in self.nodes)

    def total(self) -> Tensor:
        """The sum over all batches, those of the lowest numbers first.

        Raises:
            ValueError: There is no batch yet.
        """
        if not self.nodes:
            raise ValueError("there is no batch to sum up")
        first, *rest = sorted(self.nodes, key=lambda node: node[1] << node[0])
        total = self.nodes[first]
        for node in rest:
            total = total + self.nodes[node]
        return total

    def _insert(self, level: int, index: int, value: Tensor) -> None:
        self._check(level, index, value)
        while (level, index ^ 1) in self.nodes:
            sibling = self.nodes.pop((level, index ^ 1))
            # The left one first: a + b and b + a may differ in the bits of a NaN.
            value = sibling + value if index % 2 else value + sibling
            level, index = level + 1, index // 2
        self.nodes[level, index] = value

    def _check(self, level: int, index: int, value: Tensor) -> None:
        first = self._shared_batch(level, index)
        if first is not None:
            raise ValueError(f"batch {first} is in the sum already")
        present = next(iter(self.nodes.values()), value)
        if (present.shape, present.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"expected {present.dtype}{list(present.shape)} as before, "
                f"got {value.dtype}{list(value.shape)}"
            )

    def _shared_batch(self, level: int, index: int) -> int | None:
        """First batch that a node would share with the nodes that are there."""
        for up in range(_LEVELS - level):
            if (level + up, index >> up) in self.nodes:
                return index << level
        inside = [
            place << below
            for below, place in self.nodes
            if below < level and place >> (level - below) == index
        ]
        return min(inside, default=None)
