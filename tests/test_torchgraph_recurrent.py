"""LSTM, GRU and RNN: every option against onnxruntime, by fused kernels and step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.torchgraph import recurrent, to_torch
from tests.test_torchgraph import Shared, assert_same, normal, run_ort

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 6
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DIRECTIONS = ("forward", "reverse", "bidirectional")


def _node(
    kind: str,
    *,
    bias: bool = True,
    states: bool = True,
    lengths: bool = False,
    peepholes: bool = False,
    opset: int = 14,
    double: bool = False,
    **attributes: Any,
) -> Model:
    """A model of one node whose weights are initializers and whose states are inputs."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    rows = _GATES[kind] * HIDDEN
    element = TensorProto.DOUBLE if double else TensorProto.FLOAT
    shapes = {"w": (rows, INPUTS), "r": (rows, HIDDEN)}
    if bias:
        shapes["b"] = (2 * rows,)
    if peepholes:
        shapes["p"] = (3 * HIDDEN,)
    weights = [
        onnx.numpy_helper.from_array(
            (normal(directions, *shape, seed=i) / 2).astype(np.float64 if double else np.float32),
            name,
        )
        for i, (name, shape) in enumerate(shapes.items())
    ]
    first = [helper.make_tensor_value_info("x", element, [None, None, INPUTS])]
    state_names = (["h0", "c0"] if kind == "LSTM" else ["h0"]) if states else []
    first += [
        helper.make_tensor_value_info(name, element, [None, None, HIDDEN]) for name in state_names
    ]
    if lengths:
        first.append(helper.make_tensor_value_info("lens", TensorProto.INT32, [None]))
    inputs = ["x", "w", "r", "b" if bias else "", "lens" if lengths else "", *state_names]
    if peepholes:
        inputs += [""] * (7 - len(inputs)) + ["p"]
    outputs = ["y", "yh", "yc"] if kind == "LSTM" else ["y", "yh"]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, hidden_size=HIDDEN, **attributes)],
        "recurrent",
        first,
        [helper.make_tensor_value_info(name, element, None) for name in outputs],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return Model(ir.from_proto(proto))


def _feeds(model: Model, *, layout: int = 0, batch: int = BATCH) -> dict[str, np.ndarray]:
    wanted = {spec.name for spec in model.signature.inputs}
    directions = model.initializer("w").shape[0]
    state = (batch, directions) if layout else (directions, batch)
    feeds = {
        "x": normal(*((batch, STEPS) if layout else (STEPS, batch)), INPUTS, seed=7),
        "h0": normal(*state, HIDDEN, seed=8) / 2,
        "c0": normal(*state, HIDDEN, seed=9) / 2,
        "lens": np.array([3, STEPS, 1], np.int32),
    }
    return {name: array for name, array in feeds.items() if name in wanted}


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "_can_fuse", lambda *_: False)


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize("kind", _GATES)
class TestAgainstOnnxruntime:
    @pytest.mark.parametrize("given", [True, False])
    def test_by_torchs_kernel(self, kind: str, direction: str, given: bool) -> None:
        options = {"linear_before_reset": 1} if kind == "GRU" else {}
        model = _node(kind, direction=direction, bias=given, states=given, **options)
        assert_same(model, _feeds(model))

    @pytest.mark.usefixtures("stepwise")
    def test_step_by_step(self, kind: str, direction: str) -> None:
        model = _node(kind, direction=direction)
        assert_same(model, _feeds(model))

    def test_sequences_of_their_own_lengths(self, kind: str, direction: str) -> None:
        model = _node(kind, direction=direction, lengths=True)
        assert_same(model, _feeds(model))

    def test_clipped_gates(self, kind: str, direction: str) -> None:
        model = _node(kind, direction=direction, clip=0.3)
        assert_same(model, _feeds(model))

    def test_activations_with_their_numbers(self, kind: str, direction: str) -> None:
        names = {"LSTM": ["HardSigmoid", "ScaledTanh", "Affine"], "GRU": ["HardSigmoid", "Elu"]}
        chosen = names.get(kind, ["HardSigmoid"]) * (2 if direction == "bidirectional" else 1)
        betas = [n for n in chosen if n in ("HardSigmoid", "ScaledTanh", "Affine")]
        model = _node(
            kind,
            direction=direction,
            activations=chosen,
            activation_alpha=[0.3 + 0.1 * i for i in range(len(chosen))],
            activation_beta=[0.2 + 0.1 * i for i in range(len(betas))],
        )
        assert_same(model, _feeds(model))


@pytest.mark.parametrize("direction", _DIRECTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"peepholes": True},
        {"input_forget": 1},
        {"peepholes": True, "input_forget": 1, "clip": 0.4, "lengths": True},
        {"opset": 7},
    ],
)
def test_lstm_options(direction: str, options: dict[str, Any]) -> None:
    model = _node("LSTM", direction=direction, **options)
    assert_same(model, _feeds(model))


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("options", [{}, {"clip": 0.3}, {"lengths": True}, {"bias": False}])
def test_gru_resets_before_or_behind_the_weights(before: int, options: dict[str, Any]) -> None:
    model = _node("GRU", direction="bidirectional", linear_before_reset=before, **options)
    assert_same(model, _feeds(model))


@pytest.mark.parametrize(
    "name",
    ["Relu", "Tanh", "Sigmoid", "Softsign", "Softplus", "Elu", "LeakyRelu", "HardSigmoid"],
)
def test_defaults_of_activations(name: str) -> None:
    model = _node("RNN", activations=[name])
    assert_same(model, _feeds(model))


@pytest.mark.parametrize("kind", _GATES)
@pytest.mark.parametrize("direction", _DIRECTIONS)
def test_layout_1_is_layout_0_transposed(kind: str, direction: str) -> None:
    """onnxruntime has no layout 1: its own layout 0 is the reference."""
    model = _node(kind, direction=direction, layout=1)
    feeds = _feeds(model, layout=1)
    swapped = {name: np.ascontiguousarray(np.swapaxes(a, 0, 1)) for name, a in feeds.items()}
    expected = run_ort(_node(kind, direction=direction), swapped)
    with torch.no_grad():
        got = to_torch(model)({name: torch.from_numpy(a) for name, a in feeds.items()})
    torch.testing.assert_close(got["y"], torch.from_numpy(expected["y"].transpose(2, 0, 1, 3)))
    for name in expected.keys() - {"y"}:
        torch.testing.assert_close(got[name], torch.from_numpy(expected[name].swapaxes(0, 1)))


@pytest.mark.parametrize("kind", _GATES)
def test_no_steps_give_the_initial_state(kind: str) -> None:
    graph = to_torch(_node(kind))
    feeds = {name: torch.ones(1, 2, HIDDEN) for name in ("h0", "c0")}
    result = graph({"x": torch.zeros(0, 2, INPUTS), **feeds})
    assert result["y"].shape == (0, 1, 2, HIDDEN)
    assert torch.equal(result["yh"], feeds["h0"])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"peepholes": True, "lengths": True}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"clip": 2.0}),
        ("RNN", {}),
    ],
)
def test_gradients_agree_with_finite_differences(kind: str, options: dict[str, Any]) -> None:
    model = _node(kind, direction="bidirectional", double=True, **options)
    graph = to_torch(model)
    feeds = {name: torch.from_numpy(array) for name, array in _feeds(model).items()}
    feeds = {n: f if n == "lens" else f.double() for n, f in feeds.items()}
    names = list(graph.parameters_by_initializer)

    def run(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        keyed = {graph._keys[name]: weight for name, weight in zip(names, weights, strict=True)}
        results: dict[str, torch.Tensor] = torch.func.functional_call(
            graph, keyed, ({**feeds, "x": x},)
        )
        return tuple(results.values())

    x = feeds["x"].requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in graph.parameters()]
    assert set(names) >= {"w", "r", "b"}
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activations": ["Sine"]}, "unknown activation 'Sine'"),
        ({"activations": ["Affine"], "activation_alpha": [1.0]}, "defaults of Affine"),
        ({"activations": ["Tanh"], "direction": "bidirectional"}, "1 activations for 2 directions"),
    ],
)
def test_wrong_activations_are_named(options: dict[str, Any], text: str) -> None:
    model = _node("RNN", **options)
    feeds = {name: torch.from_numpy(array) for name, array in _feeds(model).items()}
    with pytest.raises(ModelError, match=text):
        to_torch(model)(feeds)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("rate", "chunk"), [(16000, 512), (8000, 256)])
def test_a_voice_detector(shared: Shared, rate: int, chunk: int, batch: int) -> None:
    feeds = {
        "input": normal(batch, chunk, seed=1) / 10,
        "state": normal(2, batch, 128, seed=2) / 3,
        "sr": np.array(rate),
    }
    assert_same(Model.load(shared("silero_vad.onnx")), feeds)
