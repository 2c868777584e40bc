"""rknn-toolkit2: its compiler and its simulator, which live in an environment of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.fixed_shapes import fixed_shapes
from edgecompress.model import Model
from edgecompress.runtimes import python_of, runtime_class
from edgecompress.runtimes.rknn import SETUP, Rknn, _answer, _older
from tests.models import from_text, small_cnn
from tests.running import run

RUNTIME = Rknn()
PROFILE = target.load("cpu-arm64").model_copy(
    update={
        "runtime": "rknn",
        "provider": "rk3588",
        "options": {"target_platform": "rk3588"},
    }
)

needs_toolkit = pytest.mark.skipif(
    python_of("rknn") is None,
    reason="EDGECOMPRESS_PYTHON_RKNN names no environment with rknn-toolkit2",
)


def fixed_cnn() -> Model:
    return fixed_shapes(small_cnn(), {"x": (1, 3, 16, 16)})


def gelu(attribute: str = "") -> Model:
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 8] x) => (float[2, 8] y) {{ h = Gelu{attribute}(x) y = Gelu{attribute}(h) }}"""
    )


def test_its_times_are_not_taken() -> None:
    assert not RUNTIME.timed
    assert "simulates" in RUNTIME.untimed_reason


def test_without_an_environment_the_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGECOMPRESS_PYTHON_RKNN", raising=False)
    found, reason = RUNTIME.present(PROFILE)
    if not found:  # the toolkit might be installed in this very environment
        assert SETUP in reason
        assert "EDGECOMPRESS_PYTHON_RKNN" in reason
    monkeypatch.setenv("EDGECOMPRESS_PYTHON_RKNN", "/nowhere/python")
    assert RUNTIME.present(PROFILE) == (
        False,
        "EDGECOMPRESS_PYTHON_RKNN names /nowhere/python, which does not exist",
    )


@pytest.mark.parametrize("attribute", ["", '<approximate="tanh">'])
def test_gelu_is_split_into_what_older_operator_sets_have(attribute: str) -> None:
    model = gelu(attribute)
    older, split = _older(model)
    assert split == 2
    assert older.ir.opset_imports[""] == 19
    assert "Gelu" not in {node.op_type for node in older.ir.graph}
    assert [value.name for value in older.ir.graph.outputs] == ["y"]
    feeds = {"x": np.linspace(-4, 4, 16, dtype=np.float32).reshape(2, 8)}
    np.testing.assert_allclose(run(older, feeds)["y"], run(model, feeds)["y"], atol=1e-6)
    assert RUNTIME.unsupported(model, PROFILE) == []


def test_operators_of_later_operator_sets_are_named() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 8] x, float[8] w) => (float[2, 8] y) { [norm] y = RMSNormalization(x, w) }""",
        w=np.ones(8, np.float32),
    )
    (found,) = RUNTIME.unsupported(model, PROFILE)
    assert found.op == "RMSNormalization"
    assert "operator set 19, the highest taken" in found.reason


def test_free_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="expected fixed shapes"):
        RUNTIME.prepare(small_cnn(), tmp_path, PROFILE)


def test_of_a_traceback_the_message_is_passed_on() -> None:
    def fail() -> None:
        raise ValueError("Traceback (most recent call last):\n  File x\nValueError: what it is\n")

    with pytest.raises(RuntimeError, match=r"could not read it: what it is$"):
        _answer("read it", fail)


@needs_toolkit
def test_the_simulator_computes_what_onnxruntime_computes(tmp_path: Path) -> None:
    model = fixed_cnn()
    artifact = RUNTIME.prepare(model, tmp_path, PROFILE)
    assert [file.name for file in artifact.files] == ["model.rknn"]
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)}
    session: Any = RUNTIME.session(artifact, PROFILE)
    try:
        found = session.run(feeds)["y"]
    finally:
        session.close()
    wanted = run(model, feeds)["y"]
    # It computes in float16.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


@needs_toolkit
def test_what_the_compiler_refuses_is_said(tmp_path: Path) -> None:
    odd = PROFILE.model_copy(update={"options": {"target_platform": "rk0"}})
    with pytest.raises(MeasurementError, match="rknn-toolkit2 could not take the options"):
        RUNTIME.prepare(fixed_cnn(), tmp_path, odd)


def test_it_is_a_member() -> None:
    assert runtime_class("rknn") is Rknn
