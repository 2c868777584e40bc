"""Second moments of inputs and targets, batch by batch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.numerics import joint_moments
from edgecompress.numerics.joint_moments import JointMoments, joint_products


def batches(
    lengths: tuple[int, ...], columns: int = 5, groups: int = 2, seed: int = 0
) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(groups, count, columns, generator=drawn) + 0.5 for count in lengths]


def moments(b: list[Tensor], a: list[Tensor] | None = None) -> JointMoments:
    found = JointMoments()
    for place in range(len(b)):
        found.add(joint_products(b[place], None if a is None else a[place]))
    return found


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    targets=st.integers(1, 7),
    centred=st.booleans(),
)
def test_means_are_those_of_all_places_at_once(
    lengths: list[int], targets: int, centred: bool
) -> None:
    b, a = batches(tuple(lengths)), batches(tuple(lengths), targets, seed=1)
    found = moments(b, a)
    all_b, all_a = torch.cat(b, 1).double(), torch.cat(a, 1).double()
    mean_b, mean_a = all_b.mean(1), all_a.mean(1)
    if centred:
        all_b, all_a = all_b - mean_b[:, None], all_a - mean_a[:, None]
    places = sum(lengths)
    assert found.places == places
    # 9 summands of float32, of size 10 at most.
    close: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.gram(centred=centred), all_b.mT @ all_b / places, **close)
    torch.testing.assert_close(found.cross(centred=centred), all_a.mT @ all_b / places, **close)
    torch.testing.assert_close(found.power(centred=centred), all_a.square().mean(1), **close)
    torch.testing.assert_close(found.mean_b, mean_b, **close)
    torch.testing.assert_close(found.mean_a, mean_a, **close)


@pytest.mark.parametrize("centred", [False, True])
def test_without_a_target_side_it_is_the_input(centred: bool) -> None:
    b = batches((7, 4))
    alone, twice = moments(b), moments(b, b)
    for of in ("gram", "cross", "power"):
        found = getattr(alone, of)(centred=centred)
        torch.testing.assert_close(found, getattr(twice, of)(centred=centred))
    torch.testing.assert_close(alone.cross(centred=centred), alone.gram(centred=centred))
    torch.testing.assert_close(alone.mean_a, twice.mean_a)


def test_what_is_added_is_neither_changed_nor_kept() -> None:
    b = batches((6, 6))
    first, second = (joint_products(x) for x in b)
    before = {k: v.clone() for k, v in vars(first).items() if isinstance(v, Tensor)}
    found = JointMoments()
    found.add(first)
    found.add(second)
    for name, tensor in before.items():
        assert torch.equal(getattr(first, name), tensor)
    expected = found.gram()
    first.gram.zero_()
    found.gram().zero_()
    assert torch.equal(found.gram(), expected)


def test_products_are_float32_whatever_comes_in() -> None:
    b = batches((6,))[0]
    found = joint_products(b.half(), b.double())
    tensors = [v for v in vars(found).values() if isinstance(v, Tensor)]
    assert len(tensors) == 5
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_many_batches_lose_nothing_in_float64_and_little_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    b = batches((3,) * 300, groups=1)
    exact = torch.cat(b, 1)[0].double()
    expected = exact.mT @ exact / len(exact)
    errors = {}
    for wide in (0, 100):
        monkeypatch.setattr(joint_moments, "_WIDE", wide)
        errors[wide] = float((moments(b).gram()[0] - expected).abs().max() / expected.max())
    assert errors[100] < 1e-7  # the products of single batches are float32
    assert errors[0] < 300 * 2**-24


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e25])
@pytest.mark.parametrize("side", ["a", "b"])
def test_finite_tells_of_nan_and_overflow(value: float, side: str) -> None:
    b, a = batches((4, 4)), batches((4, 4), 3)
    assert moments(b, a).finite()
    (a if side == "a" else b)[1][1, 2, 0] = value
    found = moments(b, a)
    assert not found.finite()


def test_no_places_at_all_are_zero_moments() -> None:
    found = moments(batches((0, 0)), batches((0,) * 2, 3))
    assert found.places == 0
    assert found.finite()
    assert not found.gram().any()
    assert not found.cross(centred=True).any()
    assert not found.power().any()


def test_errors_name_what_was_expected() -> None:
    with pytest.raises(ValueError, match="no batch"):
        JointMoments().gram()
    with pytest.raises(ValueError, match="no batch"):
        _ = JointMoments().mean_a
    b = batches((4,))[0]
    with pytest.raises(ValueError, match="same"):
        joint_products(b, b[:, :3])
    found = JointMoments()
    found.add(joint_products(b, b))
    with pytest.raises(ValueError, match="in all batches or in none"):
        found.add(joint_products(b))
    assert found.places == 4


def test_products_are_a_value() -> None:
    products = joint_products(batches((4,))[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        products.places = 3  # type: ignore[misc]
