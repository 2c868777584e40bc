"""Rounding of weights on the walk: what all methods have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.model import Model
from edgecompress.quantization.rounding import RoundingMethod, round_weights
from edgecompress.torchgraph import to_torch
from tests.models import small_cnn
from tests.quantization.quantized_graphs import with_pairs
from tests.quantization.rounding_runs import error, images, integers, matmul, rounded
from tests.running import rows_of

F = np.float32
METHODS = ("gptq", "adaround", "learned")


@pytest.mark.parametrize("method", METHODS)
def test_it_errs_less_than_the_nearest_on_new_rows(tmp_path: Path, method: RoundingMethod) -> None:
    model, feeds = small_cnn(), {"x": images()}
    before, after, layers, notes = rounded(tmp_path, model, feeds, method)
    fresh = {"x": images(16, seed=1)}
    assert error(model, after, fresh) < error(model, before, fresh)
    assert {note.layer for note in notes.layers} == {layer.output for layer in layers}
    assert all(note.method == method for note in notes.layers)
    assert all(note.error <= note.nearest for note in notes.layers)


@pytest.mark.parametrize("method", METHODS)
def test_it_errs_less_on_tokens(tmp_path: Path, method: RoundingMethod) -> None:
    model, feeds = matmul()
    before, after, _, _ = rounded(tmp_path, model, feeds, method)
    assert error(model, after, feeds) < error(model, before, feeds)


@pytest.mark.parametrize("method", METHODS)
def test_only_integers_change_and_none_leaves_its_range(
    tmp_path: Path, method: RoundingMethod
) -> None:
    feeds = {"x": images()}
    before, after, layers, _ = rounded(tmp_path, small_cnn(), feeds, method, iterations=20)
    held = {layer.weight for layer in layers}
    for name in before.ir.graph.initializers:
        old, new = before.initializer(name), after.initializer(name)
        assert old.dtype == new.dtype
        assert name in held or np.array_equal(old, new)
    assert all(np.abs(array.astype(int)).max() <= 7 for array in integers(after, layers))
    moved = [
        np.abs(a.astype(int) - b).max()
        for a, b in zip(integers(before, layers), integers(after, layers), strict=True)
    ]
    assert max(moved) >= 1


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_threads(tmp_path: Path, method: RoundingMethod) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            _, after, layers, _ = rounded(
                tmp_path, small_cnn(), {"x": images()}, method, iterations=5
            )
            assert torch.get_num_threads() == number
            found.append(integers(after, layers))
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_results_do_not_depend_on_the_memory_allowed(
    tmp_path: Path, method: RoundingMethod
) -> None:
    found = []
    for memory in (None, 50_000):
        _, after, layers, _ = rounded(
            tmp_path,
            small_cnn(),
            {"x": images()},
            method,
            memory=memory,
            scratch=tmp_path,
            iterations=5,
        )
        found.append(integers(after, layers))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_is_enough(tmp_path: Path, method: RoundingMethod) -> None:
    model, feeds = small_cnn(), {"x": images(1)}
    before, after, _, notes = rounded(tmp_path, model, feeds, method)
    assert error(model, after, feeds) <= error(model, before, feeds) * 1.05
    assert len(notes.layers) == 4


@pytest.mark.parametrize("method", METHODS)
def test_channels_of_zeros_and_constant_inputs(tmp_path: Path, method: RoundingMethod) -> None:
    model, x = small_cnn(), images()
    x[:, 1] = 0.5
    w1 = np.array(model.initializer("w1"))
    w1[2], w1[3] = 0, 0.25
    model.set_initializer("w1", w1)
    model.set_initializer("w3", np.zeros((8, 8, 1, 1), F))
    _, after, layers, notes = rounded(tmp_path, model, {"x": x}, method, iterations=5)
    assert np.isfinite([note.error for note in notes.layers]).all()
    w3 = next(layer.weight for layer in layers if layer.float_weight == "w3")
    assert not np.asarray(after.initializer(w3)).any()


def test_inputs_that_are_always_zero(tmp_path: Path) -> None:
    model, feeds = small_cnn(), {"x": np.zeros((8, 3, 16, 16), F)}
    for method in METHODS:
        _, _, _, notes = rounded(tmp_path, model, feeds, method, iterations=5)
        assert all(note.error is not None and np.isfinite(note.error) for note in notes.layers)


@pytest.mark.parametrize("method", METHODS)
def test_biases_take_up_what_shifts_the_mean(tmp_path: Path, method: RoundingMethod) -> None:
    model, feeds = small_cnn(), {"x": images() + 2}
    before, after, layers, _ = rounded(tmp_path, model, feeds, method, keep_mean=True)
    shown = [layer.output for layer in layers if layer.op == "Conv"]

    def shift(quantized: Model) -> float:
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        with torch.no_grad():
            y, z = (to_torch(m, outputs=shown)(tensors) for m in (model, quantized))
        return sum(float((y[n] - z[n]).mean((0, 2, 3)).square().mean()) for n in shown)

    assert shift(after) < 0.3 * shift(before)
    assert error(model, after, feeds) < error(model, before, feeds)


def test_nearest_changes_nothing(tmp_path: Path) -> None:
    before, after, layers, notes = rounded(tmp_path, *matmul(), "nearest")
    assert notes.as_json() == {"method": "nearest", "layers": []}
    assert all(map(np.array_equal, integers(before, layers), integers(after, layers)))


def test_a_scale_for_the_whole_weight(tmp_path: Path) -> None:
    model, feeds = matmul()
    quantized, layers = with_pairs(model, feeds, per_channel=False)
    before = quantized.clone()
    data = rows_of(tmp_path, model, feeds)
    round_weights(model, quantized, layers, data, method="gptq", rows=32)
    assert error(model, quantized, feeds) < error(model, before, feeds)
