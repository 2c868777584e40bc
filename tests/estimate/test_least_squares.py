from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.estimate.least_squares import left_out, nonnegative


@given(seed=st.integers(0, 1000), rows=st.integers(8, 20), columns=st.integers(1, 7))
def test_the_fit_is_the_best_of_all_that_are_not_negative(
    seed: int, rows: int, columns: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    x = nonnegative(a, b)
    gradient = a.T @ (a @ x - b)
    assert (x >= 0).all()
    # Karush, Kuhn and Tucker: no slope where free, none downwards where at the border.
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-6
    assert (gradient[x == 0] > -1e-6).all()


def test_positive_truth_is_found_again() -> None:
    rng = np.random.default_rng(0)
    a, truth = rng.random((30, 5)), np.array([1.0, 2.0, 0.0, 3.0, 0.5])
    assert nonnegative(a, a @ truth) == pytest.approx(truth, abs=1e-8)


def test_columns_that_are_alike_share() -> None:
    a = np.ones((4, 2))
    assert nonnegative(a, np.full(4, 3.0)).sum() == pytest.approx(3.0)


def test_leaving_out_in_closed_form_is_leaving_out() -> None:
    rng = np.random.default_rng(1)
    a = rng.random((12, 3))
    b = a @ np.array([1.0, 2.0, 3.0]) + 0.05 * rng.normal(size=12)
    found = left_out(a, b, nonnegative(a, b))
    for row in range(12):
        keep = np.arange(12) != row
        assert found[row] == pytest.approx(a[row] @ nonnegative(a[keep], b[keep]), abs=1e-8)
