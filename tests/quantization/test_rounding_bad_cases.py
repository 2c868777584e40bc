"""Rounding of weights where one layer, one block or finite numbers cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import PassError
from edgecompress.model import Model
from edgecompress.quantization.rounding import RoundingMethod, round_weights
from tests.models import from_text, small_cnn
from tests.quantization.quantized_graphs import with_pairs
from tests.quantization.rounding_runs import images, matmul, rounded
from tests.running import rows_of

F = np.float32
METHODS = ("gptq", "adaround", "learned")


def shared_weight(*, in_a_row: bool) -> Model:
    """A matrix that two layers of one block use, one behind the other or side by side."""
    rng = np.random.default_rng(0)
    second = "b = MatMul(r, w)" if in_a_row else "b = MatMul(p, w)"
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 12] x, float[12, 12] u, float[12, 12] w) => (float[N, 12] y)
        {{ p = MatMul(x, u)  a = MatMul(p, w)  r = Relu(a)  {second}
           n = Neg(b)  s = Add(r, n)  y = Add(p, s) }}
        """,
        w=rng.normal(0, 0.3, (12, 12)).astype(F),
        u=rng.normal(0, 0.3, (12, 12)).astype(F),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("in_a_row", [True, False])
def test_a_weight_that_two_layers_share(
    tmp_path: Path, method: RoundingMethod, in_a_row: bool
) -> None:
    model = shared_weight(in_a_row=in_a_row)
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (32, 12)).astype(F)}
    before, after, layers, notes = rounded(tmp_path, model, feeds, method)
    assert {note.layer for note in notes.layers} == {"a", "b", "p"}
    shared = next(layer.weight for layer in layers if layer.output == "a")
    kept = np.array_equal(before.initializer(shared), after.initializer(shared))
    of_shared = [note for note in notes.layers if note.layer in ("a", "b")]
    if method == "adaround":
        assert kept
        assert {note.reason for note in of_shared} == {"its weight is used by several layers"}
    else:
        assert not kept
        assert {note.method for note in of_shared} == {method}


def test_a_weight_of_two_blocks_stays_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 12] x, float[12, 12] w, float[12, 12] u) => (float[N, 12] y)
        { a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, u)  d = Relu(c)  y = MatMul(d, w) }
        """,
        w=rng.normal(0, 0.3, (12, 12)).astype(F),
        u=rng.normal(0, 0.3, (12, 12)).astype(F),
    )
    feeds = {"x": rng.normal(0, 1, (32, 12)).astype(F)}
    _, _, _, notes = rounded(tmp_path, model, feeds, "gptq")
    reasons = {note.layer: note.reason for note in notes.layers}
    assert reasons == {
        "a": "its weight is used in another block, too",
        "c": "",
        "y": "its weight is used in another block, too",
    }


def test_a_weight_that_another_layer_uses_stays_the_nearest(tmp_path: Path) -> None:
    model = shared_weight(in_a_row=False)
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (32, 12)).astype(F)}
    quantized, layers = with_pairs(model, feeds)
    asked = [layer for layer in layers if layer.output != "b"]
    data = rows_of(tmp_path, model, feeds)
    notes = round_weights(model, quantized, asked, data, method="gptq", rows=32)
    reasons = {note.layer: note.reason for note in notes.layers}
    assert reasons == {"a": "its weight is used by a layer that is not to be rounded", "p": ""}


def test_a_weight_that_is_a_graph_output_stays_one(tmp_path: Path) -> None:
    model, feeds = matmul()
    model.ir.graph.outputs.append(model.ir.graph.initializers["w1"])
    _, after, _, notes = rounded(tmp_path, model, feeds, "gptq")
    assert [note.method for note in notes.layers] == ["gptq", "gptq"]
    assert np.array_equal(model.initializer("w1"), after.initializer("w1"))


def test_a_layer_that_the_walk_does_not_meet_keeps_its_integers(tmp_path: Path) -> None:
    model, feeds = matmul()
    quantized, layers = with_pairs(model, feeds)
    layers = [replace(layers[0], quantized_output="gone"), layers[1]]
    data = rows_of(tmp_path, model, feeds)
    notes = round_weights(model, quantized, layers, data, method="gptq", rows=8)
    assert [note.method for note in notes.layers] == ["nearest", "gptq"]
    assert "not seen" in notes.layers[0].reason


def test_a_block_without_float_output_teaches_nothing(tmp_path: Path) -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 12] x, float[12, 5] w) => (int64[N] y)
        { h = MatMul(x, w)  y = ArgMax<axis=1, keepdims=0>(h) }
        """,
        w=np.random.default_rng(0).normal(0, 0.3, (12, 5)).astype(F),
    )
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (32, 12)).astype(F)}
    _, _, _, notes = rounded(tmp_path, model, feeds, "learned")
    assert notes.layers[0].reason == "its block has no output to learn from"


@pytest.mark.parametrize("method", METHODS)
def test_nan_activations_are_named(tmp_path: Path, method: RoundingMethod) -> None:
    model = small_cnn()
    broken = np.array(model.initializer("b1"))
    broken[0] = np.nan
    model.set_initializer("b1", broken)
    feeds = {"x": images(8)}
    quantized, layers = with_pairs(model, feeds, activations=False)  # a pair makes NaN a number
    data = rows_of(tmp_path, model, feeds)
    with pytest.raises(PassError, match="NaN") as caught:
        round_weights(model, quantized, layers, data, method=method, rows=8, iterations=2)
    assert caught.value.where is not None
