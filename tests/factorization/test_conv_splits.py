"""Splits of convolutions: what they cost, what they lose, and which one is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.factorization.conv_splits import CONV_KINDS, best_split, split_cost
from edgecompress.factorization.parts import Layer, Pair, Split, SplitKind
from edgecompress.layer_matrix import LayerMatrix, layer_matrix
from edgecompress.model import Model
from edgecompress.numerics.conv_factors import composed
from edgecompress.numerics.low_rank import Gram, LowRank
from edgecompress.torchgraph import to_torch

NOTHING_SAVED = "no split of kind output or spatial or tucker has at most"


def conv(
    shape: Sequence[int],
    groups: int = 1,
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
    strides: tuple[int, ...] | None = None,
    places: int = 64,
) -> Layer:
    attributes = (("strides", strides), ("dilations", None), ("pads", None))
    form = LayerMatrix(tuple(shape), groups, False, (*attributes, ("auto_pad", "NOTSET")))
    places = math.prod(lengths[1]) if lengths[1] else places
    return Layer("y", "conv", "Conv", "x", "w", form, True, math.prod(shape) * places, lengths)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(layer: Layer, seed: int = 0, places: int = 300) -> tuple[Tensor, Tensor]:
    """A weight [groups, rows, columns], and correlated columns [groups, places, columns]."""
    n = layer.columns
    weight = drawn(seed, layer.groups, layer.rows, n)
    mixed = drawn(seed + 2, layer.groups, n, n) * torch.linspace(0.1, 2, n)
    return weight, drawn(seed + 1, layer.groups, places, n) @ mixed


def gram_of(columns: Tensor) -> Gram:
    return Gram(columns.mT @ columns / columns.shape[1])


def relative_error(layer: Layer, split: Split, columns: Tensor, wanted: Tensor) -> float:
    found = columns @ composed([w.double() for w in split.weights], layer.groups).mT
    return float((wanted - found).square().sum() / wanted.square().sum())


def taken(split: Split | str) -> Split:
    assert isinstance(split, Split), split
    return split


@pytest.mark.parametrize(
    ("layer", "kind", "ranks", "first", "parameters", "macs"),
    [
        (conv((8, 4, 3, 3)), "output", (2,), 0, 2 * 36 + 8 * 2, 64 * (72 + 16)),
        (conv((8, 4, 3, 3), 2), "output", (2,), 0, 2 * (2 * 36 + 4 * 2), 64 * 2 * (72 + 8)),
        (conv((8, 4, 3, 5)), "spatial", (2,), 0, 2 * 12 + 8 * 10, 64 * (24 + 80)),
        (conv((8, 4, 3, 5)), "spatial", (2,), 1, 2 * 20 + 8 * 6, 64 * (40 + 48)),
        (conv((8, 4, 3, 3)), "tucker", (2, 3), 0, 8 + 54 + 24, 64 * (8 + 54 + 24)),
        (conv((8, 4, 3, 3)), "tucker", (2, 8), 0, 8 + 144, 64 * (8 + 144)),
        # Behind a stride: what comes before it runs at the input's length along that axis.
        (
            conv((8, 4, 3, 3), lengths=((16, 12), (8, 4))),
            *("spatial", (2,), 0, 24 + 48, 24 * 8 * 12 + 48 * 8 * 4),
        ),
        (
            conv((8, 4, 3, 3), lengths=((16, 12), (8, 4))),
            *("spatial", (2,), 1, 24 + 48, 24 * 16 * 4 + 48 * 8 * 4),
        ),
        (
            conv((8, 4, 3, 3), lengths=((16, 12), (8, 4))),
            *("tucker", (2, 3), 0, 8 + 54 + 24, 8 * 16 * 12 + (54 + 24) * 8 * 4),
        ),
        (conv((8, 4, 3, 3), strides=(2, 1)), "tucker", (2, 3), 0, 86, 64 * (2 * 8 + 54 + 24)),
        (conv((8, 4, 3)), "tucker", (2, 3), 0, 8 + 18 + 24, 64 * (8 + 18 + 24)),
        (
            Layer("y", "fc", "Gemm", "x", "w", LayerMatrix((8, 6)), True, 48),
            *("matrix", (2,), 0, 28, 28),
        ),
    ],
)
def test_costs(
    layer: Layer, kind: SplitKind, ranks: Pair, first: int, parameters: int, macs: float
) -> None:
    found = split_cost(layer, kind, ranks, first=first)
    assert found[0] == parameters
    assert found[1] == pytest.approx(macs)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(8, 6, 3, 3), (12, 3, 3, 3), (6, 8, 3, 2), (8, 4, 3), (6, 5, 2, 2, 2)]),
    kinds=st.sampled_from([CONV_KINDS, ("output",), ("spatial",), ("tucker",)]),
    keep=st.floats(0.05, 1.2),
    count=st.sampled_from(["parameters", "macs"]),
    strided=st.booleans(),
    multiple=st.sampled_from([1, 4]),
)
def test_splits_keep_to_the_budget_and_lose_what_they_say(
    seed: int,
    shape: tuple[int, ...],
    kinds: tuple[SplitKind, ...],
    keep: float,
    count: Literal["parameters", "macs"],
    strided: bool,
    multiple: int,
) -> None:
    axes = len(shape) - 2
    layer = conv(shape, lengths=((8,) * axes, (4 if strided else 8,) * axes))
    weight, x = data(layer, seed)
    wanted = x @ weight.mT + 0.3 * drawn(seed, 1, x.shape[1], layer.rows)
    target = wanted.mT @ x / x.shape[1]
    power = wanted.square().sum((1, 2)) / x.shape[1]
    which = count == "macs"
    dense = layer.parameters, layer.macs
    most = keep * dense[which]
    split = best_split(
        *(layer, weight, target, gram_of(x), power, most),
        count=count,
        kinds=kinds,
        multiple=multiple,
    )
    if isinstance(split, str):
        cheapest = split_cost(layer, "output", (1,))[which]
        assert "output" not in kinds or most < cheapest
        return
    assert split.kind in kinds
    first = int(split.kind == "spatial" and split.weights[0].shape[2] == 1)
    cost = split_cost(layer, split.kind, split.ranks, first=first)
    assert cost[which] <= most * (1 + 1e-9)
    assert cost[0] < dense[0] or cost[1] < dense[1]
    assert cost[0] == split.parameters
    assert all(rank % multiple == 0 or rank < multiple for rank in split.ranks[:1])
    assert all(part.dtype == torch.float32 for part in split.weights)
    assert split.error == pytest.approx(relative_error(layer, split, x, wanted), rel=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
def test_output_side_is_the_closed_form(groups: int) -> None:
    layer = conv((9, 4, 3, 3), groups)
    weight, x = data(layer)
    gram = gram_of(x)
    most = split_cost(layer, "output", (2,))[0]
    split = taken(
        best_split(layer, weight, None, gram, None, most, count="parameters", kinds=("output",))
    )
    best = LowRank(weight @ gram.product(torch.eye(36).expand(groups, -1, -1)), gram, None)
    assert (split.kind, split.ranks) == ("output", (2,))
    assert split.error == pytest.approx(best.error(2) / best.power, rel=1e-5)
    assert [tuple(part.shape) for part in split.weights] == [
        (2 * groups, 4, 3, 3),
        (9, 2, 1, 1),
    ]


@pytest.mark.parametrize(
    ("kernels", "ranks", "kind"),
    [
        ([(3, 1), (1, 3)], (4,), "spatial"),
        ([(1, 3), (3, 1)], (4,), "spatial"),
        ([(1, 1), (3, 3), (1, 1)], (2, 2), "tucker"),
        ([(1, 1), (3, 3)], (2, 8), "tucker"),
        ([(3, 3), (1, 1)], (2,), "output"),
    ],
)
def test_a_kernel_that_is_split_already_is_taken_apart_again(
    kernels: list[tuple[int, int]], ranks: Pair, kind: SplitKind
) -> None:
    layer = conv((8, 6, 3, 3))
    channels = [6, *ranks, 8]
    parts = [
        drawn(i, after, before, *kernel)
        for i, (before, after, kernel) in enumerate(
            zip(channels, channels[1:], kernels, strict=False)
        )
    ]
    weight, x = composed(parts), data(layer)[1]
    most = sum(part.numel() for part in parts)
    split = taken(best_split(layer, weight, None, gram_of(x), None, most, count="parameters"))
    assert split.kind == kind
    assert [part.shape for part in split.weights] == [part.shape for part in parts]
    assert split.error < 1e-9


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), kinds=st.sampled_from([CONV_KINDS, *((k,) for k in CONV_KINDS)]))
def test_weights_alone_lose_more(seed: int, kinds: tuple[SplitKind, ...]) -> None:
    layer = conv((8, 6, 3, 3))
    weight, x = data(layer, seed)
    aware, blind = (
        taken(
            best_split(
                *(layer, weight, None, gram_of(x), None, 0.5 * layer.parameters),
                count="parameters",
                kinds=kinds,
                weight_only=alone,
            )
        )
        for alone in (False, True)
    )
    assert aware.error < blind.error
    assert blind.error == pytest.approx(relative_error(layer, blind, x, x @ weight.mT), rel=1e-5)


def test_without_data_the_gram_is_the_identity() -> None:
    layer = conv((8, 6, 3, 3))
    weight, x = data(layer)
    blank = Gram.identity(1, layer.columns)
    found, same = (
        taken(
            best_split(layer, weight, None, gram, None, 200, count="parameters", weight_only=alone)
        )
        for gram, alone in [(blank, False), (gram_of(x), True)]
    )
    assert all(torch.equal(a, b) for a, b in zip(found.weights, same.weights, strict=True))
    lost = composed([part.double() for part in found.weights]) - weight
    assert found.error == pytest.approx(float(lost.square().sum() / weight.square().sum()))


def test_damping_keeps_factors_near_the_weight_where_no_input_was_seen() -> None:
    layer = conv((8, 6, 3, 3))
    weight, x = data(layer, places=10)  # fewer than columns
    split = taken(best_split(layer, weight, None, gram_of(x), None, 216, count="parameters"))
    product = composed([part.double() for part in split.weights])
    assert float((product - weight).norm() / weight.norm()) < 3


@pytest.mark.parametrize(
    ("layer", "kinds", "most", "reason"),
    [
        (conv((8, 6, 3, 3)), CONV_KINDS, 5, NOTHING_SAVED + " 5 parameters"),
        (conv((2, 1, 3, 3), 2), CONV_KINDS, 18, NOTHING_SAVED + " 18 parameters"),
        (conv((8, 6, 1, 1)), ("spatial", "tucker"), 30, "spatial or tucker has at most 30"),
        (conv((8, 6, 3)), ("spatial",), 100, "spatial has at most 100"),
        (conv((8, 3, 3, 3), 2), ("tucker",), 100, "tucker has at most 100"),
        (conv((1, 513, 3, 3)), ("tucker",), 1e6, "its 4,617 columns are too many"),
    ],
)
def test_reasons(layer: Layer, kinds: tuple[SplitKind, ...], most: float, reason: str) -> None:
    blank = Gram.identity(layer.groups, layer.columns)
    weight = torch.ones(layer.groups, layer.rows, layer.columns)
    found = best_split(layer, weight, None, blank, None, most, count="parameters", kinds=kinds)
    assert isinstance(found, str)
    assert reason in found


def test_data_help_on_images_that_were_not_seen(shared: Callable[[str], Path]) -> None:
    """A layer of ResNet-20, split to half its multiply-accumulates."""
    model = Model.load(shared("resnet20_cifar10.onnx"))
    node = [node for node in model.ir.graph if node.op_type == "Conv"][8]
    x, w = (value.name or "" for value in node.inputs[:2] if value is not None)
    array = torch.from_numpy(np.array(model.initializer(w)))
    form = layer_matrix(node, array.shape)
    assert form is not None
    # The rows are sorted by class: take some of each, fitted and unseen alike.
    order = np.random.default_rng(0).permutation(5000)[:96]
    images = np.load(shared("cifar10.npz"))["train_x"][order].astype(np.float32)
    scaled = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    graph = to_torch(model, outputs=[x])
    with torch.no_grad():
        seen = graph({"input": torch.from_numpy(scaled.astype(np.float32).transpose(0, 3, 1, 2))})
        columns = form.columns(seen[x], None).double()
    end = columns.shape[1] * 2 // 3  # 64 of the 96 images
    fitted, unseen = columns[:, :end], columns[:, end:]
    weight = form.weight(array).double()
    lengths = tuple(seen[x].shape[2:])
    macs = array.numel() * math.prod(lengths)
    layer = Layer("y", "conv", "Conv", x, w, form, True, macs, (lengths, lengths))
    for kinds in [CONV_KINDS, *((kind,) for kind in CONV_KINDS)]:
        aware, blind = (
            relative_error(
                layer,
                taken(
                    best_split(
                        *(layer, weight, None, gram_of(fitted), None, 0.5 * layer.macs),
                        count="macs",
                        kinds=kinds,
                        weight_only=alone,
                    )
                ),
                *(unseen, unseen @ weight.mT),
            )
            for alone in (False, True)
        )
        assert aware < 0.7 * blind
