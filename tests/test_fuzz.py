"""Spoilt models, recipes and rows: success or one clear error, never anything else."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import SHARED
from tests.fuzz import FINE, fuzz
from tests.mutants import KINDS, make_mutant, save_bases
from tests.recipes import names

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and limits of POSIX systems")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    save_bases(folder, SHARED if SHARED.is_dir() else None)
    return folder


def check(numbers: range, bases: Path, folder: Path, small: bool) -> None:
    outcomes = list(fuzz(numbers, bases, folder, small=small))
    wrong = [f"{o.verdict}: {o.command} of {o.mutant}\n{o.text}" for o in outcomes if not o.fine]
    assert not wrong, "\n\n".join(wrong)
    assert {outcome.number for outcome in outcomes} == set(numbers)
    assert set(Counter(outcome.verdict for outcome in outcomes)) == set(FINE)


def test_mutants_of_small_models(bases: Path, tmp_path: Path) -> None:
    check(range(72), bases, tmp_path, small=True)


@pytest.mark.slow
def test_mutants_of_all_models(bases: Path, tmp_path: Path) -> None:
    check(range(72, 672), bases, tmp_path, small=False)


def test_a_number_always_gives_the_same_mutant(bases: Path, tmp_path: Path) -> None:
    for number in range(3 * len(KINDS)):
        first, again = (tmp_path / f"{side}{number}" for side in "ab")
        assert make_mutant(number, bases, first) == make_mutant(number, bases, again)
        assert names(first) == names(again)
        for name in names(first):
            assert (first / name).read_bytes() == (again / name).read_bytes(), (number, name)
