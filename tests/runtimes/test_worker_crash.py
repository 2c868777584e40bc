"""Runtimes that take their process down with them: the error names the node."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.measure import measure
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes._crash import beginning
from edgecompress.target import MeasurementSettings
from tests.models import from_text, small_cnn

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

QUICK = MeasurementSettings(warmup=1, runs=2, seconds=0.05, blocks=1, timeout_seconds=60)
CHAIN = """
    <ir_version: 10, opset_import: ["" : 20]>
    chain (float[4] x, bool flag) => (float[4] y) {
        a = Relu(x)
        b = Neg(a)
        c = Softplus(b)
        d = If (flag) <
            then_branch = yes () => (float[4] t) { t = Add(a, c) },
            else_branch = no () => (float[4] e) { e = Sub(a, c) }
        >
        e2 = Erf(d)
        y = Add(e2, b)
    }
    """
FEEDS = {"x": np.linspace(-1, 1, 4, dtype=np.float32), "flag": np.array(True)}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[pytest.MonkeyPatch, Path]:
    """A model, and a way to have it run by an engine of ``failing_engines``."""
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).parent))
    return monkeypatch, from_text(CHAIN).save(tmp_path / "chain.onnx")[0]


def error_of(failing: tuple[pytest.MonkeyPatch, Path], engine: str) -> MeasurementError:
    patch, model = failing
    patch.setattr(runtime_class("onnxruntime"), "engine", f"failing_engines:{engine}")
    profile = target.load(target.host_target()).model_copy(update={"measurement": QUICK})
    with pytest.raises(MeasurementError) as caught:
        measure({"chain": model}, profile, FEEDS)
    assert caught.value.where == str(model)
    return caught.value


def test_the_node_that_crashes_at_load_is_named(failing: tuple[pytest.MonkeyPatch, Path]) -> None:
    error = error_of(failing, "CrashesAtLoad")
    assert "killed by SIGSEGV (load)" in error.what
    assert "the first node that brings it down is Softplus 'c'" in error.what
    assert "choose another runtime" in str(error)


def test_the_node_that_aborts_in_a_run_is_named(failing: tuple[pytest.MonkeyPatch, Path]) -> None:
    error = error_of(failing, "AbortsInRun")
    assert "killed by SIGABRT (run)" in error.what
    assert "terminate called: no kernel" in error.what
    assert "Erf 'e2'" in error.what


def test_a_crash_that_does_not_come_back_is_told_as_it_is(
    failing: tuple[pytest.MonkeyPatch, Path],
) -> None:
    assert error_of(failing, "CrashesOnce").what == "the worker was killed by SIGSEGV (load)"


@pytest.mark.parametrize("external", [False, True], ids=["one file", "weights beside it"])
def test_the_beginning_of_a_model_computes_the_same(tmp_path: Path, external: bool) -> None:
    file = small_cnn().save(tmp_path / "cnn.onnx", external_data=external)[0]
    whole = onnx.load(file, load_external_data=False)
    x = {"x": np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)}
    (tmp_path / "cut").mkdir()
    values: dict[str, np.ndarray] = {}
    for count in range(1, len(whole.graph.node) + 1):
        cut = beginning(whole, count, tmp_path, tmp_path / "cut")
        session = ort.InferenceSession(cut, providers=["CPUExecutionProvider"])
        names = [out.name for out in session.get_outputs()]
        values.update(zip(names, session.run(None, x), strict=True))
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    # The same kernels, though fused otherwise.
    np.testing.assert_allclose(values["y"], session.run(None, x)[0], rtol=1e-5, atol=1e-6)
    assert {"c1", "r1", "c2", "s", "v", "y"} <= set(values)


def test_a_value_that_only_a_body_reads_is_kept_alive(tmp_path: Path) -> None:
    whole = onnx.load(from_text(CHAIN).save(tmp_path / "chain.onnx")[0])
    cut = onnx.load(beginning(whole, 3, tmp_path, tmp_path))
    assert [out.name for out in cut.graph.output] == ["a", "b", "c"]
