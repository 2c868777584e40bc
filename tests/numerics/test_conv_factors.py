"""Convolutions in two or three: what closed forms promise, and what data measure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from edgecompress.numerics.conv_factors import (
    ConvMoments,
    Factors,
    Unfolded,
    composed,
    conv_weights,
)
from edgecompress.numerics.low_rank import Gram, LowRank

SHAPES = [(7, 5, 3, 3), (4, 6, 3, 2), (5, 4, 3), (3, 4, 2, 2, 2)]
UNFOLDED = [(shape, kept) for shape in SHAPES for kept in [tuple(range(len(shape) - 2)), (0,)]]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(shape: tuple[int, ...], seed: int = 0, places: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A weight [out, n], correlated columns [places, n], outputs that are not quite theirs."""
    n = math.prod(shape[1:])
    weight = drawn(seed, shape[0], n)
    columns = drawn(seed + 1, places, n) @ drawn(seed + 2, n, n) * torch.linspace(0.1, 2, n)
    return weight, columns, columns @ weight.T + drawn(seed + 3, places, shape[0])


def moments(weight: Tensor, columns: Tensor, outputs: Tensor) -> ConvMoments:
    places = len(columns)
    gram, target = columns.T @ columns / places, outputs.T @ columns / places
    return ConvMoments(weight, target, gram, float(outputs.square().sum()) / places)


def measured(product: Tensor, columns: Tensor, outputs: Tensor) -> float:
    return float((outputs - columns @ product.T).square().sum()) / len(columns)


def product_of(factors: Factors, shape: tuple[int, ...], kept: tuple[int, ...]) -> Tensor:
    return composed(conv_weights(factors, shape[2:], kept))[0]


@pytest.mark.parametrize(
    "kernels", [[(3, 1), (1, 3)], [(1, 3), (3, 1)], [(1, 1), (3, 3), (1, 1)], [(3, 3), (1, 1)]]
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "dilation", "pads"),
    [
        ((1, 1), (1, 1), (1, 1, 1, 1)),
        ((2, 2), (1, 1), (0, 1, 1, 0)),
        ((2, 1), (2, 2), (2, 0, 1, 3)),
    ],
)
def test_composed_is_what_convolutions_in_turn_do(
    kernels: list[tuple[int, int]],
    groups: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> None:
    """With window attributes of each axis at the convolution that moves along it."""
    x, channels = drawn(0, 2, 4, 11, 12), [4, 6, 8, 10]
    given, flow, weights = functional.pad(x, pads), x, []
    for i, kernel in enumerate(kernels):
        weight = drawn(i + 1, channels[i + 1], channels[i] // groups, *kernel)
        weights.append(weight)
        own = [size > 1 for size in kernel]
        padded = functional.pad(flow, [n if own[1 - i // 2] else 0 for i, n in enumerate(pads)])
        strides, dilations = (
            [value if mine else 1 for value, mine in zip(values, own, strict=True)]
            for values in (stride, dilation)
        )
        flow = functional.conv2d(padded, weight, None, strides, 0, dilations, groups)
    whole = composed(weights, groups).reshape(-1, 4 // groups, 3, 3)
    expected = functional.conv2d(given, whole, None, stride, 0, dilation, groups)
    torch.testing.assert_close(flow, expected)


@pytest.mark.parametrize(("shape", "kept"), UNFOLDED)
@pytest.mark.parametrize("outputs", [2, 10**6])
def test_predicted_loss_is_measured(
    shape: tuple[int, ...], kept: tuple[int, ...], outputs: int
) -> None:
    weight, x, y = data(shape)
    seen = moments(weight, x, y)
    layer = Unfolded(seen, shape, kept)
    for factors in layer.start([(2, min(outputs, shape[0])), (1, 1)]):
        for found in (factors, layer.improve(factors, 3)):
            product = product_of(found, shape, kept)
            assert found.loss == pytest.approx(measured(product, x, y), rel=1e-8)


@pytest.mark.parametrize(("shape", "kept"), UNFOLDED)
def test_rest_is_the_least_squares_solution(shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    weight, x, y = data(shape)
    factors = Unfolded(moments(weight, x, y), shape, kept).start([(2, shape[0])])[0]
    parts = conv_weights(factors, shape[2:], kept)
    eye = torch.eye(parts[1][0].numel(), dtype=torch.float64).reshape(-1, *parts[1].shape[1:])
    seen = x @ composed([parts[0], eye])[0].T
    assert factors.loss == pytest.approx(
        measured(torch.linalg.lstsq(seen, y).solution.T, seen, y), rel=1e-8
    )


def test_rest_of_low_rank_is_the_closed_form_on_what_the_basis_puts_out() -> None:
    shape, kept = (7, 5, 3, 3), (0, 1)
    weight, x, y = data(shape)
    factors = Unfolded(moments(weight, x, y), shape, kept).start([(3, 4)])[0]
    eye = torch.eye(27, dtype=torch.float64).reshape(27, 3, 3, 3)
    seen = x @ composed([factors.basis.reshape(3, 5, 1, 1), eye])[0].T
    reduced = moments(weight[:, :27], seen, y)
    power = torch.tensor([reduced.power], dtype=torch.float64)
    best = LowRank(reduced.target[None], Gram(reduced.gram[None]), power)
    assert factors.loss == pytest.approx(best.error(4), rel=1e-8)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 1000),
    which=st.sampled_from(UNFOLDED),
    basis=st.integers(1, 4),
    outputs=st.integers(1, 8),
    steps=st.integers(1, 5),
    places=st.sampled_from([3, 20, 200]),
)
def test_loss_never_rises(
    seed: int,
    which: tuple[tuple[int, ...], tuple[int, ...]],
    basis: int,
    outputs: int,
    steps: int,
    places: int,
) -> None:
    """Nor is it below what no weight at all, or none of that rank, can reach; few places too."""
    shape, kept = which
    outputs = min(outputs, shape[0])
    seen = moments(*data(shape, seed, places))
    layer = Unfolded(seen, shape, kept)
    found = layer.start([(min(basis, layer.widest), outputs)])[0]
    power = torch.tensor([seen.power], dtype=torch.float64)
    least = LowRank(seen.target[None], Gram(seen.gram[None], floor=1e-12), power).error(outputs)
    for _ in range(4):
        better = layer.improve(found, 1, steps)
        assert better.loss <= found.loss
        found = better
    assert found.loss <= seen.power * (1 + 1e-9)
    assert found.loss >= least - 1e-7 * seen.power


@pytest.mark.parametrize(("shape", "kept"), UNFOLDED[:2])
@pytest.mark.parametrize("outputs", [2, 10**6])
def test_many_sweeps_end_where_the_gradient_vanishes(
    shape: tuple[int, ...], kept: tuple[int, ...], outputs: int
) -> None:
    weight, x, y = data(shape)
    layer = Unfolded(moments(weight, x, y), shape, kept)
    found = layer.start([(2, min(outputs, shape[0]))])[0]

    def slope(factors: Factors) -> float:
        parts = [part.requires_grad_() for part in conv_weights(factors, shape[2:], kept)]
        lost = (y - x @ composed(parts)[0].T).square().mean()
        return max(float(slope.norm()) for slope in torch.autograd.grad(lost, parts))

    before = slope(found)
    for _ in range(40):
        found = layer.improve(found, 1, 8)
    assert slope(found) < 0.1 * before


@pytest.mark.parametrize("first", [0, 1])
def test_a_separable_kernel_is_found(first: int) -> None:
    """In the order that it was made in."""
    shape, kernels = (8, 6, 3, 3), [(3, 1), (1, 3)]
    one, two = kernels if first == 0 else kernels[::-1]
    weight = composed([drawn(0, 4, 6, *one), drawn(1, 8, 4, *two)])[0]
    _, x, _ = data(shape)
    seen = moments(weight, x, x @ weight.T)
    factors = Unfolded(seen, shape, (1 - first,)).start([(4, 8)])[0]
    assert factors.loss < 1e-9 * seen.power
    torch.testing.assert_close(
        product_of(factors, shape, (1 - first,)), weight, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("outputs", [4, 8])
def test_a_tucker_kernel_is_found(outputs: int) -> None:
    shape = (8, 6, 3, 3)
    parts = [drawn(0, 3, 6, 1, 1), drawn(1, 4, 3, 3, 3), drawn(2, 8, 4, 1, 1)]
    weight = composed(parts)[0]
    _, x, _ = data(shape)
    seen = moments(weight, x, x @ weight.T)
    factors = Unfolded(seen, shape, (0, 1)).start([(3, outputs)])[0]
    assert factors.loss < 1e-9 * seen.power


def test_starts_of_several_ranks_are_those_of_each_alone() -> None:
    shape = (7, 5, 3, 3)
    layer = Unfolded(moments(*data(shape)), shape, (0, 1))
    ranks = [(1, 3), (4, 2), (3, 7)]
    together = [factors.loss for factors in layer.start(ranks)]
    assert together == pytest.approx([layer.start([pair])[0].loss for pair in ranks], rel=1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), which=st.sampled_from(UNFOLDED), outputs=st.integers(2, 8))
def test_weights_alone_lose_more(
    seed: int, which: tuple[tuple[int, ...], tuple[int, ...]], outputs: int
) -> None:
    shape, kept = which
    pair = 2, min(outputs, shape[0])
    weight, x, y = data(shape, seed)
    eye = torch.eye(weight.shape[1], dtype=torch.float64)
    of_weight = ConvMoments(weight, weight, eye, float(weight.square().sum()))
    aware, blind = (Unfolded(seen, shape, kept) for seen in (moments(weight, x, y), of_weight))
    alone = blind.improve(blind.start([pair])[0], 6)
    product = product_of(alone, shape, kept)
    assert alone.loss == pytest.approx(float((product - weight).square().sum()), rel=1e-6)
    assert aware.improve(aware.start([pair])[0], 6).loss < measured(product, x, y)


@pytest.mark.parametrize("seen", ["nothing", "one channel", "one place"])
def test_moments_that_tell_little_give_finite_factors(seen: str) -> None:
    shape = (6, 4, 3, 3)
    weight, x, _ = data(shape)
    if seen == "nothing":
        x = torch.zeros_like(x)
    elif seen == "one channel":
        x[:, 9:] = 0
    else:
        x = x[:1]
    layer = Unfolded(moments(weight, x, x @ weight.T), shape, (0, 1))
    found = layer.improve(layer.start([(2, 3)])[0], 3)
    assert all(bool(part.isfinite().all()) for part in conv_weights(found, (3, 3), (0, 1)))
