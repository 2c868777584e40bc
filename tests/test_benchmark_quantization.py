"""The pure parts of benchmarks/quantization: losses, goals, tables, and what a kept run depends on.

No peer is installed and nothing is compressed here.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    """The benchmarks are programs, not part of the package."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def part(name: str) -> Any:
    return importlib.import_module(f"quantization.{name}")


def row(title: str, form: str, drop: float, **changes: Any) -> Any:
    made = part("tables").Row(
        title,
        form,
        ours=title.startswith("edgecompress"),
        value=0.85 - drop / 100,
        drop=drop,
        bytes=2_800_000,
        latency=0.45,
        wall=0.5,
        cpu_ms=4.0,
        seconds=10.0,
        cpu_seconds=10.0,
        peak_mb=400.0,
        load=1.0,
    )
    return replace(made, **changes)


def found(*rows: Any, name: str = "mobilenet_v1") -> Any:
    about = part("models").MODELS[name]
    reference = row("float", "float", 0.0, latency=1.0, seconds=None)
    listed = [reference, *rows]
    return part("tables").Found(name, about.title, about.kind, about.yardstick, 100, 400, listed)


def judged(model: Any, word: str, **options: Any) -> Any:
    """The one verdict whose goal has ``word``."""
    listed = part("goals").verdicts([model], vnni=True, **options)
    (verdict,) = [each for each in listed if word in each.goal]
    return verdict


PEER = "nncf full bias correction"


@pytest.mark.parametrize(
    ("name", "reference", "value", "drop"),
    [
        ("mobilenet_v1", 0.8725, 0.87, 0.25),
        ("minilm", 0.867, 0.868, -0.1),
        ("llama10m", 72.0, 73.44, 2.0),
        ("ultraface", 1.0, 0.999, 0.1),
    ],
)
def test_a_loss_is_positive_in_points_or_in_per_cent_of_perplexity(
    name: str, reference: float, value: float, drop: float
) -> None:
    yardstick = part("models").MODELS[name].yardstick
    assert yardstick.drop(reference, value) == pytest.approx(drop)
    assert yardstick.at_least(value, reference) == (drop <= 0)


def test_no_number_is_never_good_enough() -> None:
    for name in ("mobilenet_v1", "llama10m"):
        yardstick = part("models").MODELS[name].yardstick
        assert not yardstick.at_least(math.nan, 0.5)
        assert not yardstick.at_least(math.inf, 0.5)


@pytest.mark.parametrize(("ours", "met"), [(0.1, True), (0.2, True), (0.21, False)])
def test_our_defaults_are_held_against_the_most_accurate_peer(ours: float, met: bool) -> None:
    peers = row("onnxruntime static minmax", "W8A8", 1.2), row(PEER, "W8A8", 0.2)
    others = row("edgecompress W8A8 equalized", "W8A8", -1.0)
    model = found(*peers, row("edgecompress W8A8", "W8A8", ours), others)
    verdict = judged(model, "best peer")
    assert verdict.met is met
    assert PEER in verdict.found


@pytest.mark.parametrize(
    ("drop", "latency", "met"), [(0.3, 0.484, True), (0.31, 0.4, False), (0.0, 0.49, False)]
)
def test_accurate_and_fast_must_hold_in_one_file(drop: float, latency: float, met: bool) -> None:
    model = found(row("edgecompress W8A8", "W8A8", drop, latency=latency))
    assert judged(model, "0.48 of latency").met is met


def test_latency_goals_ask_for_vnni() -> None:
    model = found(row("edgecompress W8A8", "W8A8", 0.0))
    listed = part("goals").verdicts([model], vnni=False)
    (verdict,) = [each for each in listed if "0.48 of latency" in each.goal]
    assert verdict.met is None


def test_a_file_that_is_no_number_meets_nothing() -> None:
    ours = row("edgecompress W8A8", "W8A8", math.nan, value=math.nan)
    model = found(row(PEER, "W8A8", 0.2), ours)
    assert judged(model, "best peer").met is False
    assert judged(model, "0.3 points below float at").met is False


def test_cost_is_held_against_the_fastest_peer_that_is_as_accurate() -> None:
    fast = row("onnxruntime static minmax", "W8A8", 1.2, cpu_seconds=5.0, seconds=5.0)
    equal = row(PEER, "W8A8", 0.2, cpu_seconds=30.0, seconds=30.0, peak_mb=600.0)
    slow = row("aimet-onnx AdaRound", "W8A8", 0.1, cpu_seconds=900.0, seconds=1000.0)
    ours = row("edgecompress W8A8", "W8A8", 0.1, cpu_seconds=15.0, seconds=12.0, peak_mb=500.0)
    model = found(fast, equal, slow, ours)
    time, memory = judged(model, "of the time"), judged(model, "of the peak memory")
    assert (time.met, memory.met) == (True, False)
    assert PEER in time.found
    assert judged(found(fast, ours), "of the time").met is None
    busy = found(equal, replace(ours, seconds=16.0))
    assert judged(busy, "of the time").met is False


def test_small_means_bytes_and_accuracy() -> None:
    def verdict(size: int, drop: float) -> Any:
        ours = row("edgecompress weights int4", "int4", drop, bytes=size)
        return judged(found(ours, name="minilm"), "16 MB").met

    assert verdict(16_000_000, 0.3)
    assert not verdict(16_000_001, 0.0)
    assert not verdict(12_000_000, 0.31)


def test_a_missing_file_misses_its_goal() -> None:
    model = found(name="llama10m")
    for word in ("int4 weights", "int8 weights", "float16"):
        assert judged(model, word).met is False


@pytest.mark.parametrize(
    ("reference", "value", "same"),
    [
        (0.8725, 0.8729, True),
        (0.8725, 0.8731, False),
        (72.31, 72.35, True),
        (72.31, 72.37, False),
        (1.0, 0.996, True),
        (0.5, math.nan, False),
    ],
)
def test_third_digit(reference: float, value: float, same: bool) -> None:
    assert part("goals").same_to_third_digit(reference, value) is same


def test_every_file_of_ours_is_held_against_the_latency_of_float() -> None:
    model = found(
        row("edgecompress W8A8", "W8A8", 0.0),
        row("edgecompress float16", "float16", 0.0, latency=1.02),
        row(PEER, "W8A8", 0.0, latency=2.1),
    )
    verdict = judged(model, "slower than float")
    assert verdict.met is False
    assert "float16" in verdict.found


def test_few_rows_judge_nothing() -> None:
    model = found(row("edgecompress W8A8", "W8A8", 0.0))
    listed = part("goals").verdicts([model], vnni=True, judge_accuracy=False)
    assert listed
    assert all(each.met is None for each in listed)


def summary(*models: Any) -> Any:
    machine = {
        "cpu": "Some CPU",
        "instruction_sets": ["avx2"],
        "logical_cores": 2,
        "os": "Linux",
        "python": "3.11",
        "taken": "now",
        "versions": {"onnxruntime": "1.31.1"},
    }
    listed = part("goals").verdicts(models, vnni=True)
    return part("tables").Summary(models, listed, machine, {"nncf": "3.4.0"}, {"x": "has no rows"})


def test_the_document_shows_every_row_and_every_reason() -> None:
    failed = part("tables").Row("aimet-onnx CLE", "W8A8", failed="pip could not install it")
    model = found(row(PEER, "W8A8", 0.2), row("edgecompress W8A8", "W8A8", 0.1), failed)
    text = part("tables").markdown(summary(model))
    assert "| nncf full bias correction | 84.80 | 0.20 | 2.80 | 0.45 | 0.50 |" in text
    assert "| **edgecompress W8A8** | 84.90 |" in text
    assert "- aimet-onnx CLE: pip could not install it" in text
    assert "- x: has no rows." in text
    assert "Some CPU" in text
    assert "nncf 3.4.0" in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert line.count("|") in (4, 10)
    assert PEER in part("tables").as_text(model)


def test_the_short_table_has_the_best_peer_and_our_defaults() -> None:
    model = found(
        row("onnxruntime static minmax", "W8A8", 1.2),
        row(PEER, "W8A8", 0.2, latency=2.07),
        row("edgecompress W8A8", "W8A8", 0.1),
    )
    short = part("tables").compact(summary(model, found(name="llama10m")))
    assert "84.80, 2.07x, 2.80 MB" in short
    assert "| **84.90, 0.45x, 2.80 MB** |" in short
    assert "Llama" not in short
    assert "Some CPU" in short


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    tables = part("tables")
    text = f"before\n{tables.BEGIN}\nold \\1\n{tables.END}\nafter\n"
    once = tables.between_markers(text, r"new \1")
    assert once == f"before\n{tables.BEGIN}\nnew \\1\n{tables.END}\nafter\n"
    assert tables.between_markers(once, r"new \1") == once
    with pytest.raises(ValueError, match="quantization:begin"):
        tables.between_markers("no markers", "new")


def test_a_kept_run_depends_on_peer_version_method_model_and_data() -> None:
    key = part("runs").key
    told = ("nncf", "3.4.0", "default", "model", "data")
    assert key(*told) == key(*told)
    others = {key(*(*told[:i], told[i] + "x", *told[i + 1 :])) for i in range(len(told))}
    assert len(others) == len(told)
    assert key(*told) not in others
    assert " " not in key("nncf", "3.4.0", "mixed preset", "model", "data")


def test_every_method_has_a_driver_and_every_peer_its_pinned_version() -> None:
    runs = part("runs")
    titles = [method.title for method in runs.METHODS]
    assert len(set(titles)) == len(titles)
    for name, peer in runs.PEERS.items():
        pins = (BENCHMARKS / "quantization" / "peers" / f"{name}.txt").read_text()
        assert f"=={peer.version}\n" in pins
        driver = (BENCHMARKS / "quantization" / "peers" / f"{name}.py").read_text()
        for method in runs.METHODS:
            if method.peer == name:
                assert f'"{method.name}": ' in driver


def test_entries_of_ours_have_their_own_titles_and_defaults_come_first() -> None:
    ours = part("ours")
    titles = [entry.title for entry in ours.ENTRIES]
    assert len(set(titles)) == len(titles)
    first = next(entry for entry in ours.ENTRIES if entry.format == "W8A8")
    assert first.passes == ({"name": "quantize"},)
