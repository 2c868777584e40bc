"""Padded positions are told from real ones, wherever a graph puts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.data.token_mask import position_mask, real_values
from tests.texts import save_lines, text_rows, token_inputs

MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
ANY = MASK.any(0)


@pytest.mark.parametrize(
    ("shape", "real"),
    [
        ((2, 5), MASK),
        ((2, 5, 3), MASK[:, :, None]),
        ((2, 3, 5), MASK[:, None, :]),
        ((2, 3, 5, 4), MASK[:, None, :, None]),
        ((2, 3, 5, 5), MASK[:, None, :, None] & MASK[:, None, None, :]),
        ((2, 5, 5), MASK[:, :, None]),  # the hidden size equals the length
        ((10, 3), MASK.reshape(10, 1)),
        ((6, 5, 5), np.repeat(MASK[:, :, None] & MASK[:, None, :], 3, axis=0)),
        ((1, 5, 3), ANY[None, :, None]),
        ((1, 1, 5, 5), (ANY[:, None] & ANY)[None, None]),
        ((5, 3), ANY[:, None]),
        ((2, 3), True),
        ((2,), True),
        ((), True),
        ((7, 3), True),
    ],
)
def test_positions_of_every_layout(shape: tuple[int, ...], real: Any) -> None:
    expected = np.broadcast_to(real, shape)
    found = position_mask(shape, MASK)
    assert (found is None) == (real is True)
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    kept = real_values(values, torch.from_numpy(MASK))
    np.testing.assert_array_equal(kept.ravel(), values.numpy()[expected].ravel())


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
)
def test_padding_changes_no_statistic(lengths: list[int], longer: int, seed: int) -> None:
    """Real values of a padded tensor are exactly those of the rows without padding."""
    rng = np.random.default_rng(seed)
    width, hidden = max(lengths) + longer, 11
    rows = [rng.normal(size=(length, hidden)).astype(np.float32) for length in lengths]
    padded = np.full((len(rows), width, hidden), 1e9, np.float32)
    mask = np.zeros((len(rows), width), bool)
    for number, row in enumerate(rows):
        padded[number, : len(row)], mask[number, : len(row)] = row, True
    kept = real_values(torch.from_numpy(padded), torch.from_numpy(mask))
    np.testing.assert_array_equal(kept.ravel(), np.concatenate(rows).ravel())


def test_fixed_and_free_lengths_give_the_same_values(tmp_path: Path) -> None:
    """A position-wise function of padded batches, against the same rows without any padding."""
    save_lines(tmp_path / "x.txt", "a", "b c d", "e f", "g h i j k", "l m", "n")
    spec = {"validation": {"path": "x.txt"}, "batch_size": 2}
    table = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))

    def values(length: int | str) -> dict[int, np.ndarray]:
        data = text_rows(tmp_path, spec, token_inputs(length=length))
        found = {}
        for batch in data.batches("validation"):
            mask = None if batch.mask is None else torch.from_numpy(batch.mask)
            embedded = table[torch.from_numpy(batch.inputs["input_ids"])]
            for place, row in enumerate(batch.index):
                one = embedded[place : place + 1]
                real = one if mask is None else real_values(one, mask[place : place + 1])
                found[int(row)] = real.numpy().ravel()
        return found

    free, fixed = values("length"), values(9)
    assert free.keys() == fixed.keys() == set(range(6))
    for row, expected in free.items():
        np.testing.assert_array_equal(fixed[row], expected)
