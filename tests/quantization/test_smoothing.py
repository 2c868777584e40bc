"""The search for the strength: what it finds, and that it never makes a layer worse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.constraints import Int8Format
from edgecompress.data.calibration import Batch
from edgecompress.errors import DataError
from edgecompress.model import Model
from edgecompress.numerics.affine import Affine, IntegerRange, fake_quantize
from edgecompress.quantization.cross_layer import equalize_chains
from edgecompress.quantization.equalization import find_groups, fold
from edgecompress.quantization.layer_error import InputSample, LayerError
from edgecompress.quantization.smoothing import search_alphas
from tests.models import from_text
from tests.running import rows_of, run

F = np.float32
U8S8 = Int8Format()
WHOLE = replace(U8S8, per_channel=False)


def normed(gamma: np.ndarray, seed: int = 0) -> Model:
    rng = np.random.default_rng(seed)
    return from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, S, 8] x, float[8] gamma, float[8, 6] w, float[8, 5] v)
            => (float[N, S, 6] y, float[N, S, 5] z) {
            n = LayerNormalization(x, gamma)
            y = MatMul(n, w)
            z = MatMul(n, v)
        }""",
        gamma=gamma.astype(F),
        w=rng.normal(0, 1, (8, 6)).astype(F),
        v=rng.normal(0, 1, (8, 5)).astype(F),
    )


def rows(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (16, 12, 8)).astype(F)


def searched(model: Model, folder: Path, **options: object):  # type: ignore[no-untyped-def]
    groups = find_groups(model, lambda _: True).found
    data = rows_of(folder, model, {"x": rows()})
    return search_alphas(model, groups, data, U8S8, rows=16, **options)  # type: ignore[arg-type]


def test_an_outlier_goes_into_the_weights(tmp_path: Path) -> None:
    model = normed(np.array([1, 1, 50, 1, 1, 1, 1, 1]))
    (choice,) = searched(model, tmp_path)
    assert choice.alpha is not None
    assert choice.after < 0.2 * choice.before
    assert choice.scales[2] >= 8 * choice.scales[0]
    after = model.clone()
    fold(after.ir.graph, find_groups(after, lambda _: True).found[0], choice.scales.numpy())
    found = run(after, {"x": rows(3)})
    for name, expected in run(model, {"x": rows(3)}).items():
        np.testing.assert_array_equal(found[name], expected)


def test_nothing_is_done_where_nothing_gains(tmp_path: Path) -> None:
    model = normed(np.ones(8))
    for name in ("w", "v"):
        model.set_initializer(name, np.ones_like(model.initializer(name)))
    (choice,) = searched(model, tmp_path)
    assert choice.alpha is None
    assert choice.before == choice.after
    assert bool((choice.scales == 1).all())


@settings(max_examples=8)
@given(st.integers(0, 1000), st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_it_is_never_worse(
    tmp_path_factory: pytest.TempPathFactory, seed: int, alpha: float | None
) -> None:
    gamma = np.exp(np.random.default_rng(seed).normal(0, 1.5, 8))
    alphas = {} if alpha is None else {"alphas": (alpha,)}
    (choice,) = searched(normed(gamma, seed), tmp_path_factory.mktemp("rows"), **alphas)
    assert choice.after <= choice.before
    assert choice.alpha in (None, alpha) or alpha is None


def test_dead_channels_keep_their_scale(tmp_path: Path) -> None:
    model = normed(np.array([0, 1, 50, 1, 1, 1, 1, 1]))
    for name in ("w", "v"):
        weight = np.array(model.initializer(name))
        weight[4] = 0
        model.set_initializer(name, weight)
    (choice,) = searched(model, tmp_path)
    assert choice.alpha is not None
    assert choice.scales[0] == choice.scales[4] == 1


def test_blocks_give_the_same_choices(tmp_path: Path) -> None:
    model = normed(np.array([1, 1, 50, 1, 1, 1, 1, 1]))
    (whole,), (parts,) = searched(model, tmp_path), searched(model, tmp_path, memory=1000)
    assert whole.alpha == parts.alpha
    assert torch.equal(whole.scales, parts.scales)


def test_one_row_is_enough(tmp_path: Path) -> None:
    model = normed(np.array([1, 1, 50, 1, 1, 1, 1, 1]))
    data = rows_of(tmp_path, model, {"x": rows()[:1, :1]})
    (choice,) = search_alphas(model, find_groups(model, lambda _: True).found, data, U8S8, rows=16)
    assert choice.after <= choice.before


def test_infinite_activations(tmp_path: Path) -> None:
    model = normed(np.array([1, 1, np.inf, 1, 1, 1, 1, 1]))
    with pytest.raises(DataError, match=r"tensor 'n' during equalization: .* NaN or infinite"):
        searched(model, tmp_path)


def test_padded_positions_do_not_count() -> None:
    values = torch.ones(2, 3, 4)
    values[1, 2] = 1000.0
    mask = np.array([[True, True, True], [True, True, False]])
    sample = InputSample("x", -1, 1)
    sample.add(Batch({}, None, 0, 2, mask=mask), values)
    assert float(sample.largest.max()) == 1.0
    assert sum(len(half) for half in sample.halves) == 5


def test_the_error_is_that_of_integers() -> None:
    model = normed(np.ones(8))
    node = next(n for n in model.ir.graph if n.op_type == "MatMul")
    layer = LayerError(model, node, U8S8)
    sample = InputSample("n", -1, 1)
    x = torch.from_numpy(rows()[0])
    sample.add(Batch({}, None, 0, 1), x)
    half = sample.halves[0]
    on_grid = sample.on_grid(torch.ones(8, dtype=torch.float64), 0, U8S8)
    assert len(torch.unique(on_grid)) <= 256
    found = layer.error(layer.output(half), on_grid, torch.ones(()))
    weight = torch.from_numpy(model.initializer("w"))
    steps = weight.abs().amax(0) / 127
    rounded = torch.round(weight / steps) * steps
    expected = (on_grid @ rounded - half @ weight).square().sum() / (half @ weight).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-4)
    grid = Affine.from_range(float(x.min()), float(x.max()), IntegerRange(0, 255))
    plain = fake_quantize(half, torch.tensor(grid.scale), grid.zero_point, IntegerRange(0, 255))
    assert (on_grid - half).square().sum() <= (plain - half).square().sum() * 1.01


# ---------------------------------------------------------------- neighbouring layers


def chain(spread: float) -> Model:
    rng = np.random.default_rng(0)
    uneven = np.exp(rng.normal(0, spread, 6))
    return from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4, 8, 8] x, float[6, 4, 1, 1] w, float[6] b, float[6, 1, 3, 3] d,
           float[3, 6, 1, 1] v) => (float[N, 3, 6, 6] y) {
            a = Conv(x, w, b)
            r = Relu(a)
            e = Conv<group=6>(r, d)
            q = Relu(e)
            y = Conv(q, v)
        }""",
        w=(rng.normal(0, 1, (6, 4, 1, 1)) * uneven[:, None, None, None]).astype(F),
        b=(rng.normal(0, 1, 6) * uneven).astype(F),
        d=(rng.normal(0, 1, (6, 1, 3, 3)) / uneven[::-1, None, None, None]).astype(F),
        v=(rng.normal(0, 1, (3, 6, 1, 1)) * uneven[None, ::-1, None, None]).astype(F),
    )


def test_a_chain_is_evened_out(tmp_path: Path) -> None:
    model = chain(2.0)
    x = np.random.default_rng(1).normal(0, 1, (8, 4, 8, 8)).astype(F)
    groups = find_groups(model, lambda _: True).found
    data = rows_of(tmp_path, model, {"x": x})
    (found,) = equalize_chains(model, groups, data, WHOLE, rows=8)
    (batch,) = data.batches("calibration")
    np.testing.assert_array_equal(np.sort(batch.inputs["x"], None), np.sort(x, None))
    assert len(found.groups) == 2
    assert found.after < 0.2 * found.before
    after = model.clone()
    for group, scales in zip(find_groups(after, lambda _: True).found, found.scales, strict=True):
        fold(after.ir.graph, group, scales.numpy())
    np.testing.assert_array_equal(run(after, {"x": x})["y"], run(model, {"x": x})["y"])
    made = np.abs(after.initializer("w")).max((1, 2, 3))
    read = np.abs(after.initializer("d")).max((1, 2, 3))
    np.testing.assert_array_less(np.abs(np.log2(made / read)), 2.0 + 1e-6)
