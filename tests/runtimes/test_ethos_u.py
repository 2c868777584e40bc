"""The runtime ethos_u: Vela's estimate, what it leaves to the processor, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.errors import MeasurementError
from edgecompress.model import Model
from edgecompress.runtimes.ethos_u import EthosU
from edgecompress.target import Device, MeasurementSettings, TargetProfile
from tests.models import from_text, small_cnn
from tests.running import run
from tests.runtimes.integer_models import cosine, images, quantized

pytest.importorskip("ethosu", reason="Vela is not installed")
pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

ETHOS = EthosU()
PROFILE = TargetProfile(
    name="ethos-u",
    description="An NPU of a microcontroller.",
    runtime="ethos_u",
    provider="ethos-u55-256",
    device=Device(kind="none"),
    measurement=MeasurementSettings(timeout_seconds=60),
)


@pytest.fixture(scope="module")
def cnn8(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return quantized(small_cnn(), tmp_path_factory.mktemp("rows"), {"x": images(32)})


def test_the_estimate(cnn8: Model) -> None:
    found = ETHOS.estimate(cnn8, PROFILE)
    assert found["basis"] == "estimated"
    assert found["source"].startswith("Arm Vela ")
    assert found["accelerator"] == "Ethos_U55_256"
    assert 0 < found["latency_ms"] < 10
    assert found["cycles"] == pytest.approx(
        found["latency_ms"] * found["clock_mhz"] * 1e3, rel=0.01
    )
    assert 0 < found["cycles_npu"] <= found["cycles"]
    assert found["macs"] > 20_000
    assert found["sram_bytes"] > 0
    assert found["off_chip_flash_bytes"] > 0
    assert found["npu_operators"] + found["cpu_operators"] == len(found["operators"])
    assert any("not a measurement" in note for note in found["notes"])
    assert any("Vela's own system" in note for note in found["notes"])


def test_another_accelerator_and_memory(cnn8: Model) -> None:
    options = {"system_config": "Ethos_U85_SYS_DRAM_Mid", "memory_mode": "Dedicated_Sram_384KB"}
    update = {"provider": "ethos-u85-512", "options": options}
    found = ETHOS.estimate(cnn8, PROFILE.model_copy(update=update))
    assert found["accelerator"] == "Ethos_U85_512"
    assert found["dram_bytes"] > 0
    assert not any("Vela's own system" in note for note in found["notes"])


def test_placement_names_what_stays_on_the_processor(cnn8: Model) -> None:
    assert ETHOS.unsupported(cnn8, PROFILE) == []
    placement = ETHOS.placement(cnn8, PROFILE)
    assert placement.partitions == 1
    layers = [node for node in placement.nodes if node.op in ("Conv", "Gemm")]
    assert len(layers) == 4
    assert {node.runs_on for node in layers} == {"ethos-u55-256"}
    assert [each.op for each in placement.breaks] == ["QuantizeLinear"]
    assert "Float32" in placement.breaks[0].reason


def test_the_files_and_the_numbers_of_the_npu(cnn8: Model, tmp_path: Path) -> None:
    artifact = ETHOS.prepare(cnn8, tmp_path, PROFILE)
    assert [file.name for file in artifact.files] == ["model_vela.tflite"]
    beside = {file.name for file in tmp_path.iterdir()}
    assert beside == {"model_vela.tflite", "model.tflite", "estimate.json"}
    x = images(2, seed=1)
    session = ETHOS.session(artifact, PROFILE)
    found = session.run({"x": x})["y"]
    session.close()
    assert cosine(found, run(cnn8, {"x": x})["y"]) > 0.999


def test_the_same_model_gives_the_same_bytes(cnn8: Model, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        made.append(ETHOS.prepare(cnn8, folder, PROFILE).path.read_bytes())
    assert made[0] == made[1]


def test_a_float_model_is_refused(tmp_path: Path) -> None:
    refused = ETHOS.unsupported(small_cnn(), PROFILE)
    assert [each.op for each in refused] == ["Conv"]
    assert "8-bit integers only" in refused[0].reason
    with pytest.raises(MeasurementError, match="8-bit integers only"):
        ETHOS.prepare(small_cnn(), tmp_path, PROFILE)


def test_what_no_file_can_hold_is_refused() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[3] x) => (float[3] y) { y = Asin(x) }
    """
    assert [each.op for each in ETHOS.unsupported(from_text(text), PROFILE)] == ["Asin"]


def test_an_unknown_accelerator(cnn8: Model, tmp_path: Path) -> None:
    profile = PROFILE.model_copy(update={"provider": "ethos-u99"})
    with pytest.raises(MeasurementError, match="invalid choice: 'ethos-u99'"):
        ETHOS.prepare(cnn8, tmp_path, profile)


def test_times_taken_here_are_none_of_it() -> None:
    assert not EthosU.timed
    assert "cannot be reached" in EthosU.untimed_reason
