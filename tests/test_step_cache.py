"""Keeping finished steps: what comes back is what was kept, or nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgecompress import step_cache
from edgecompress.errors import OutputError
from edgecompress.graph_pass import Applied, Change, Skip
from edgecompress.model import Model
from edgecompress.step_cache import StepCache, digest_of
from tests.models import small_cnn


@dataclass(frozen=True)
class Figure:
    value: float
    rows: int


@pytest.fixture
def base() -> Model:
    return small_cnn()


def applied_to(base: Model) -> Applied:
    model = base.clone(step="shift")
    model.set_initializer("b4", np.arange(10, dtype=np.float32))
    return Applied(
        model,
        changed=(Change("y", "Gemm", "shifted", 40, 40),),
        skipped=(Skip("c1", "Conv", "not asked for"),),
        claimed=("y",),
        notes={"layers": 1},
    )


def test_a_step_comes_back_as_it_was_kept(tmp_path: Path, base: Model) -> None:
    cache, applied = StepCache(tmp_path), applied_to(base)
    assert cache.step("key", base) is None
    cache.keep_step("key", "shift", base, applied)
    found = cache.step("key", base)
    assert found is not None
    assert found.model.to_bytes() == applied.model.to_bytes()
    assert found.model.steps == applied.model.steps == ("shift",)
    assert found.model.path == base.path
    assert (found.changed, found.skipped) == (applied.changed, applied.skipped)
    assert (found.claimed, found.notes) == (applied.claimed, applied.notes)


def test_a_step_that_changed_nothing_gives_back_the_model_that_went_in(
    tmp_path: Path, base: Model
) -> None:
    cache = StepCache(tmp_path)
    cache.keep_step("key", "shift", base, Applied(base))
    found = cache.step("key", base)
    assert found is not None
    assert found.model is base
    assert not list(tmp_path.rglob("*.onnx"))


def test_without_a_folder_nothing_is_kept(base: Model) -> None:
    cache = StepCache(None)
    cache.keep_step("key", "shift", base, applied_to(base))
    assert cache.step("key", base) is None
    assert cache.value("key", Figure, lambda: Figure(1.0, 2)) == Figure(1.0, 2)
    assert cache.value("key", Figure, lambda: Figure(3.0, 4)) == Figure(3.0, 4)


def halve(name: str) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        content = (entry / name).read_bytes()
        (entry / name).write_bytes(content[: len(content) // 2])

    return damage


def other_model(entry: Path) -> None:
    small_cnn(seed=1).save(entry / "model.onnx")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half a manifest": halve("manifest.json"),
    "half a model": halve("model.onnx"),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "no model": lambda entry: (entry / "model.onnx").unlink(),
    "another model": other_model,
    "an empty manifest": lambda entry: (entry / "manifest.json").write_text("{}"),
    "a manifest of another kind": lambda entry: (entry / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_step_counts_as_absent_and_is_kept_anew(
    tmp_path: Path, base: Model, damage: Callable[[Path], object]
) -> None:
    cache, applied = StepCache(tmp_path), applied_to(base)
    cache.keep_step("key", "shift", base, applied)
    damage(tmp_path / "key")
    assert cache.step("key", base) is None
    cache.keep_step("key", "shift", base, applied)
    found = cache.step("key", base)
    assert found is not None
    assert found.model.digest == applied.model.digest


@pytest.mark.parametrize("value", [0.25, math.inf])
def test_a_value_is_computed_once(tmp_path: Path, value: float) -> None:
    cache, calls = StepCache(tmp_path), []

    def compute() -> Figure:
        calls.append(1)
        return Figure(value, 7)

    assert cache.value("key", Figure, compute) == Figure(value, 7)
    assert cache.value("key", Figure, compute) == Figure(value, 7)
    assert len(calls) == 1


@pytest.mark.parametrize("text", ["", '{"value": 0.', "[]", "null", '{"value": 1.0}', '{"x": 1}'])
def test_a_damaged_value_is_computed_again(tmp_path: Path, text: str) -> None:
    cache = StepCache(tmp_path)
    (tmp_path / "key.json").write_text(text)
    assert cache.value("key", Figure, lambda: Figure(0.5, 3)) == Figure(0.5, 3)
    assert json.loads((tmp_path / "key.json").read_text()) == {"value": 0.5, "rows": 3}


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, base: Model
) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    cache = StepCache(file)
    for keep in (
        lambda: cache.keep_step("key", "shift", base, applied_to(base)),
        lambda: cache.value("key", Figure, lambda: Figure(1.0, 1)),
    ):
        with pytest.raises(OutputError, match="finished steps cannot be kept") as caught:
            keep()
        assert caught.value.where == str(file)
        assert "--no-cache" in (caught.value.cure or "")


def test_a_key_covers_parts_versions_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    key = digest_of(model="a", options={"x": 1, "y": 2})
    assert key == digest_of(options={"y": 2, "x": 1}, model="a")
    assert key != digest_of(model="a", options={"x": 1, "y": 3})
    with monkeypatch.context() as patch:
        patch.setattr(step_cache, "versions", lambda: {"torch": "0"})
        assert key != digest_of(model="a", options={"x": 1, "y": 2})
    with monkeypatch.context() as patch:
        patch.setattr(step_cache, "_source_digest", lambda: "changed")
        assert key != digest_of(model="a", options={"x": 1, "y": 2})


def test_the_source_digest_covers_the_passes() -> None:
    names = {file.name for file in step_cache.source_files()}
    assert {"step_cache.py", "quantize.py", "cleanup.py", "onnxruntime.py"} <= names
