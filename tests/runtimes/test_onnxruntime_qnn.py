"""The QNN plugin with Qualcomm's emulator of the NPU: acceptance and numerics, never time."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.model import Model
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes.onnxruntime_qnn import OnnxRuntimeQnn, read_log
from tests.models import from_text, small_cnn
from tests.runtimes.test_onnxruntime import conv_chain, one_operator

RUNTIME = OnnxRuntimeQnn()
ONNXRUNTIME = runtime_class("onnxruntime")()
CPU = target.load("cpu-x86-64")
NPU = "QNNExecutionProvider"

needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None or target.machine_arch() != "x86_64",
    reason="onnxruntime-qnn, whose emulator runs on x86-64, is not installed",
)


def profile(**options: Any) -> target.TargetProfile:
    return target.load("qnn-htp").model_copy(
        update={
            "runtime": "onnxruntime_qnn",
            "options": {"htp_arch": 73, "soc_model": 43, **options},
        }
    )


def outputs(
    runtime: Any, model: Model, where: target.TargetProfile, folder: Path, feeds: dict[str, Any]
) -> dict[str, np.ndarray]:
    folder.mkdir()
    session = runtime.session(runtime.prepare(model, folder, where), where)
    try:
        found: dict[str, np.ndarray] = session.run(feeds)
    finally:
        session.close()
    return found


def feeds_of(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        spec.name: rng.standard_normal(
            [d if isinstance(d, int) else 1 for d in spec.shape or ()]
        ).astype(np.float32)
        for spec in model.signature.inputs
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_its_times_are_not_taken() -> None:
    assert not RUNTIME.timed
    assert "emulated" in RUNTIME.untimed_reason
    assert RUNTIME.fixed_shapes


def test_without_the_plugin_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found, reason = RUNTIME.present(profile())
    assert not found
    assert "pip install onnxruntime-qnn" in reason


def test_the_log_is_understood() -> None:
    log = (
        "[V:onnxruntime:, a.cc:1 LogNodeSupport] Validation FAILED for 2 nodes in OrtNodeUnit "
        "(Erf) :\n\tOperator type: Erf Node name: <5> Node index: 5\n"
        "\tOperator type: Cast Node name: <6> Node index: 6\n"
        "\tREASON : Operators of type `Erf` are not supported by QNN EP.Erf node `<5>` will not "
        "be assigned to QNN EP.\n\n"
        "[V:onnxruntime:, b.cc:2 CreateQnnNode] Qnn_OpConfig node name: <4> package_name: "
        "qti.aisw QNN_op_type: Conv2d num_of_inputs: 3\n node_inputs:\n"
        " name=x id=0 dataFormat=0 dataType=QNN_DATATYPE_UFIXED_POINT_8 rank=4\n"
    )
    said = "Operators of type `Erf` are not supported by QNN EP."
    assert read_log(log) == ({"<5>": said, "<6>": said}, {"<4>": ("Conv2d", True)})


@needs_plugin
def test_an_int8_convolution_runs_on_the_npu_as_on_the_cpu(tmp_path: Path) -> None:
    model = one_operator("Conv", "uint8")
    feeds = feeds_of(model)
    (found,) = outputs(RUNTIME, model, profile(), tmp_path / "npu", feeds).values()
    (wanted,) = outputs(ONNXRUNTIME, model, CPU, tmp_path / "cpu", feeds).values()
    # One step of the output's scale, where sums lie between two integers.
    assert np.abs(found - wanted).max() <= 0.0101
    assert cosine(found, wanted) > 0.9999
    names = sorted(path.name for path in (tmp_path / "npu").iterdir())
    assert names == ["model_ctx.onnx", "model_ctx_qnn.bin"]


@needs_plugin
def test_a_compiled_context_is_the_same_twice(tmp_path: Path) -> None:
    model = one_operator("Conv", "uint8")
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        artifact = RUNTIME.prepare(model, tmp_path / name, profile())
        made.append([file.read_bytes() for file in artifact.files])
    assert made[0] == made[1]


@needs_plugin
def test_a_float_model_runs_in_float16_from_its_onnx_file(tmp_path: Path) -> None:
    model = small_cnn()
    for value in model.ir.graph.inputs:
        value.shape = type(value.shape)([1, 3, 16, 16])
    where = profile(context=False, enable_htp_fp16_precision=True)
    feeds = feeds_of(model)
    found = outputs(RUNTIME, model, where, tmp_path / "npu", feeds)["y"]
    wanted = outputs(ONNXRUNTIME, model, CPU, tmp_path / "cpu", feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


@needs_plugin
def test_placement_tells_the_npus_own_operators() -> None:
    found = RUNTIME.placement(one_operator("Conv", "uint8"), profile())
    (conv,) = (node for node in found.nodes if node.op == "Conv")
    assert (conv.runs_on, conv.kernel, conv.integer) == (NPU, "Conv2d", True)
    assert (found.accelerator, found.partitions) == (NPU, 1)
    assert [each.node for each in found.breaks] == ["x_q"]
    assert "consume a graph input" in found.breaks[0].reason


@needs_plugin
def test_an_operator_that_the_npu_lacks_cuts_the_graph_in_two() -> None:
    model = conv_chain(["t = Erf(c)", "u = Round(t)", "y = Relu(u)"], scale=0.01, zero=128)
    found = RUNTIME.placement(model, profile())
    assert found.partitions == 2
    assert {n.node: n.partition for n in found.nodes if n.op in ("Conv", "Erf", "Round")} == {
        "c": 0,
        "t": None,
        "u": 1,
    }
    breaks = {each.node: each for each in found.breaks}
    assert "Operators of type `Erf` are not supported" in breaks["t"].reason
    assert "tanh form" in breaks["t"].mend
    assert breaks["c"].reason.startswith("runs as Conv2d in float: Erf stands between")
    coverage = RUNTIME.coverage(model, ["c", "t", "nowhere"], profile())
    assert (coverage.claimed, coverage.fused) == (3, 0)
    assert dict(coverage.unfused) == {
        "c": "Conv2d in float",
        "t": "runs on the CPU",
        "nowhere": "the model has no node with this output",
    }


@needs_plugin
def test_a_target_without_fallback_refuses_what_the_npu_does_not_take() -> None:
    strict = profile(**{"session.disable_cpu_ep_fallback": True})
    model = conv_chain(["y = Erf(c)"], scale=0.01, zero=128)
    assert "Erf" in {each.op for each in RUNTIME.unsupported(model, strict)}
    assert RUNTIME.unsupported(model, profile()) == []
    assert RUNTIME.unsupported(one_operator("Conv", "uint8"), strict) == []


@needs_plugin
def test_free_dimensions_keep_everything_off_the_npu() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, M] x) => (float[N, M] y) { y = Relu(x) }"""
    )
    found = RUNTIME.placement(model, profile())
    assert (found.partitions, found.on_accelerator) == (0, 0)
    assert found.breaks[0].mend.startswith("fix all dimensions")
    assert RUNTIME.placement(small_cnn(), profile()).note == (
        "free leading dimensions were taken for 1"
    )


@needs_plugin
def test_a_model_without_a_node_for_the_npu_is_refused(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[4] x) => (float[4] y) { y = Erf(x) }"""
    )
    with pytest.raises(MeasurementError, match="took none of the nodes"):
        RUNTIME.prepare(model, tmp_path, profile())


@needs_plugin
@pytest.mark.slow
def test_a_real_model_runs_on_the_npu_whole(shared: Any, tmp_path: Path) -> None:
    from edgecompress.fixed_shapes import fixed_shapes

    loaded = Model.load(shared("resnet20_cifar10.onnx"))
    (spec,) = loaded.signature.inputs
    model = fixed_shapes(loaded, {spec.name: (1, 3, 32, 32)})
    found = RUNTIME.placement(model, profile())
    assert (found.partitions, found.breaks) == (1, ())
    feeds = feeds_of(model)
    (got,) = outputs(RUNTIME, model, profile(), tmp_path / "npu", feeds).values()
    (wanted,) = outputs(ONNXRUNTIME, model, CPU, tmp_path / "cpu", feeds).values()
    assert cosine(got, wanted) > 0.9999
