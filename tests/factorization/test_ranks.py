"""Ranks of layers under a budget, and layers that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.constraints import Constraints
from edgecompress.errors import DataError, RecipeError, TargetError
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.parts import Layer
from edgecompress.factorization.ranks import RankPlan, RankSettings, choose_ranks
from edgecompress.graph_pass import Context
from edgecompress.layer_matrix import LayerMatrix
from edgecompress.model import Model
from tests.factorization.factor_runs import chain, rows, tokens
from tests.models import from_text, small_cnn


def layer(name: str, rows: int, columns: int, *, weight: str = "", macs: float = 0.0) -> Layer:
    form = LayerMatrix((columns, rows), transposed=True)
    return Layer(name, name, "MatMul", "x", weight or name, form, False, macs or rows * columns)


def planned(layers: Sequence[Layer], context: Context | None = None, **settings: Any) -> RankPlan:
    """By a rule that looks at no data."""
    nothing = from_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float x) => (y) { y = Abs(x) }'
    )
    return choose_ranks(nothing, layers, RankSettings(**settings), context or Context())


def cost(layers: Sequence[Layer], plan: RankPlan) -> float:
    """Parameters that are left."""
    return sum(
        plan.ranks[x.output] * (x.rows + x.columns) if x.output in plan.ranks else x.parameters
        for x in layers
    )


def of(model: Model, **settings: Any) -> tuple[list[Layer], RankPlan]:
    layers, _ = find_layers(model, lambda node: True)
    context = settings.pop("context", Context())
    return layers, choose_ranks(model, layers, RankSettings(**settings), context)


class Clock:
    """A target whose kernels take a fixed time each, and some for each multiply-accumulate."""

    def __init__(self, per_node: float = 0.0, slow_below: int = 0) -> None:
        self.per_node = per_node
        self.slow_below = slow_below
        self.asked: list[list[tuple[int, ...]]] = []

    def __call__(self, models: Sequence[bytes]) -> list[float]:
        seconds = []
        for each in models:
            graph = ir.from_proto(ir.serde.onnx.ModelProto.FromString(each)).graph
            (x,) = graph.inputs
            assert x.shape is not None
            places = int(np.prod(x.shape.numpy()[:-1]))
            sizes = [tuple(v.const_value.shape.numpy()) for v in graph.initializers.values()]  # type: ignore[union-attr]
            self.asked.append(sizes)  # type: ignore[arg-type]
            macs = places * sum(int(np.prod(size)) for size in sizes)
            narrow = len(sizes) > 1 and min(sizes[0]) < self.slow_below
            seconds.append(macs * (10.0 if narrow else 1.0) + self.per_node * len(sizes))
        return seconds


@pytest.mark.parametrize(
    ("size", "ranks"),
    [
        ((4096, 4096), (1638, 1228, 819)),
        ((11008, 4096), (2388, 1791, 1194)),
        ((14336, 4096), (2548, 1911, 1274)),
        ((1024, 4096), (655, 491, 327)),
    ],
)
def test_ranks_of_published_layers(size: tuple[int, int], ranks: tuple[int, ...]) -> None:
    found = [planned([layer("q", *size)], keep=keep).ranks["q"] for keep in (0.8, 0.6, 0.4)]
    assert tuple(found) == ranks


@pytest.mark.parametrize("multiple", [1, 8, 16])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.93])
def test_the_total_stays_on_the_budget(multiple: int, keep: float) -> None:
    layers = [layer(f"l{i}", 384, n) for i, n in enumerate([384, 384, 384, 1536, 1000, 96])]
    plan = planned(layers, keep=keep, multiple=multiple)
    dense = sum(x.parameters for x in layers)
    assert 0 <= keep * dense - cost(layers, plan) < multiple * (384 + 1536)
    assert all(rank % multiple == 0 for rank in plan.ranks.values())
    for each in layers:
        share = plan.ranks.get(each.output, 0) * (384 + each.columns) / each.parameters
        assert abs(share - keep) * each.parameters <= 2 * multiple * (384 + each.columns)


def test_the_multiple_is_that_of_the_target() -> None:
    context = Context(constraints=replace(Constraints(), rank_multiple=16))
    assert planned([layer("a", 384, 384)], context, keep=0.6).ranks == {"a": 112}
    # The even share is a rank of 4.8: steps of 4, not of 16.
    assert planned([layer("a", 16, 16)], context, keep=0.6).ranks == {"a": 4}


def test_macs_and_parameters_are_different_budgets() -> None:
    early, late = layer("early", 64, 64, macs=1e6), layer("late", 256, 256, macs=1e5)
    for budget in ("parameters", "macs"):
        plan = planned([early, late], keep=0.5, budget=budget)
        assert {name: round(rank, -1) for name, rank in plan.ranks.items()} == {
            "early": 20,
            "late": 60,
        }
    _, plan = of(small_cnn(channels=32), keep=0.5, budget="macs")
    assert plan.ranks.keys() == {"c1", "c3", "y"}


def test_layers_of_one_weight_count_once() -> None:
    layers = [layer("a", 64, 64, weight="w"), layer("b", 64, 64, weight="w"), layer("c", 64, 64)]
    plan = planned(layers, keep=0.5)
    assert plan.ranks["a"] == plan.ranks["b"]
    assert cost([layers[0], layers[2]], plan) <= 0.5 * 2 * 64 * 64


def test_ranks_that_are_asked_for() -> None:
    layers = [layer(name, 64, 64) for name in "abc"]
    plan = planned(layers, keep=0.5, explicit={"a": 3, "b": 32})
    assert plan.ranks == {"a": 3, "c": 16}
    assert plan.dense == {"b": "two factors of rank 32 are no smaller than the weight"}
    plan = planned(layers, keep=0.5, explicit={"a": 0})
    assert plan.dense == {"a": "its rank would be 0; it would be 1 with keep = 0.031 or more"}


def test_too_little_to_keep() -> None:
    layers = [layer("small", 8, 8), layer("large", 400, 400)]
    plan = planned(layers, keep=0.02)
    assert plan.ranks == {"large": 4}
    assert plan.dense == {"small": "its rank would be 0; it would be 1 with keep = 0.25 or more"}
    assert planned(layers, keep=0.001).ranks == {}


def test_factors_that_are_slower_are_refused() -> None:
    clock = Clock(slow_below=40)
    layers = [layer(f"l{i}", 64, 64) for i in range(5)] + [layer("wide", 256, 256)]
    plan = planned(layers, Context(timer=clock), keep=0.5)
    assert plan.ranks == {"wide": 64}
    assert plan.dense["l3"] == (
        "two MatMul of rank 16 take 5.00 of the dense layer's time on the target"
    )
    assert plan.seconds["wide"] == (256 * 256, 2 * 64 * 256)
    assert plan.seconds["l0"] == (64 * 64, 10 * 2 * 16 * 64)
    # The same shapes once; those that are slower once more, to be sure.
    assert sorted(clock.asked.count(x) for x in clock.asked) == [1, 1, 2, 2, 2, 2]
    assert planned(layers, Context(timer=clock), keep=0.5, never_slower=False).ranks["l3"] == 16


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.8])
def test_a_budget_of_latency(keep: float) -> None:
    clock = Clock(per_node=200.0)
    layers = [layer("a", 64, 64), layer("b", 64, 64), layer("c", 128, 64), layer("d", 12, 12)]
    plan = planned(layers, Context(timer=clock), keep=keep, budget="latency")
    dense = sum(200 + x.parameters for x in layers)
    left = sum(
        400 + plan.ranks[x.output] * (x.rows + x.columns)
        if x.output in plan.ranks
        else 200 + x.parameters
        for x in layers
    )
    assert left <= keep * dense + 1e-6
    assert keep * dense - left < 2 * (128 + 64)
    assert "d" in plan.dense


def test_a_budget_of_latency_that_no_ranks_meet() -> None:
    layers = [layer("a", 64, 64)]
    with pytest.raises(RecipeError, match=r"no ranks are so fast: the lowest ones leave 1\.00"):
        planned(layers, Context(timer=Clock(per_node=1e6)), keep=0.5, budget="latency")
    with pytest.raises(TargetError, match="cannot be measured from this machine"):
        planned(layers, keep=0.5, budget="latency")


def low_and_full(width: int = 16) -> Model:
    """The first two layers have weights of rank 2, the others of full rank."""
    model, low = chain(width=width), chain(width=width, rank=2)
    for name in ("a1", "a2"):
        given = low.ir.graph.initializers[name].const_value
        model.ir.graph.initializers[name].const_value = given
    return model


@pytest.mark.parametrize("method", ["spectrum", "loss", "zero_sum"])
def test_ranks_go_where_they_are_worth_something(method: str, tmp_path: Path) -> None:
    model = low_and_full()
    context = Context(calibration=rows(tmp_path, model, tokens()))
    layers, plan = of(model, context=context, keep=0.5, method=method, floor=0.4)
    dense = sum(x.parameters for x in layers)
    assert 0 <= 0.5 * dense - cost(layers, plan) < 48
    low, full = (
        [plan.ranks.get(name, 16) for name in names] for names in (("h1", "m1"), ("h2", "m2"))
    )
    assert max(low) < min(full)
    assert min(low) >= 2  # the floor: 0.4 of 5
    assert [each.layer for each in plan.spectra] == layers
    assert all((each.loss_change is None) == (method == "spectrum") for each in plan.spectra)


def test_spectra_need_rows() -> None:
    with pytest.raises(DataError, match="ranks = 'spectrum' looks at activations"):
        of(chain(), keep=0.5, method="spectrum")
