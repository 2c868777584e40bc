"""The runtime litert: files, workers, batches, placement, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecompress.constraints import Constraints
from edgecompress.errors import MeasurementError
from edgecompress.model import Model
from edgecompress.runtimes import runtime_class
from edgecompress.target import Device, MeasurementSettings, TargetProfile
from tests.litert_writer.encoder import encoder
from tests.models import from_text, small_cnn
from tests.running import ARM, run
from tests.runtimes.integer_models import INTEGERS, cosine, images, quantized

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

Shared = Callable[[str], Path]
F = np.float32
LITERT = runtime_class("litert")()
PROFILE = TargetProfile(
    name="litert",
    description="LiteRT on this machine.",
    runtime="litert",
    provider="XNNPACK",
    device=Device(kind="host"),
    measurement=MeasurementSettings(timeout_seconds=60),
)
PLAIN = PROFILE.model_copy(update={"provider": "builtin"})


@pytest.fixture(scope="module")
def cnn8(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return quantized(small_cnn(), tmp_path_factory.mktemp("rows"), {"x": images(32)})


def outputs(model: Model, folder: Path, x: np.ndarray, profile: TargetProfile) -> np.ndarray:
    artifact = LITERT.prepare(model, folder, profile)
    session = LITERT.session(artifact, profile)
    try:
        return session.run({model.signature.inputs[0].name: x})[model.signature.outputs[0].name]
    finally:
        session.close()


@pytest.mark.parametrize("profile", [PROFILE, PLAIN], ids=lambda p: p.provider)
def test_a_float_model_gives_what_onnxruntime_gives(tmp_path: Path, profile: TargetProfile) -> None:
    assert LITERT.unsupported(small_cnn(), profile) == []
    x = images(3)
    want = run(small_cnn(), {"x": x})["y"]
    np.testing.assert_allclose(outputs(small_cnn(), tmp_path, x, profile), want, atol=1e-4)


@pytest.mark.parametrize("profile", [PROFILE, PLAIN], ids=lambda p: p.provider)
def test_an_int8_model_gives_what_was_judged(
    cnn8: Model, tmp_path: Path, profile: TargetProfile
) -> None:
    x = images(8, seed=1)
    want = run(cnn8, {"x": x})["y"]
    found = outputs(cnn8, tmp_path, x, profile)
    assert cosine(found, want) > 0.999
    assert cosine(found, want) > cosine(want, run(small_cnn(), {"x": x})["y"])


def test_a_real_network_on_int8(shared: Shared, tmp_path: Path) -> None:
    model = Model.load(shared("resnet20_cifar10.onnx"))
    with np.load(shared("cifar10.npz")) as data:
        key = next(name for name in data if data[name].ndim == 4)
        pictures = data[key][:32]
    if pictures.shape[-1] == 3:
        pictures = pictures.transpose(0, 3, 1, 2)
    mean = np.array([0.485, 0.456, 0.406], F).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], F).reshape(3, 1, 1)
    rows = ((pictures / F(255) - mean) / std).astype(F)
    small = quantized(model, tmp_path, {"input": rows[:16]})
    want = run(small, {"input": rows[16:]})["logits"]
    found = outputs(small, tmp_path, rows[16:], PROFILE)
    assert cosine(found, want) > 0.999
    assert (found.argmax(1) == want.argmax(1)).mean() > 0.9
    placement = LITERT.placement(small, PROFILE)
    assert sum(node.integer is True for node in placement.nodes if node.op == "Conv") == 19


@pytest.mark.parametrize("constraints", [ARM, INTEGERS], ids=["layers", "everywhere"])
def test_an_encoder_on_int8(tmp_path: Path, constraints: Constraints) -> None:
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 50, (24, 6)), np.ones((24, 6), np.int64)
    mask[::3, 4:] = 0
    small = quantized(encoder(), tmp_path, {"ids": ids, "mask": mask}, constraints)
    profile = PROFILE.model_copy(update={"options": {"shapes": "S=6"}})
    artifact = LITERT.prepare(small, tmp_path, profile)
    session = LITERT.session(artifact, profile)
    found = session.run({"ids": ids, "mask": mask})["y"]
    session.close()
    want = run(small, {"ids": ids, "mask": mask})["y"]
    mends = [each.mend for each in LITERT.placement(small, profile).breaks if each.mend]
    assert bool(mends) == (constraints is ARM)
    assert all("int8.everywhere = true" in each for each in mends)
    assert cosine(found, want) > (0.9999 if constraints is ARM else 0.998)


def test_placement_is_the_interpreters_own_word(cnn8: Model) -> None:
    placement = LITERT.placement(cnn8, PROFILE)
    assert placement.source.startswith("execution plan of LiteRT ")
    assert placement.partitions == 1
    assert placement.on_accelerator == len(placement.nodes)
    assert placement.breaks == ()
    by_op = {node.op: node for node in placement.nodes}
    assert by_op["Conv"].kernel.startswith(("CONV_2D", "DEPTHWISE_CONV_2D"))
    assert by_op["Gemm"].kernel == "FULLY_CONNECTED"
    assert all(by_op[op].integer for op in ("Conv", "Add", "Gemm"))
    alone = LITERT.placement(cnn8, PLAIN)
    assert {node.runs_on for node in alone.nodes} == {"builtin"}


def test_what_xnnpack_leaves_is_a_break() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 8] x, int64[1] from, int64[1] to, int64[1] axis, int64[1] by)
            => (float[1, 4] y)
        { a = Relu(x)  b = Slice(a, from, to, axis, by)  y = Sigmoid(b) }
    """
    numbers = {"from": 0, "to": 8, "axis": 1, "by": 2}
    model = from_text(text, **{name: np.array([n]) for name, n in numbers.items()})
    placement = LITERT.placement(model, PROFILE)
    assert [each.op for each in placement.breaks] == ["Slice"]
    assert "STRIDED_SLICE" in placement.breaks[0].reason
    assert [node.partition for node in placement.nodes] == [0, None, 1]
    assert placement.partitions == 2


def test_coverage_counts_integer_kernels(cnn8: Model) -> None:
    claimed = [n.outputs[0].name or "" for n in cnn8.ir.graph if n.op_type in ("Conv", "Gemm")]
    found = LITERT.coverage(cnn8, [*claimed, "nothing"], PROFILE)
    assert found is not None
    assert (found.claimed, found.fused) == (5, 4)
    assert found.unfused == {"nothing": "the model has no node with this output"}
    plain = LITERT.coverage(small_cnn(), ["c1"], PROFILE)
    assert plain is not None
    assert plain.fused == 0


def test_an_unknown_provider() -> None:
    assert LITERT.present(PROFILE) == (True, "this machine")
    can, reason = LITERT.present(PROFILE.model_copy(update={"provider": "CPU"}))
    assert not can
    assert reason == "LiteRT has the providers XNNPACK and builtin, not 'CPU'"


def test_notes_tell_what_was_fixed(tmp_path: Path) -> None:
    artifact = LITERT.prepare(small_cnn(), tmp_path, PROFILE)
    assert artifact.path.name == "model.tflite"
    assert artifact.notes == ("the free dimension N was fixed at 1",)
    wide = PROFILE.model_copy(update={"options": {"shapes": "N=2"}})
    assert LITERT.prepare(small_cnn(), tmp_path, wide).notes == ()
    x = images(4)
    want = run(small_cnn(), {"x": x})["y"]
    np.testing.assert_allclose(outputs(small_cnn(), tmp_path, x, wide), want, atol=1e-4)


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        MeasurementError, match=r"written for \[1, 3, 16, 16\], got \[1, 3, 20, 20\]"
    ):
        outputs(small_cnn(), tmp_path, images(1, 20), PROFILE)


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[1, n] x) => (float[1, n] y)
        { y = Asin(x) }
    """
    free = LITERT.unsupported(from_text(text), PROFILE)
    assert [(each.node, each.op) for each in free] == [("x", "graph input")]
    fixed = PROFILE.model_copy(update={"options": {"shapes": "n=3"}})
    assert [each.op for each in LITERT.unsupported(from_text(text), fixed)] == ["Asin"]
    with pytest.raises(MeasurementError, match="Asin is not written to TFLite files"):
        LITERT.prepare(from_text(text), tmp_path, fixed)
    assert list(tmp_path.iterdir()) == []
