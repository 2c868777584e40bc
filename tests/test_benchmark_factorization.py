"""benchmarks/factorization: the peers' mathematics, goals, kept runs, documents, and small models.

No model of ../shared is compressed here.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Any:
    """The benchmarks are programs, not part of the package."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def part(name: str) -> Any:
    return importlib.import_module(f"factorization.{name}")


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mlp") / "float.onnx"
    part("latency").write_mlp(file, 24, 48, 3)
    return file


def rows(count: int = 6, width: int = 24) -> list[dict[str, Any]]:
    """Inputs of the MLP that are far from white."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((width, width)) * np.geomspace(1, 1e-2, width)
    feeds = rng.standard_normal((count, 1, 128, width)) @ mix
    return [{"x": each.astype(np.float32)} for each in feeds]


@pytest.mark.parametrize(
    ("share", "shape", "rank"),
    [
        (0.8, (4096, 4096), 1638),
        (0.6, (11008, 4096), 1791),
        (0.4, (14336, 4096), 1274),
        (0.4, (1024, 4096), 327),
    ],
)
def test_ranks_of_the_peers(share: float, shape: tuple[int, int], rank: int) -> None:
    assert part("peers").rank_of(share, *shape) == rank


def test_whitening_reaches_the_least_error_of_its_rank() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((12, 16)), rng.standard_normal((16, 16)) @ rng.random((16, 200))
    left, right = part("peers").factors(weight, x @ x.T, 5)
    assert left.shape == (12, 5)
    assert right.shape == (5, 16)
    least = np.square(np.linalg.svd(weight @ x, compute_uv=False)[5:]).sum()
    assert np.square(weight @ x - left @ (right @ x)).sum() == pytest.approx(least)
    plain = np.square(np.linalg.svd(weight, compute_uv=False)[5:]).sum()
    left, right = part("peers").factors(weight, None, 5)
    assert np.square(weight - left @ right).sum() == pytest.approx(plain)


def test_whitening_survives_fewer_tokens_than_inputs() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((6, 8)), rng.standard_normal((8, 3))
    left, right = part("peers").factors(weight, x @ x.T, 3)
    assert np.abs(weight @ x - left @ right @ x).max() < 1e-3


def test_a_peer_halves_every_matrix_and_whitening_loses_less(mlp: Path, tmp_path: Path) -> None:
    judging, peers = part("judging"), part("peers")
    plain, whitened, feeds = tmp_path / "svd.onnx", tmp_path / "svd_llm.onnx", rows()
    peers.factorize(mlp, plain, 0.5, None)
    peers.factorize(mlp, whitened, 0.5, feeds)
    before, after = (judging.macs(file, feeds[0]) for file in (mlp, plain))
    assert before == 3 * 2 * 128 * 24 * 48
    assert after == 3 * 2 * 128 * 8 * (24 + 48)
    names = ["y0", "y1", "y2"]
    lost = [judging.depth_errors(mlp, file, names, feeds) for file in (plain, whitened)]
    assert all(0 < b < a for a, b in zip(*lost, strict=True))
    assert judging.depth_errors(mlp, mlp, names, feeds) == [0.0, 0.0, 0.0]
    assert judging.blocks_of(mlp)[-1] == "y2"


def test_input_aware_without_damping_is_what_the_peer_does(mlp: Path, tmp_path: Path) -> None:
    """Two implementations that share no code give the same errors."""
    judging = part("judging")
    feeds = rows(4)
    peer, ours = tmp_path / "peer.onnx", tmp_path / "ours.onnx"
    np.savez(tmp_path / "rows.npz", x=np.concatenate([feed["x"] for feed in feeds]))
    part("peers").factorize(mlp, peer, 0.5, feeds)
    recipe = {
        "tables": {
            "source": {"model": str(mlp)},
            "data": {"calibration": {"path": "rows.npz"}},
            "target": {"name": "cpu-x86-64"},
        },
        "base": str(tmp_path),
    }
    options = {
        "keep": 0.5,
        "objective": "input_aware",
        "ranks": "uniform",
        "refine": False,
        "damping": 0.0,
        "never_slower": False,
    }
    found = part("making").compress(recipe, options, str(ours), threads=1, forward=True)
    assert found["layers"] == 6
    assert found["forward"]["seconds"] > 0
    names = ["a0", "y0", "y1", "y2"]
    first, second = (judging.depth_errors(mlp, file, names, feeds) for file in (peer, ours))
    assert second == pytest.approx(first, rel=0.02)


def test_the_language_model_larger_than_memory_in_small(tmp_path: Path) -> None:
    large, llama = part("large"), importlib.import_module("_llama")
    model, data, output = (tmp_path / name for name in ("m.onnx", "rows.npz", "out/model.onnx"))
    sizes = llama.Llama(width=64, layers=2, heads=4, kv_heads=2, mlp=128, vocabulary=100)
    llama.write(sizes, model)
    drawn = np.random.default_rng(0).integers(0, 100, (16, 16))
    np.savez(data, input_ids=drawn, attention_mask=np.ones_like(drawn))
    found = large.factorize(str(model), str(data), str(output), limit=200_000_000)
    assert "failed" not in found
    assert found["layers"] >= 14
    assert large.runs(str(output), str(data))
    json.dumps(found)


def record(title: str, keep: float, figure: float, **more: Any) -> dict[str, Any]:
    figures = {"perplexity": figure, "other_perplexity": 2 * figure, "loss": np.log(figure)}
    costs = {"seconds": 1.0, "cpu_seconds": 1.0, "bytes": 1_000_000}
    depth = [0.0, 0.1, 0.2, 0.2, 0.2, 0.01]
    return {"title": title, "keep": keep, "figures": figures, "depth": depth, **costs, **more}


def ablation(**changes: float) -> dict[str, Any]:
    """What a run at 0.6 that meets all goals would find, but for ``changes``."""
    values = {
        "plain SVD": 200.0,
        "SVD-LLM": 110.0,
        "input_aware, no damping": 110.1,
        "input_agnostic": 190.0,
        "input_aware": 110.0,
        "shift_aware": 112.0,
        "anchored": 108.0,
        "mixed": 108.0,
        "input_agnostic, refined": 106.0,
        "input_aware, refined": 104.0,
        "shift_aware, refined": 104.5,
        "anchored, refined": 104.2,
        "mixed, refined": 104.1,
        "defaults, unrefined": 107.0,
        "defaults": 104.0,
    } | changes
    return {
        "title": "Some model",
        "calibration_rows": 128,
        "calibration_tokens": 32_768,
        "validation_rows": 64,
        "blocks": list("abcdef"),
        "defaults": {"objective": "anchored"},
        "float": {"figures": {"perplexity": 100.0, "other_perplexity": 200.0, "loss": 4.6}},
        "rows": [record(title, 0.6, value) for title, value in values.items()],
    }


def judged(found: dict[str, Any], word: str) -> Any:
    """The one verdict whose goal has ``word``."""
    listed = part("ablation").verdicts("llama10m", found)
    (verdict,) = [each for each in listed if word in each.goal]
    return verdict


def test_a_run_that_meets_all_goals_meets_all_goals() -> None:
    listed = part("ablation").verdicts("llama10m", ablation())
    assert len(listed) == 6
    assert all(verdict.met for verdict in listed)


@pytest.mark.parametrize(
    ("title", "value", "word"),
    [
        ("input_aware, no damping", 110.5, "is SVD-LLM's whitening"),
        ("input_aware, no damping", 109.5, "is SVD-LLM's whitening"),
        ("anchored", 111.0, "unrefined"),
        ("shift_aware", 109.9, "unrefined"),
        ("plain SVD", 115.0, "unrefined"),
        ("mixed, refined", 109.0, "improves every start"),
        ("input_agnostic, refined", 111.0, "from plain SVD"),
        ("defaults", 105.1, "of whitening's alone"),
    ],
)
def test_each_goal_can_be_missed(title: str, value: float, word: str) -> None:
    assert judged(ablation(), word).met is True
    assert judged(ablation(**{title: value}), word).met is False


def test_an_error_that_grows_with_depth_misses_its_goal() -> None:
    found = ablation()
    for each in found["rows"]:
        if each["title"] == "defaults":
            each["depth"] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.0]
    assert judged(found, "second half").met is False


def test_what_was_not_run_is_not_judged() -> None:
    found = ablation()
    kept = ("plain SVD", "SVD-LLM")
    found["rows"] = [each for each in found["rows"] if each["title"] in kept]
    listed = part("ablation").verdicts("llama10m", found)
    assert listed
    assert all(verdict.met is None for verdict in listed)


def network() -> dict[str, Any]:
    lines = part("cnn").LINES
    return {
        "title": "A <network>",
        "calibration_rows": 8,
        "validation_rows": 8,
        "float": {"figures": {"top1": 0.9}, "macs": 1000},
        "lines": {
            name: [
                {"keep": keep, "macs": 1000 * keep, "figures": {"top1": 0.5 + number / 10}}
                for keep in (0.8, 0.3)
            ]
            for number, name in enumerate(lines)
        },
    }


def test_the_picture_is_sound_and_always_the_same() -> None:
    from xml.etree import ElementTree

    svg = part("curves").svg
    text = svg({"one": network(), "two": network()})
    assert text == svg({"one": network(), "two": network()})
    root = ElementTree.fromstring(text)
    curves = [element for element in root if element.tag.endswith("polyline")]
    assert len(curves) == 2 * len(part("cnn").LINES)
    assert all(len((curve.get("points") or "").split()) == 3 for curve in curves)


def full_record() -> dict[str, Any]:
    records = part("records")
    found: dict[str, Any] = {}
    for kind, name, figures in (
        ("ablation", "llama10m", ablation()),
        ("cnn", "resnet20", network()),
        ("time", None, times()),
        ("latency", None, latencies()),
        ("large", None, large()),
    ):
        found = records.merged(found, kind, name, figures)
    return found


def times(**changes: float) -> dict[str, Any]:
    closed = {
        "tokens": 14_000,
        "seconds": 20.0,
        "cpu_seconds": 30.0,
        "seconds_over_forward": 2.9,
        "cpu_seconds_over_forward": 2.8,
        "peak_mb": 900.0,
    }
    refined = {"tokens": 14_000, "seconds": 299.0, "cpu_seconds": 500.0, "peak_mb": 900.0}
    runs = {"closed form": closed | changes, "defaults": refined | changes}
    return {"threads": 2, "keep": 0.6, "runs": runs}


def latencies(share: float = 0.8) -> dict[str, Any]:
    row = {"cpu_ms": 1.0, "faster": 1.0, "wall_faster": 1.0, "promised": 1.0, "share": 1.0}
    rows = {"float": row, "0.5": {**row, "share": share}}
    return {"mlp": {"title": "MLP", "rows": rows, "failed": {}}}


def large(peak: float = 3999.0) -> dict[str, Any]:
    return {
        "parameters": 10**9,
        "rows": 32,
        "tokens": 512,
        "layers": 112,
        "bytes": 4 * 10**9,
        "bytes_after": 3 * 10**9,
        "seconds": 60.0,
        "cpu_seconds": 100.0,
        "limit": 2 * 10**9,
        "peak_mb": peak,
        "finite": True,
    }


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("timing", lambda: times(), lambda: times(seconds=300.0)),
        ("timing", lambda: times(), lambda: times(cpu_seconds_over_forward=3.1)),
        ("latency", lambda: latencies(), lambda: latencies(0.79)),
        ("large", lambda: large(), lambda: large(4000.0)),
        ("large", lambda: large(), lambda: {**large(), "failed": "no memory"}),
    ],
)
def test_goals_of_whole_parts(name: str, good: Callable[[], Any], bad: Callable[[], Any]) -> None:
    module = part(name)
    assert all(verdict.met for verdict in module.verdicts(good()))
    assert not all(verdict.met for verdict in module.verdicts(bad()))


def test_documents_show_every_part(tmp_path: Path) -> None:
    records = part("records")
    found = full_record()
    assert json.loads(json.dumps(found)) == found
    text = records.document(found)
    for words in ("Objectives and refinement", "| 0.6 | anchored, refined |", "3999", "SqueezeNet"):
        assert words in text
    assert str(BENCHMARKS.parent) not in text
    short = records.readme(found)
    assert (
        "| Some model | perplexity | 0.6 | 100.00 | 200.00 | 110.00 | 107.00 | **104.00** |"
        in short
    )
    for line in (text + short).splitlines():
        if line.startswith("| goal"):
            assert line.count("|") == 4


def test_a_part_replaces_only_itself() -> None:
    records = part("records")
    first = full_record()
    second = records.merged(first, "cnn", "mobilenet_v1", network())
    assert set(second["cnn"]) == {"resnet20", "mobilenet_v1"}
    assert second["cnn"]["resnet20"] == first["cnn"]["resnet20"]
    assert second["ablation"] == first["ablation"]
    assert set(first["cnn"]) == {"resnet20"}


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    records = part("records")
    begin, end = records.FIGURES
    once = records.between(f"before\n{begin}\nold\n{end}\nafter\n", records.FIGURES, r"new \1")
    assert once == f"before\n{begin}\nnew \\1\n{end}\nafter\n"
    with pytest.raises(ValueError, match="figures"):
        records.between("no markers", records.FIGURES, "new")


def test_finished_runs_are_kept_and_failed_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    making = part("making")
    monkeypatch.setattr(making, "HOME", tmp_path)
    subject = SimpleNamespace(name="x", digest="abc")
    variant = making.Variant("anchored", 0.6, {"keep": 0.6})
    calls: list[Any] = []

    def make(self: Any, variant: Any) -> dict[str, Any]:
        calls.append(variant)
        return {"figures": {"top1": 1.0}} if len(calls) > 1 else {"failed": "once"}

    monkeypatch.setattr(making.Maker, "_make", make)
    maker = making.Maker(subject, making.Given())
    assert maker.made(variant) == {"failed": "once"}
    assert maker.made(variant) == maker.made(variant) == {"figures": {"top1": 1.0}}
    assert len(calls) == 2
    kept = making.Maker(subject, making.Given(kept=True))
    assert kept.made(variant) == {"figures": {"top1": 1.0}}
    other = making.Variant("anchored", 0.6, {"keep": 0.6, "refine": False})
    assert kept.made(other) == {"failed": making.NOT_RUN}
    assert len(calls) == 2


def test_variants_have_their_own_names_and_the_same_ranks() -> None:
    listed = part("ablation").variants(0.6, rows=64)
    assert len({variant.key for variant in listed}) == len(listed) == 13
    for variant in listed:
        assert variant.options is None or variant.options["never_slower"] is False
