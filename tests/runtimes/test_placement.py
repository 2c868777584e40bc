"""Where nodes run, held to what onnxruntime really does with each model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.model import Model
from edgecompress.runtimes import Placement, RuntimeNode, runtime_class
from edgecompress.runtimes._fusion import OptimizedGraph
from edgecompress.runtimes._mends import provider_break
from edgecompress.runtimes._placement import NOWHERE, Said, place
from edgecompress.runtimes._session import CPU, split_options
from tests.models import from_text, small_cnn
from tests.runtimes.test_onnxruntime import Graph, conv_chain, one_operator

RUNTIME = runtime_class("onnxruntime")()
X86, ARM = target.load("cpu-x86-64"), target.load("cpu-arm64")


def placement(model: Model, profile: target.TargetProfile = X86) -> Placement:
    found = RUNTIME.placement(model, profile)
    assert found is not None
    return found


def kernels(found: Placement) -> dict[str, str]:
    return {node.node: node.kernel for node in found.nodes}


def test_every_node_of_a_fused_graph_is_accounted_for() -> None:
    model = one_operator("Conv", "uint8")
    found = placement(model)
    assert [node.op for node in found.nodes] == [node.op_type for node in model.ir.graph]
    assert {node.runs_on for node in found.nodes} == {CPU}
    assert kernels(found) == {
        "x_q": "QuantizeLinear",
        "x_d": "in QLinearConv of y",
        "w": "in QLinearConv of y",
        "b": "in QLinearConv of y",
        "y": "QLinearConv",
        "y_q": "in QLinearConv of y",
        "y_d": "DequantizeLinear",
    }
    assert {node.integer for node in found.nodes if "QLinearConv" in node.kernel} == {True}
    assert (found.partitions, found.breaks) == (1, ())
    assert found.on_accelerator == len(found.nodes)
    assert "onnxruntime" in found.source


def test_activations_are_found_in_the_kernel_that_took_them() -> None:
    found = kernels(placement(small_cnn()))
    assert (found["c1"], found["r1"]) == ("FusedConv", "in FusedConv of c1")
    assert (found["c2"], found["r2"]) == ("FusedConv", "in FusedConv of c2")
    assert (found["c3"], found["s"]) == ("Conv", "Add")
    assert found["y"] == "Gemm"


def test_constants_and_idle_nodes_run_nowhere() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 3] x, float[3] a, float[3] b) => (float[2, 3] y)
        {
            c = Add(a, b)
            i = Identity(x)
            y = Mul(i, c)
        }""",
        a=np.ones(3, np.float32),
        b=np.ones(3, np.float32),
    )
    found = placement(model)
    assert [(n.node, n.runs_on, n.kernel) for n in found.nodes] == [
        ("c", NOWHERE, "computed when the model is loaded"),
        ("i", NOWHERE, "left out"),
        ("y", CPU, "Mul"),
    ]


def test_a_pattern_that_becomes_one_kernel_is_found_by_its_values() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 8] x, float[8] bias) => (float[2, 8] y)
        {
            a = Add(x, bias)
            y = Gelu(a)
        }""",
        bias=np.ones(8, np.float32),
    )
    assert kernels(placement(model)) == {"a": "in BiasGelu", "y": "BiasGelu"}


@pytest.mark.parametrize("name", ["resnet20_cifar10", "silero_vad"])
def test_real_models_are_accounted_for(name: str, shared: Any) -> None:
    model = Model.load(shared(f"{name}.onnx"))
    found = placement(model)
    assert len(found.nodes) == len(list(model.ir.graph))
    assert all(node.kernel for node in found.nodes)
    assert {node.runs_on for node in found.nodes} <= {CPU, NOWHERE}
    assert found.breaks == ()


def one_float_input() -> Model:
    g = Graph("uint8")
    g.add(f"y = Add({g.qdq('x')}, x2)")
    return g.model(g.qdq("y"))


def two_readers() -> Model:
    g = Graph("uint8")
    g.add(f"y = Conv({g.qdq('x')}, {g.weight((4, 4, 3, 3), 0)}, {g.bias(4)})")
    g.add("z = Erf(y)")
    return g.model(f"{g.qdq('y')}, float z")


def two_scales() -> Model:
    g = Graph("uint8")
    g.add(f"y = Transpose<perm=[0,2,3,1]>({g.qdq('x')})")
    return g.model(g.qdq("y", 0.03))


def linear_resize() -> Model:
    g = Graph("uint8")
    scales = g.const("k", np.array([1, 1, 2, 2], np.float32))
    g.add(f'y = Resize<mode="linear">({g.qdq("x")}, , {scales})')
    return g.model(g.qdq("y"))


def pair_before_relu() -> Model:
    g = Graph("uint8")
    g.add(f"c = Conv({g.qdq('x')}, {g.weight((4, 4, 3, 3), 0)}, {g.bias(4)})")
    g.add(f"y = Relu({g.qdq('c')})")
    return g.model(g.qdq("y", 0.01))


def shared_signed() -> Model:
    g = Graph("int8")
    x = g.qdq("x")
    g.add(f"c = Conv({x}, {g.weight((4, 4, 3, 3), 0)}, {g.bias(4)})")
    g.add(f"y = Conv({x}, w, b)")
    return g.model(f"{g.qdq('c')}, float {g.qdq('y')}")


def no_quantizer_behind() -> Model:
    g = Graph("uint8")
    g.add(f"y = Conv({g.qdq('x')}, {g.weight((4, 4, 3, 3), 0)}, {g.bias(4)})")
    return g.model("y")


@pytest.mark.parametrize(
    ("model", "node", "said", "mend"),
    [
        (one_operator("Gelu", "uint8"), "y", "no integer kernel for Gelu", "Sigmoid"),
        (one_operator("Pad", "uint8"), "y", "no integer kernel for Pad", "pads attribute"),
        (one_operator("GlobalMaxPool", "uint8"), "y", "no integer kernel", "MaxPool"),
        (
            conv_chain(["y = Clip(c, lo, hi)"], scale=0.1, zero=128),
            "c",
            "wider range than the activation lets through",
            "activation's limits",
        ),
        (
            conv_chain(["y = Tanh(c)"], scale=0.01, zero=128),
            "c",
            "Tanh stands between it and the next QuantizeLinear",
            "Q/DQ pair in front of Tanh",
        ),
        (one_float_input(), "y", "its input 'x2' is float", "quantize the input 'x2', too"),
        (two_readers(), "y", "Erf reads its float output", "through one Q/DQ pair"),
        (two_scales(), "y", "scales before and behind it differ", "one scale and zero point"),
        (linear_resize(), "y", "only mode nearest", "nearest"),
        (pair_before_relu(), "y", "keep it from the layer before it", "drop the Q/DQ pair"),
        (no_quantizer_behind(), "y", "leaves the model without Q/DQ", "quantize the output"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_breaks_the_integers_is_named_with_its_mend(
    model: Model, node: str, said: str, mend: str
) -> None:
    found = {each.node: each for each in placement(model).breaks}
    assert list(found) == [node]
    assert said in found[node].reason
    assert "in float" in found[node].reason
    assert mend in found[node].mend


def test_signed_activations_with_two_readers_break_on_x86_only() -> None:
    breaks = placement(shared_signed(), X86).breaks
    if target.machine_arch() != "x86_64":
        pytest.skip("this is about onnxruntime on x86")
    assert {each.node for each in breaks} == {"c", "y"}
    assert {each.mend for each in breaks} == {
        "quantize activations to uint8 for x86, or set session.qdqisint8allowed = 1"
    }
    assert placement(shared_signed(), ARM).breaks == ()
    told = X86.model_copy(update={"options": {"session.qdqisint8allowed": True}})
    assert placement(shared_signed(), told).breaks == ()


def mended(model: Model, op: str) -> None:
    """The mend of another test, done: nothing breaks any more."""
    assert placement(model).breaks == ()
    assert op in Counter(node.kernel for node in placement(model).nodes)


def test_the_mends_work() -> None:
    mended(conv_chain(["y = Clip(c, lo, hi)"], scale=6 / 255, zero=0), "QLinearConv")
    g = Graph("uint8")
    g.add(f"s = Sigmoid({g.qdq('x')})")
    g.add(f"y = Mul(x_d, {g.qdq('s', 1 / 256, 0)})")
    mended(g.model(g.qdq("y")), "QLinearMul")


def test_pieces_on_an_accelerator_are_counted_by_changes() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2] x) => (float[2] y)
        {
            a = Abs(x)
            b = Erf(a)
            c = Neg(b)
            y = Add(a, c)
        }"""
    )
    names = [f"<{index}>" for index in range(4)]
    nodes = [
        RuntimeNode(node.op_type, "", name, (), tuple(v.name or "" for v in node.outputs), None)
        for node, name in zip(model.ir.graph, names, strict=True)
    ]
    providers = ("Npu", CPU, "Npu", "Npu")
    assigned = {
        name: (each, i) for i, (name, each) in enumerate(zip(names, providers, strict=True))
    }
    found = place(model, Said(assigned, OptimizedGraph(nodes, ())), "Npu", source="a test")
    assert [node.partition for node in found.nodes] == [0, None, 1, 1]
    assert (found.partitions, found.on_accelerator) == (2, 3)
    assert [(each.node, each.reason) for each in found.breaks] == [
        ("b", f"runs on {CPU}: Npu did not take it")
    ]
    # A provider that compiles tells the pieces itself.
    whole = Said({name: (each, 7) for name, each in zip(names, providers, strict=True)}, None)
    assert place(model, whole, "Npu", source="a test").partitions == 2
    compiled = Said(dict(whole.assigned), None, compiled=True)
    assert place(model, compiled, "Npu", source="a test").partitions == 1


@pytest.mark.parametrize(
    ("accelerator", "said", "mend"),
    [
        ("QNNExecutionProvider", "Cannot get shape", "fix all dimensions"),
        ("QNNExecutionProvider", "Operators of type `Erf` are not supported", "tanh form"),
        ("CoreMLExecutionProvider", None, "give this target the float model"),
        ("XnnpackExecutionProvider", None, "int8 with zero point 0"),
    ],
)
def test_what_leaves_an_accelerator_is_named_with_its_mend(
    accelerator: str, said: str | None, mend: str
) -> None:
    model = one_operator("Erf", "uint8")
    op = "Erf" if said else "QuantizeLinear"
    node = next(node for node in model.ir.graph if node.op_type == op)
    reason, found = provider_break(node, accelerator, CPU, said)
    assert reason.startswith(f"runs on {CPU}: ")
    assert mend in found


def test_options_with_a_dot_are_the_sessions() -> None:
    options = {
        "session.disable_cpu_ep_fallback": True,
        "ep.context_enable": 1,
        "device_id": 0,
        "threads": 2,
        "provider": "CUDAExecutionProvider",
    }
    assert split_options(options) == (
        {"session.disable_cpu_ep_fallback": "1", "ep.context_enable": "1"},
        {"device_id": "0"},
    )


def test_session_options_of_a_target_reach_the_session(tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, X86)
    broken = X86.model_copy(update={"options": {"session.intra_op_thread_affinities": "nonsense"}})
    two = broken.model_copy(
        update={"measurement": X86.measurement.model_copy(update={"threads": 2})}
    )
    with pytest.raises(MeasurementError, match="Processor id"):
        RUNTIME.session(artifact, two)


def test_a_type_without_a_kernel_is_named_with_its_node(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (double[2] x) => (double[2] y) { [odd] y = Erf(x) }"""
    )
    next(iter(model.ir.graph)).name = "odd"
    with pytest.raises(MeasurementError, match=r"no kernel of Erf .* node 'odd'") as caught:
        RUNTIME.session(RUNTIME.prepare(model, tmp_path, X86), X86)
    assert "cast its inputs" in str(caught.value)


def test_a_gpu_takes_every_node() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("no CUDA provider in the installed onnxruntime")
    found = placement(small_cnn(), target.load("gpu-cuda"))
    assert found.accelerator == "CUDAExecutionProvider"
    assert found.partitions == 1
