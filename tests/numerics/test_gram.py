"""Factors of second moments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.numerics import gram as module
from edgecompress.numerics.gram import Form, Gram, Shape


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moments(groups: int, columns: int, places: int) -> Tensor:
    b = drawn(groups, places, columns)
    return b.mT @ b / places


def whole(gram: Gram, columns: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """S without and with what was added."""
    eye = torch.eye(columns, dtype=torch.float64).expand(groups, -1, -1)
    return gram.product(eye), gram.product(eye) + gram.lifted(eye)


@given(
    groups=st.integers(1, 3),
    columns=st.integers(1, 9),
    places=st.integers(1, 30),
    damping=st.sampled_from([0.0, 1e-9, 0.01, 1.0]),
    shape=st.sampled_from(["identity", "diagonal"]),
    form=st.sampled_from(["auto", "cholesky", "eigen"]),
)
def test_l_is_a_root_of_s(
    groups: int, columns: int, places: int, damping: float, shape: Shape, form: Form
) -> None:
    raw = moments(groups, columns, places)
    gram = Gram(raw, damping=damping, shape=shape, form=form)
    s, lifted = whole(gram, columns, groups)
    torch.testing.assert_close(s, raw)
    eye = torch.eye(columns, dtype=torch.float64).expand(groups, -1, -1)
    root = gram.through(eye)
    close: dict[str, Any] = {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(root @ root.mT, lifted, **close)
    # The floor is 1e-6, so L^-1 is 1000 at most where inputs are of size 1, and 1e6 in squares.
    torch.testing.assert_close(gram.unwhitened(root), eye, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(gram.whitened(root.mT), eye, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(gram.whitened(lifted).mT, root.mT, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", ["identity", "diagonal"])
def test_damping_is_a_share_of_the_diagonal(shape: Shape) -> None:
    raw = moments(1, 5, 50)
    gram = Gram(raw, damping=0.1, shape=shape)
    diagonal = raw[0].diagonal()
    expected = diagonal.mean().expand(5) if shape == "identity" else diagonal
    added = whole(gram, 5)[1] - raw
    torch.testing.assert_close(added[0], torch.diag(0.1 * expected))
    weight = drawn(1, 3, 5)
    torch.testing.assert_close(gram.times(weight), weight @ (raw + added))


def test_moments_that_are_well_conditioned_are_not_lifted() -> None:
    raw = moments(2, 6, 100)
    for form in ("auto", "cholesky", "eigen"):
        torch.testing.assert_close(whole(Gram(raw, form=form), 6, 2)[1], raw)


@pytest.mark.parametrize("places", [1, 3])
def test_eigenvalues_are_lifted_where_cholesky_fails(places: int) -> None:
    raw = moments(1, 8, places)
    scale = raw[0].diagonal().sqrt()
    lifted = whole(Gram(raw, floor=1e-4), 8)[1][0] / scale / scale[:, None]
    values = torch.linalg.eigvalsh(lifted)
    torch.testing.assert_close(values[: 8 - places], torch.full_like(values[places:], 1e-4))
    before = torch.linalg.eigvalsh(raw[0] / scale / scale[:, None])
    torch.testing.assert_close(values[8 - places :], before[8 - places :])


@pytest.mark.parametrize("form", ["auto", "cholesky", "eigen"])
def test_pivots_of_rounding_are_no_success_of_cholesky(form: Form) -> None:
    raw = torch.tensor([[[1.0, 1 - 1e-10], [1 - 1e-10, 1.0]]], dtype=torch.float64)
    assert not int(torch.linalg.cholesky_ex(raw).info)
    values = torch.linalg.eigvalsh(whole(Gram(raw, form=form), 2)[1][0])
    assert 0.99e-6 <= float(values[0]) <= 1.01e-5


@pytest.mark.parametrize("how", ["asked for", "too many columns"])
def test_without_eigenvectors_the_whole_diagonal_is_lifted(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.linalg, "eigh")
    monkeypatch.setattr(module, "_EIGEN_COLUMNS", 4)
    raw = moments(2, 8, 3)
    gram = Gram(raw, form="cholesky" if how == "asked for" else "auto")
    added = whole(gram, 8, 2)[1] - raw
    share = added.diagonal(dim1=1, dim2=2) / raw.diagonal(dim1=1, dim2=2)
    assert float(share.min()) >= 0.99e-6
    assert float(share.max()) <= 1.1e-4


def test_a_few_large_inputs_do_not_floor_the_small_ones() -> None:
    size = torch.tensor([1e4, 1.0, 1e-4, 1.0, 1e4], dtype=torch.float64)
    raw = moments(1, 5, 60) * size * size[:, None]
    for form in ("auto", "eigen"):
        torch.testing.assert_close(whole(Gram(raw, form=form), 5)[1], raw, rtol=1e-9, atol=0.0)


def test_inputs_that_were_never_seen_get_the_floor() -> None:
    raw = moments(1, 5, 60)
    raw[:, 2] = raw[:, :, 2] = 0
    added = (whole(Gram(raw), 5)[1] - raw)[0]
    assert 0 < float(added[2, 2]) < 1e-5
    assert float(added[[0, 1, 3, 4]].abs().max()) < 1e-12


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_all_zero_moments_are_a_multiple_of_the_identity(damping: float) -> None:
    raw = moments(3, 4, 60)
    raw[1] = 0
    s = whole(Gram(raw, damping=damping), 4, 3)[1]
    torch.testing.assert_close(s[1], torch.eye(4, dtype=torch.float64) * s[1, 0, 0])
    assert 0.1 < float(s[1, 0, 0]) < 10
    zero = Gram(torch.zeros(1, 4, 4), damping=damping)
    torch.testing.assert_close(whole(zero, 4)[1][0], torch.eye(4, dtype=torch.float64))


def test_identity_is_that_of_any_form() -> None:
    weight = drawn(2, 3, 6)
    gram = Gram.identity(2, 6)
    for of in (gram.product, gram.times, gram.through, gram.whitened, gram.unwhitened):
        assert torch.equal(of(weight), weight)
    assert not gram.lifted(weight).any()


def test_moments_are_not_changed_and_factorized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.linalg.cholesky_ex

    def counted(*args: object, **options: object) -> object:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    raw = moments(2, 6, 40)
    before = raw.clone()
    gram = Gram(raw)
    assert not calls
    for seed in range(3):
        gram.whitened(gram.through(drawn(2, 3, 6, seed=seed)))
    assert len(calls) == 1
    assert torch.equal(raw, before)


def test_float32_moments_are_worked_on_in_float64() -> None:
    raw = moments(1, 6, 40).float()
    weight = drawn(1, 3, 6).float()
    gram = Gram(raw)
    for of in (gram.product, gram.times, gram.lifted, gram.through, gram.whitened, gram.unwhitened):
        assert of(weight).dtype == torch.float64
