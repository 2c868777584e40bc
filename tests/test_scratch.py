"""Scratch: activations past the budget go to a file and come back bit for bit."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.errors import OutputError
from edgecompress.walk.scratch import Budget, Store

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]


@pytest.mark.parametrize("limit", [None, 0, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_come_back(limit: int | None, dtype: torch.dtype, tmp_path: Path) -> None:
    budget = Budget(limit, tmp_path)
    store = Store(budget)
    made = [torch.arange(n * 7).reshape(n, 7).to(dtype) for n in (3, 1, 0, 9)]
    for number, values in enumerate(made):
        store.put(number, values)
    for number, values in enumerate(made):
        found = store.get(number)
        assert found.dtype == dtype
        assert torch.equal(found, values)
    assert budget.used <= (limit if limit is not None else 10**9)
    assert (budget.spilled > 0) == (limit is not None)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    store.close()
    assert budget.used == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=25), st.integers(0, 400))
def test_budget_is_kept_whatever_comes(steps: list[tuple[int, int]], limit: int) -> None:
    budget = Budget(limit)
    store, expected = Store(budget), dict[int, torch.Tensor]()
    for number, length in steps:
        if number in expected:
            store.drop(number)
            del expected[number]
        else:
            expected[number] = torch.rand(length)
            store.put(number, expected[number])
        assert 0 <= budget.used <= limit
        assert budget.peak <= limit
        for known, values in expected.items():
            assert torch.equal(store.get(known), values)
    store.close()
    assert budget.used == 0


def test_a_part_of_a_tensor_does_not_keep_the_whole() -> None:
    store = Store(Budget())
    store.put(0, torch.zeros(1000, 10)[:2])
    assert store.get(0).untyped_storage().nbytes() == 2 * 10 * 4


def test_writing_into_what_came_back_leaves_the_file(tmp_path: Path) -> None:
    store = Store(Budget(0, tmp_path))
    store.put(0, torch.zeros(4))
    store.get(0).add_(1)
    assert torch.equal(store.get(0), torch.zeros(4))
    store.close()


def test_vanished_folder_is_one_clear_error(tmp_path: Path) -> None:
    store = Store(Budget(0, tmp_path / "gone"))
    with pytest.raises(OutputError, match="scratch folder cannot be written") as caught:
        store.put(0, torch.zeros(4))
    assert str(tmp_path / "gone") in str(caught.value)
    assert "--memory" in str(caught.value)


def test_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **_: object) -> None: ...

        def seek(self, offset: int) -> int:
            return offset

        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    store = Store(Budget(0, tmp_path))
    with pytest.raises(OutputError, match="No space left on device"):
        store.put(0, torch.zeros(4))
