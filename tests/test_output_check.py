from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.output_check import (
    Outputs,
    agree,
    cut_behind,
    difference,
    reference_outputs,
    without_activation_pairs,
)
from edgecompress.target import HalfSupport, TargetProfile
from tests.models import small_cnn
from tests.running import X86, rows_of

PROFILE = target.load("cpu-x86-64")
FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
FINITE = st.floats(-1e3, 1e3, width=32)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = small_cnn()
    rows = rows_of(tmp_path_factory.mktemp("rows"), model, {"x": np.repeat(FEEDS["x"], 8, axis=0)})
    return run_pass(make_pass("quantize", {}), model, Context(rows, X86)).model


def literally(model: Model) -> Mapping[str, Any]:
    return reference_outputs(model, FEEDS, PROFILE, literal=True)


def wrong_at(op: str, change: Callable[[ir.Node], None]) -> tuple[str, Outputs]:
    """A target that computes the last node of an operator wrongly; the value that it makes."""
    name = [node for node in small_cnn().ir.graph if node.op_type == op][-1].outputs[0].name

    def outputs(model: Model) -> Mapping[str, Any]:
        broken = model.clone()
        for node in broken.ir.graph:
            if node.outputs[0].name == name:
                change(node)
        return reference_outputs(broken, FEEDS, PROFILE)

    return str(name), outputs


def other_operator(node: ir.Node) -> None:
    node.op_type = "Neg"


def test_the_same_computation_in_another_order_agrees(int8: Model) -> None:
    for model in (small_cnn(), int8):
        found = agree(model, literally, FEEDS, PROFILE)
        assert found.passed
        assert found.divergence is None
        assert found.worst.relative_error <= found.allowed


def test_a_wrong_node_is_named() -> None:
    name, outputs = wrong_at("Relu", other_operator)
    found = agree(small_cnn(), outputs, FEEDS, PROFILE)
    assert not found.passed
    assert found.divergence is not None
    assert (found.divergence.node, found.divergence.op) == (name, "Relu")
    assert found.divergence.relative_error is not None
    assert found.divergence.relative_error > found.allowed


def test_a_target_that_fails_on_a_part_is_named_there() -> None:
    name, outputs = wrong_at("Relu", other_operator)

    def failing(model: Model) -> Mapping[str, Any]:
        made = [node.outputs[0].name for node in model.ir.graph]
        if "y" not in made and name in made:
            raise MeasurementError("cannot convert Relu")
        return outputs(model)

    found = agree(small_cnn(), failing, FEEDS, PROFILE)
    assert found.divergence is not None
    assert found.divergence.node == name
    assert "cannot convert Relu" in found.divergence.detail


def test_activations_kept_in_float_agree_with_what_the_file_stands_for(int8: Model) -> None:
    coarse = int8.clone()
    for node in coarse.ir.graph:  # six bits less in front of the last layer
        if node.op_type == "Gemm":
            pair = node.inputs[0].producer()
            assert pair is not None
            assert pair.inputs[1] is not None
            scale = str(pair.inputs[1].name)
            coarse.set_initializer(scale, coarse.initializer(scale) * np.float32(64))
    in_float = without_activation_pairs(coarse)
    assert in_float is not None
    exact = literally(in_float)
    found = agree(coarse, lambda _: exact, FEEDS, PROFILE)
    assert found.passed
    assert found.reference.endswith("activations in float")


def test_a_float_model_has_no_pairs_to_leave_out() -> None:
    assert without_activation_pairs(small_cnn()) is None


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({}, 5e-3),
        ({"options": {"precision": "fp16"}}, 3e-2),
        ({"half": HalfSupport(dtype="float16", native=True)}, 3e-2),
    ],
)
def test_the_limit_follows_the_number_format(change: dict[str, Any], limit: float) -> None:
    profile: TargetProfile = PROFILE.model_copy(update={"half": None, **change})
    off = {name: value * np.float32(1 + 1e-2) for name, value in literally(small_cnn()).items()}
    found = agree(small_cnn(), lambda _: off, FEEDS, profile)
    assert found.allowed == limit
    assert found.passed is (limit > 1e-2)


def test_a_cut_computes_the_value_with_the_inputs_that_it_needs() -> None:
    model = small_cnn()
    node = next(node for node in model.ir.graph if node.op_type == "Relu")
    cut = cut_behind(model, node)
    assert [spec.name for spec in cut.signature.outputs] == [node.outputs[0].name]
    assert len(list(cut.ir.graph)) < len(list(model.ir.graph))
    assert np.all(literally(cut)[str(node.outputs[0].name)] >= 0)


@given(arrays(np.float32, (7,), elements=FINITE))
def test_nothing_differs_from_itself(values: Any) -> None:
    found = difference("y", values, values.copy())
    assert (found.relative_error, found.largest) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1.0)


@given(arrays(np.float32, (7,), elements=FINITE), st.floats(0.1, 3))
def test_the_relative_error_of_a_scaled_output_is_the_scale(values: Any, scale: float) -> None:
    found = difference("y", values.astype(np.float64), values.astype(np.float64) * (1 + scale))
    if np.linalg.norm(values) > 0:
        assert found.relative_error == pytest.approx(scale)
        assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("expected", "got", "error"),
    [
        (np.zeros(3), None, np.inf),
        (np.zeros(3), np.zeros(4), np.inf),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), 0.0),
        (np.array([1.0, np.inf]), np.array([1.0, np.inf]), 0.0),
        (np.array([1.0, 2.0]), np.array([1.0, np.nan]), np.inf),
        (np.array([1.0, -np.inf]), np.array([1.0, np.inf]), np.inf),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.array([True, False]), np.array([True, True]), 0.5),
        (np.zeros(2), np.array([0.0, 0.5]), 0.5),
    ],
)
def test_odd_outputs(expected: Any, got: Any, error: float) -> None:
    assert difference("y", expected, got).relative_error == error
