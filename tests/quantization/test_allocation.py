"""Formats under budgets: against trying out all choices."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.errors import MissingDependencyError, PassError
from edgecompress.quantization.allocation import Choice, Cost, Limits, allocate

Items = Mapping[str, Sequence[Choice]]

LAYERS: Items = {
    "a": [Choice("float", 0.0, 400, 10.0, 10.0), Choice("w8a8", 0.5, 100, 4.0)],
    "b": [
        Choice("float", 0.0, 800, 2.0, 2.0),
        Choice("w8a8", 0.1, 200, 1.0),
        Choice("w4", 2.0, 120, 2.0),
    ],
    "c": [Choice("float", 0.0, 40, 20.0, 20.0), Choice("w8a8", 3.0, 10, 8.0)],
}


def tried(items: Items, limits: Limits, cost: Cost) -> float | None:
    """The least sum of a cost within the limits, over all choices."""
    best = None
    for choice in itertools.product(*items.values()):
        sums = {name: math.fsum(getattr(c, name) for c in choice) for name in _COSTS}
        bounds = {name: getattr(limits, name) for name in _COSTS}
        if all(bounds[n] is None or sums[n] <= bounds[n] + 1e-11 for n in _COSTS):
            best = sums[cost] if best is None else min(best, sums[cost])
    return best


_COSTS: tuple[Cost, ...] = ("loss", "bytes", "ms", "float_macs")


@st.composite
def problems(draw: st.DrawFn) -> tuple[Items, Limits, Cost]:
    whole = st.integers(0, 60)
    real = st.floats(0, 10, allow_nan=False, allow_subnormal=False) | whole.map(float)
    choice = st.builds(
        Choice, format=st.just("f"), loss=real, bytes=whole, ms=real, float_macs=whole.map(float)
    )
    items = draw(
        st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=5).map(
            lambda found: {f"n{i}": choices for i, choices in enumerate(found)}
        )
    )
    limit = st.none() | st.integers(0, 150)
    limits = Limits(
        bytes=draw(limit), ms=draw(limit), loss=draw(st.none() | real), float_macs=draw(limit)
    )
    return items, limits, draw(st.sampled_from(_COSTS))


@given(problems())
@settings(max_examples=80)
def test_the_best_of_all_choices_is_found(problem: tuple[Items, Limits, Cost]) -> None:
    items, limits, cost = problem
    best = tried(items, limits, cost)
    if best is None:
        with pytest.raises(PassError, match="no choice of formats keeps"):
            allocate(items, limits, minimise=cost)
        return
    found = allocate(items, limits, minimise=cost)
    # Nine digits are what ties are told apart by.
    assert getattr(found, cost) == pytest.approx(best, rel=3e-9, abs=1e-9)
    for name in _COSTS:
        limit = getattr(limits, name)
        assert limit is None or getattr(found, name) <= limit * (1 + 1e-10) + 1e-10


@pytest.mark.parametrize(
    ("limits", "minimise", "formats"),
    [
        (Limits(), "loss", {"a": "float", "b": "float", "c": "float"}),
        (Limits(), "bytes", {"a": "w8a8", "b": "w4", "c": "w8a8"}),
        (Limits(bytes=700), "loss", {"a": "float", "b": "w8a8", "c": "float"}),
        (Limits(bytes=345), "loss", {"a": "w8a8", "b": "w8a8", "c": "float"}),
        (Limits(bytes=270), "loss", {"a": "w8a8", "b": "w4", "c": "float"}),
        (Limits(float_macs=10), "loss", {"a": "float", "b": "w8a8", "c": "w8a8"}),
        (Limits(ms=26), "loss", {"a": "w8a8", "b": "float", "c": "float"}),
        (Limits(loss=0.6), "ms", {"a": "w8a8", "b": "w8a8", "c": "float"}),
    ],
)
def test_choices(limits: Limits, minimise: Cost, formats: dict[str, str]) -> None:
    assert allocate(LAYERS, limits, minimise=minimise).formats == formats


def test_sums_are_those_of_the_choice() -> None:
    found = allocate(LAYERS, Limits(bytes=345))
    assert (found.loss, found.bytes, found.ms, found.float_macs) == (0.6, 340, 25.0, 20.0)


def test_ties_go_to_the_faster_then_to_the_smaller() -> None:
    items = {
        "a": [Choice("slow", 1.0, 10, 9.0), Choice("fast", 1.0, 20, 5.0)],
        "b": [Choice("large", 1.0, 30, 5.0), Choice("small", 1.0, 20, 5.0)],
    }
    assert allocate(items).formats == {"a": "fast", "b": "small"}


def test_the_order_of_the_items_does_not_matter() -> None:
    same = [Choice("x", 1.0, 10), Choice("y", 2.0, 5)]
    names = [f"n{i}" for i in range(6)]
    limits = Limits(bytes=45)
    first = allocate(dict.fromkeys(names, same), limits)
    second = allocate(dict.fromkeys(reversed(names), same), limits)
    assert first == second
    assert first.bytes <= 45


def test_whole_bytes_are_exact() -> None:
    items = {
        "a": [Choice("large", 0.0, 50_000_000), Choice("small", 1e-6, 6_000_000)],
        "b": [Choice("large", 0.0, 3), Choice("small", 1.0, 2)],
    }
    assert allocate(items, Limits(bytes=50_000_003)).formats == {"a": "large", "b": "large"}
    assert allocate(items, Limits(bytes=50_000_002)).formats["a"] == "small"


def test_small_losses_beside_large_ones_are_told_apart() -> None:
    items = {
        "a": [Choice("x", 1e3, 1)],
        "b": [Choice("x", 2e-6, 5), Choice("y", 1e-6, 5)],
    }
    assert allocate(items).formats["b"] == "y"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(bytes=100), "100 bytes of weights.*can be reached is 230 bytes"),
        (Limits(ms=1), "a time of 1: .* 13"),
        (Limits(bytes=240, loss=3.0), "at once: within the other limits .* 260 bytes"),
        (Limits(loss=0.0, ms=20), "an expected loss of 0 and a time of 20 at once.* 32"),
    ],
)
def test_what_cannot_be_reached_is_told(limits: Limits, message: str) -> None:
    with pytest.raises(PassError, match=message) as caught:
        allocate(LAYERS, limits, where="pass 'mixed'")
    assert caught.value.where == "pass 'mixed'"
    assert caught.value.cure is not None


def test_nothing_to_choose() -> None:
    assert allocate({}, Limits(bytes=0)).formats == {}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1.0])
def test_costs_must_be_numbers(loss: float) -> None:
    with pytest.raises(ValueError, match="finite costs"):
        allocate({"a": [Choice("x", loss)]})


def test_an_item_needs_a_choice() -> None:
    with pytest.raises(ValueError, match="no format to choose for 'a'"):
        allocate({"a": []})


def test_scipy_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError) as caught:
        allocate(LAYERS)
    assert caught.value.cure == 'pip install "edgecompress[mixed]"'


def test_nothing_is_written_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    items = {
        f"n{i}": [
            Choice("a", 0.0, 1000 + 37 * i, 50.0 + i),
            Choice("b", 0.1 + 0.01 * (i * 7 % 11), 300 + 13 * i, 20.0 + i),
            Choice("c", 0.5 + 0.02 * (i * 5 % 13), 150 + 7 * i, 40.0),
        ]
        for i in range(30)
    }
    allocate(items, Limits(bytes=15_000, ms=1100.0))
    assert capfd.readouterr() == ("", "")
