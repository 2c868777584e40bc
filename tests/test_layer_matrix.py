"""Layers as matrices: the product of columns and weights is what the layer computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgecompress.layer_matrix import LayerMatrix, layer_matrix
from edgecompress.model import Model
from edgecompress.torchgraph import to_torch
from tests.models import from_text

F = np.float32
LAYERS = [
    ("Conv<pads=[1,1,1,1]>(x, w)", (2, 6, 7, 7), (4, 6, 3, 3)),
    ("Conv<group=6, strides=[2,2], pads=[0,1,1,0]>(x, w)", (2, 6, 7, 7), (12, 1, 3, 3)),
    ('Conv<group=3, auto_pad="SAME_UPPER", strides=[2,1]>(x, w)', (2, 6, 7, 8), (6, 2, 3, 2)),
    ("Conv<dilations=[2], pads=[2,2]>(x, w)", (2, 6, 9), (4, 6, 3)),
    ("Gemm<transB=1>(x, w)", (5, 6), (4, 6)),
    ("Gemm(x, w)", (5, 6), (6, 4)),
    ("MatMul(x, w)", (2, 3, 6), (6, 4)),
]


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def layer(call: str, shape: tuple[int, ...], weight: tuple[int, ...]) -> Model:
    dims = [",".join(map(str, sizes)) for sizes in (shape, weight)]
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[{dims[0]}] x, float[{dims[1]}] w) => (float[{",".join("N" * len(shape))}] y)
        {{ y = {call} }}
        """,
        w=np.random.default_rng(0).normal(0, 1, weight).astype(F),
    )


def example(
    call: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> tuple[LayerMatrix, torch.Tensor, torch.Tensor, torch.Tensor]:
    model = layer(call, shape, weight)
    form = layer_matrix(next(iter(model.ir.graph)), weight)
    assert form is not None
    x = torch.randn(shape, generator=drawn())
    with torch.no_grad():
        y = to_torch(model)({"x": x})["y"]
    return form, x, torch.from_numpy(np.array(model.initializer("w"))), y


@pytest.mark.parametrize(("call", "shape", "weight"), LAYERS)
def test_columns_times_weights_are_the_outputs(
    call: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    form, x, w, y = example(call, shape, weight)
    for most in (10**6, 4):
        places, count = form.places(x, None, most, drawn())
        found = form.columns(x, places) @ form.weight(w).transpose(1, 2)
        assert found.shape[1] == count
        torch.testing.assert_close(found, form.outputs(y, places), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("call", "shape", "weight"), LAYERS)
def test_weights_come_back_as_they_were(
    call: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    form, _, w, y = example(call, shape, weight)
    assert torch.equal(form.as_stored(form.weight(w)), w)
    channels = torch.arange(float(y.shape[-1 if "Conv" not in call else 1]))
    assert form.per_row(channels).flatten().tolist() == channels.tolist()
    assert set(form.per_row(torch.tensor(0.5)).flatten().tolist()) == {0.5}


@pytest.mark.parametrize(
    ("call", "shape", "weight", "length"),
    [(*LAYERS[6], 3), ("Conv<pads=[1,1]>(x, w)", (2, 6, 9), (4, 6, 3), 9)],
)
def test_padding_is_left_out(
    call: str, shape: tuple[int, ...], weight: tuple[int, ...], length: int
) -> None:
    form, x, _, _ = example(call, shape, weight)
    mask = np.ones((2, length), bool)
    mask[1, 1:] = False
    places, count = form.places(x, mask, 10**6, drawn())
    assert places is not None
    assert places.tolist() == list(range(length + 1))
    assert count == length + 1


@pytest.mark.parametrize(
    ("call", "shape", "weight"),
    [
        ("ConvTranspose(x, w)", (2, 6, 7, 7), (6, 4, 3, 3)),
        ("Gemm<transA=1>(x, w)", (6, 5), (6, 4)),
        ("MatMul(x, w)", (2, 3, 6), (2, 6, 4)),
    ],
)
def test_other_layers_have_no_matrix(
    call: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    node = next(iter(layer(call, shape, weight).ir.graph))
    assert layer_matrix(node, weight) is None
