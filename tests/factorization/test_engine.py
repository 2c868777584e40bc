"""Factorization on the walk: what the factors minimise, on what rows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.data.calibration import Batch
from edgecompress.errors import PassError
from edgecompress.factorization.collecting import StageMoments
from edgecompress.factorization.engine import compare_objectives
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.parts import Objective, held_out
from edgecompress.factorization.refinement import RefineSettings
from edgecompress.factorization.result import FactorizeSettings
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.walk.streams import WalkBatch
from tests.factorization.factor_runs import F, chain, factorized, rows, tokens
from tests.models import from_text
from tests.running import run, with_outputs

OBJECTIVES: tuple[Objective, ...] = (
    "input_agnostic",
    "input_aware",
    "shift_aware",
    "anchored",
    "mixed",
)


def fitted(x: np.ndarray) -> np.ndarray:
    """The tokens that factors are fitted to: of every eighth batch of eight rows none."""
    batches = [batch for n, batch in enumerate(np.split(x, len(x) // 8)) if not held_out(n)]
    return np.concatenate(batches).reshape(-1, x.shape[-1]).astype(np.float64)


def closed_form(y: np.ndarray, b: np.ndarray, rank: int) -> np.ndarray:
    """The matrix of a rank that maps b to y best, [columns, rows], by projection of outputs."""
    full = np.linalg.lstsq(b, y, rcond=None)[0]
    _, _, basis = np.linalg.svd(b @ full, full_matrices=False)
    return full @ basis[:rank].T @ basis[:rank]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_of_a_low_rank_are_found_again(tmp_path: Path, objective: Objective) -> None:
    model = chain(rank=3)
    x = tokens()
    done = factorized(rows(tmp_path, model, x), model, 3, objective=objective)
    assert len(done.splits) == 4
    y, z = run(model, {"x": x})["y"], run(done.model, {"x": x})["y"]
    assert np.square(y - z).sum() < 1e-5 * np.square(y).sum()  # moments are sums in float32
    assert max(block.error for block in done.blocks) < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES[1:4])
def test_each_objective_is_minimised_on_its_own_streams(
    tmp_path: Path, objective: Objective
) -> None:
    """The second layer of a linear chain: what it reads depends on the first one's factors."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.normal(0, 0.5, (16, 12)).astype(F), rng.normal(0, 0.5, (12, 16)).astype(F)
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, L, 16] x, float[16, 12] w1, float[12, 16] w2) => (float[N, L, 16] y)
        { h = MatMul(x, w1)  y = MatMul(h, w2) }
        """,
        w1=w1,
        w2=w2,
    )
    x = tokens()
    done = factorized(rows(tmp_path, model, x), model, 4, objective=objective)
    first, second = (
        np.asarray(done.model.initializer(f"{name}_lowrank_0"), np.float64)
        @ np.asarray(done.model.initializer(f"{name}_lowrank_1"), np.float64)
        for name in ("w1", "w2")
    )
    a = fitted(x) @ w1
    b = fitted(x) @ first
    source = a if objective == "input_aware" else b
    wanted = (a if objective in ("input_aware", "anchored") else b) @ w2
    best = source @ closed_form(wanted, source, 4)
    np.testing.assert_allclose(source @ second, best, atol=2e-3 * np.abs(best).max())
    error = np.square(wanted - best).sum() / np.square(wanted).sum()
    assert done.splits["y"].error == pytest.approx(error, rel=1e-2, abs=1e-6)


def test_a_bias_takes_up_the_mean(tmp_path: Path) -> None:
    model = chain()
    x = tokens()
    done = factorized(rows(tmp_path, model, x), model, {"m1": 3}, objective="input_aware")
    names = ("m1", "o1")
    before, after = (run_values(graph, names, x) for graph in (model, done.model))
    kept = np.concatenate([b for n, b in enumerate(np.split(after["o1"], 8)) if not held_out(n)])
    real = np.concatenate([b for n, b in enumerate(np.split(before["o1"], 8)) if not held_out(n)])
    np.testing.assert_allclose(kept.mean((0, 1)), real.mean((0, 1)), atol=1e-4)
    # Behind MatMuls without a bias the mean is not kept: theirs is no affine problem.
    assert done.splits["m1"].shift is not None


def run_values(model: Model, names: tuple[str, ...], x: np.ndarray) -> dict[str, np.ndarray]:
    return run(with_outputs(model, list(names)), {"x": x})


def test_a_biased_and_a_bias_free_layer_share_an_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, L, 16] x, float[16, 16] w1, float[16] b, float[16, 16] w2)
            => (float[N, L, 16] y)
        { m = MatMul(x, w1)  p = Add(m, b)  q = MatMul(x, w2)  y = Add(p, q) }
        """,
        w1=rng.normal(0, 0.5, (16, 16)).astype(F),
        b=rng.normal(0, 0.5, 16).astype(F),
        w2=rng.normal(0, 0.5, (16, 16)).astype(F),
    )
    x = tokens()
    done = factorized(rows(tmp_path, model, x), model, 4, objective="anchored")
    biased, free = done.splits["m"], done.splits["q"]
    assert biased.shift is not None
    assert free.shift is None
    b = fitted(x)
    wanted = b @ np.asarray(model.initializer("w1"), np.float64)
    centred = wanted - wanted.mean(0)
    best = closed_form(centred, b - b.mean(0), 4)
    error = np.square(centred - (b - b.mean(0)) @ best).sum() / np.square(centred).sum()
    assert biased.error == pytest.approx(error, rel=1e-2)


def test_refinement_makes_the_block_better(tmp_path: Path) -> None:
    model = chain()
    data = rows(tmp_path, model, tokens())
    settings = RefineSettings(steps=60, batch_rows=16)
    done = factorized(data, model, 4, objective="anchored", refinement=settings)
    assert done.blocks
    for block in done.blocks:
        assert block.refined is not None
        assert block.refined.after <= block.refined.before
    assert any(block.refined.kept for block in done.blocks if block.refined)


@pytest.mark.parametrize("refine", [False, True])
def test_threads_memory_and_repetition_change_no_byte(tmp_path: Path, refine: bool) -> None:
    model = chain()
    data = rows(tmp_path, model, tokens())
    refinement = RefineSettings(steps=6, batch_rows=16) if refine else None
    found = set()
    for threads, memory in ((1, None), (2, None), (2, 20_000)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            done = factorized(
                data, model, 4, memory=memory, scratch=tmp_path, refinement=refinement
            )
        finally:
            torch.set_num_threads(before)
        found.add(done.model.to_bytes())
    assert len(found) == 1


def test_fewer_tokens_than_columns_leave_unseen_directions_alone(tmp_path: Path) -> None:
    """Rank-deficient moments: damping holds the factors near the weight where nothing was seen."""
    model = chain(width=32)
    data = rows(tmp_path, model, tokens(rows=8, length=2, width=32))
    done = factorized(data, model, 12, objective="anchored", damping=0.01)
    x = tokens(rows=64, width=32, seed=5)
    y, z = run(model, {"x": x})["y"], run(done.model, {"x": x})["y"]
    assert np.isfinite(z).all()
    assert np.square(y - z).sum() < np.square(y).sum()


def test_not_finite_activations_are_named(tmp_path: Path) -> None:
    model = chain()
    broken = model.clone()
    broken.set_initializer("c", np.full(16, np.inf, F))
    with pytest.raises(PassError, match=r"the layer 'h2'.*finite activations"):
        factorized(rows(tmp_path, broken, tokens()), broken, 4, objective="anchored")


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = chain()
    weight = np.array(model.initializer("a2"))
    weight[0, 0] = np.nan
    model.set_initializer("a2", weight)
    with pytest.raises(PassError, match=r"the layer 'm1'.*finite numbers in the weight 'a2'"):
        factorized(rows(tmp_path, model, tokens()), model, {"m1": 4}, objective="input_aware")


def test_nothing_but_padding_is_named(tmp_path: Path) -> None:
    layers, _ = find_layers(chain(), lambda node: True)
    moments = StageMoments(layers[:1], "anchored", 8, 0)
    with pytest.raises(PassError, match="nothing but padding"):
        moments.of(layers[0], centred=False)


@pytest.mark.parametrize("same_input", [True, False])
def test_a_weight_of_two_nodes(tmp_path: Path, same_input: bool) -> None:
    """Solved for both where neither feeds the other, else left alone."""
    rng = np.random.default_rng(0)
    second = "e" if same_input else "p"
    model = from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[N, L, 16] x, float[16, 16] v, float[16, 16] w) => (float[N, L, 16] y)
        {{ e = MatMul(x, v)  p = MatMul(e, w)  r = Relu({second})  q = MatMul(r, w)
           s = Add(p, q)  y = Add(s, e) }}
        """,
        v=np.eye(16, dtype=F),
        w=rng.normal(0, 0.5, (16, 16)).astype(F),
    )
    x = tokens()
    data = rows(tmp_path, model, x)
    done = factorized(data, model, {"p": 4, "q": 4}, objective="input_aware")
    if not same_input:
        assert not done.splits
        assert all("used in another place" in skip.reason for skip in done.skipped)
        return
    b = np.concatenate([fitted(x), np.maximum(fitted(x), 0)])
    wanted = b @ np.asarray(model.initializer("w"), np.float64)
    now = np.asarray(done.model.initializer("w_lowrank_0"), np.float64) @ np.asarray(
        done.model.initializer("w_lowrank_1"), np.float64
    )
    best = b @ closed_form(wanted, b, 4)
    np.testing.assert_allclose(b @ now, best, atol=2e-3 * np.abs(best).max())


def test_without_rows_the_weights_alone_decide() -> None:
    model = chain()
    done = factorized(None, model, 5, objective="input_agnostic")
    weight = np.asarray(model.initializer("a1"), np.float64)
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    now = np.asarray(done.model.initializer("a1_lowrank_0"), np.float64) @ np.asarray(
        done.model.initializer("a1_lowrank_1"), np.float64
    )
    np.testing.assert_allclose(now, (left[:, :5] * values[:5]) @ right[:5], atol=1e-5)
    assert not done.blocks


def test_objectives_are_compared_on_copies(tmp_path: Path) -> None:
    model = chain()
    data = rows(tmp_path, model, tokens())
    layers, _ = find_layers(model, lambda node: True)
    ranks = {layer.output: 4 for layer in layers}
    settings = FactorizeSettings(rows=64, damping=0.0, objective="anchored")
    digest = model.digest
    found = compare_objectives(
        model, layers, ranks, settings, OBJECTIVES, Context(calibration=data)
    )
    assert set(found) == set(OBJECTIVES) - {"anchored"}
    assert model.digest == digest
    done = factorized(data, model, 4, objective="anchored")
    for block in done.blocks:
        assert block.error < found["input_agnostic"][block.block]


def test_padding_does_not_count() -> None:
    layers, _ = find_layers(chain(), lambda node: True)
    rng = np.random.default_rng(0)
    mask = np.arange(5) < np.array([[5], [2], [3]])
    feeds = {"x": rng.normal(0, 1, (3, 5, 16)), "h1": rng.normal(0, 1, (3, 5, 32))}
    grams = []
    for padding in (0.0, 1e6):
        tensors = {
            name: torch.from_numpy(np.where(mask[..., None], array, padding)).float()
            for name, array in feeds.items()
        }
        batch = WalkBatch(0, Batch({}, None, 3, np.arange(3), mask=mask), tensors, tensors)
        moments = StageMoments(layers[:1], "anchored", 3, 0)
        moments.add(moments.look(batch, tensors, tensors))
        found = moments.of(layers[0], centred=False)
        assert found is not None
        assert found.places == 10
        grams.append(found.gram)
    torch.testing.assert_close(grams[0], grams[1])
