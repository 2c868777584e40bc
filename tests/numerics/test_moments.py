"""Columns of convolutions, and second moments of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from edgecompress.numerics.moments import SecondMoments, chosen_places, patches, products


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (1, 2)), ((1, 1), (2, 2), (1, 1))],
)
def test_patches_times_weights_are_the_convolution(
    groups: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    x = torch.randn(2, 6, 9, 8, generator=drawn())
    weight = torch.randn(12, 6 // groups, *kernel, generator=drawn(1))
    y = functional.conv2d(x, weight, None, stride, 0, dilation, groups)
    columns = patches(x, kernel, stride, dilation, groups)
    found = columns @ weight.reshape(groups, 12 // groups, -1).transpose(1, 2)
    expected = y.movedim(1, -1).reshape(-1, groups, 12 // groups).transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_patches_of_other_ranks(rank: int) -> None:
    x = torch.randn(2, 4, *[5] * rank, generator=drawn())
    weight = torch.randn(3, 4, *[2] * rank, generator=drawn(1))
    convolve = {1: functional.conv1d, 3: functional.conv3d}[rank]
    found = patches(x, [2] * rank, [1] * rank, [1] * rank, 1)[0] @ weight.flatten(1).T
    expected = convolve(x, weight).movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_chosen_places_pick_columns_of_the_whole() -> None:
    x = torch.randn(3, 2, 6, 6, generator=drawn())
    places = chosen_places(3 * 16, 10, drawn())
    assert places is not None
    assert len(places) == len(set(places.tolist())) == 10
    whole = patches(x, (3, 3), (1, 1), (1, 1), 1)
    assert torch.equal(patches(x, (3, 3), (1, 1), (1, 1), 1, places), whole[:, places])


def test_padding_is_never_chosen() -> None:
    real = torch.tensor([True, False, True, True, False])
    assert chosen_places(5, 10, drawn(), real).tolist() == [0, 2, 3]  # type: ignore[union-attr]
    few = chosen_places(5, 2, drawn(), real)
    assert few is not None
    assert set(few.tolist()) <= {0, 2, 3}


def test_all_places_are_taken_where_there_are_few() -> None:
    assert chosen_places(5, 5, drawn()) is None


def test_moments_are_the_sum_of_outer_products() -> None:
    columns = torch.randn(2, 50, 4, generator=drawn())
    moments = SecondMoments()
    for part in columns.split(20, 1):
        moments.add(products(part), part.shape[1])
    expected = torch.einsum("gpi,gpj->gij", columns.double(), columns.double())
    torch.testing.assert_close(moments.total(), expected, atol=1e-4, rtol=1e-5)
    assert moments.places == 50


def test_centred_moments_are_the_covariance() -> None:
    columns = torch.randn(2, 50, 4, generator=drawn()) + 3
    moments = SecondMoments()
    for part in columns.split(20, 1):
        moments.add(products(part), part.shape[1])
    expected = torch.stack([torch.cov(group.T.double()) * 49 for group in columns])
    torch.testing.assert_close(moments.total(centred=True), expected, atol=1e-2, rtol=1e-4)


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch"):
        SecondMoments().total()
