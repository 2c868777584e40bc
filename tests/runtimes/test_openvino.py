"""OpenVINO: what it computes, what it refuses, and what it says it runs on integers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.errors import MeasurementError
from edgecompress.measure import measure
from edgecompress.model import Model
from edgecompress.qdq import quantized_layers
from edgecompress.runtimes import runtime_class
from tests.models import from_text, small_cnn
from tests.running import run
from tests.runtimes import converted
from tests.runtimes.converted import assert_same, cosine, images, int8_cnn, outputs, profile

RUNTIME = runtime_class("openvino")()
TARGET = profile("openvino")
PRESENT, CURE = RUNTIME.present(TARGET)
needed = pytest.mark.skipif(not PRESENT, reason=CURE)
F = np.float32


def pair(domain: str, dtype: str, kernel: str = "Relu(d)") -> Model:
    """``x -> Q/DQ -> kernel`` with the pair in a domain."""
    prefix = f"{domain}." if domain else ""
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[1, 8] x, float s, {dtype} z) => (float[1, 8] y)
        {{
            q = {prefix}QuantizeLinear(x, s, z)
            d = {prefix}DequantizeLinear(q, s, z)
            y = {kernel}
        }}""",
        s=np.array(1e-3, F),
        z=np.array(7, dtype),
    )


def test_without_the_package_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIME.__class__, "packages", ("no_such_package",))
    there, cure = RUNTIME.present(TARGET)
    assert not there
    assert 'pip install "edgecompress[openvino]"' in cure


def test_its_module_loads_nothing_heavy() -> None:
    heavy = ["numpy", "onnx", "onnx_ir", "openvino", "pydantic"]
    code = f"import sys, edgecompress.runtimes.openvino; print({heavy} & sys.modules.keys())"
    code = code.replace(str(heavy), f"set({heavy})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needed
def test_a_float_model(tmp_path: Path) -> None:
    model = small_cnn()
    assert RUNTIME.unsupported(model, TARGET) == []
    session = RUNTIME.session(RUNTIME.prepare(model, tmp_path, TARGET), TARGET)
    for rows in (1, 3):
        assert_same(session.run(images(rows)), model, images(rows), 0.999999)
    session.close()


@needed
def test_an_int8_model_runs_on_integers(tmp_path: Path) -> None:
    model = int8_cnn(tmp_path)
    found = outputs(RUNTIME, model, images(), TARGET, tmp_path)
    assert_same(found, model, images(), 0.998)
    claimed = quantized_layers(model)
    coverage = RUNTIME.coverage(model, [*claimed, "nothing"], TARGET)
    assert coverage is not None
    assert coverage.unfused.keys() == {"nothing"}
    assert coverage.fused == 4
    assert coverage.integer_kernels >= 4
    placement = RUNTIME.placement(model, TARGET)
    assert placement is not None
    kernels = {node.op: node for node in placement.nodes if node.kernel}
    assert kernels["Conv"].integer
    assert "Convolution" in kernels["Conv"].kernel
    assert len(placement.nodes) == len(list(model.ir.graph))
    assert [b for b in placement.breaks if b.op in ("Conv", "Gemm")] == []


@needed
def test_a_real_model_in_both_forms(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    model, compressed, feeds = converted.resnet(shared, tmp_path)
    found = outputs(RUNTIME, model, feeds, TARGET, tmp_path / "float")
    assert_same(found, model, feeds, 0.99999)
    (found_int8,) = outputs(RUNTIME, compressed, feeds, TARGET, tmp_path / "int8").values()
    (rounded,) = run(compressed, feeds).values()
    (exact,) = run(model, feeds).values()
    assert cosine(found_int8, exact) > cosine(rounded, exact) - 0.02


@needed
def test_float_and_int8_are_measured_in_turn(tmp_path: Path) -> None:
    models = {"float": small_cnn(), "int8": int8_cnn(tmp_path)}
    artifacts = {
        name: RUNTIME.prepare(model, tmp_path / name, TARGET) for name, model in models.items()
    }
    found = measure(artifacts, TARGET, images(), reference="float")
    for each in found.values():
        assert each.basis == "measured"
        assert each.latency_ms is not None
        assert each.conditions is not None
        assert each.conditions.runtime_version.startswith("202")
        assert any("Convolution" in row.op for row in each.operators)
    assert found["int8"].latency_ratio is not None


@needed
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_wide_pairs_of_onnxruntimes_own_are_refused(dtype: str) -> None:
    refused = RUNTIME.unsupported(pair("com.microsoft", dtype), TARGET)
    assert {each.op for each in refused} == {"QuantizeLinear", "DequantizeLinear"}
    assert "wrongly" in refused[0].reason


@needed
def test_wide_pairs_of_the_standard_are_right(tmp_path: Path) -> None:
    model = pair("", "uint16")
    assert RUNTIME.unsupported(model, TARGET) == []
    feeds = {"x": np.linspace(0, 10, 8, dtype=F).reshape(1, 8)}
    assert_same(outputs(RUNTIME, model, feeds, TARGET, tmp_path), model, feeds, 0.99999)


@needed
def test_an_unknown_operator_is_named() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20, "com.example" : 1]>
        g (float[1, 8] x) => (float[1, 8] y) { h = Relu(x) y = com.example.Strange(h) }"""
    )
    (refused,) = RUNTIME.unsupported(model, TARGET)
    assert refused.op == "Strange"
    assert "front end" in refused.reason


@needed
def test_operators_on_integers_are_refused() -> None:
    constants: dict[str, Any] = {"s": np.array(0.1, F), "z": np.array(0, np.uint8)}
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (uint8[1, 8] x, float s, uint8 z) => (uint8[1, 8] y)
        { y = com.microsoft.QLinearSigmoid(x, s, z, s, z) }""",
        **constants,
    )
    (refused,) = RUNTIME.unsupported(model, TARGET)
    assert (refused.op, "Q/DQ" in refused.reason) == ("QLinearSigmoid", True)


@needed
def test_what_stays_float_is_told_with_the_mend() -> None:
    rng = np.random.default_rng(0)
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 4, 8, 8] x, int8[6, 4, 3, 3] wq, float[6] ws, int8[6] wz, float s, int8 z)
            => (float[1, 6, 6, 6] y)
        {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            w = DequantizeLinear<axis=0>(wq, ws, wz)
            c = Conv(d, w)
            cq = QuantizeLinear(c, s, z)
            y = DequantizeLinear(cq, s, z)
        }""",
        wq=rng.integers(-60, 60, (6, 4, 3, 3)).astype(np.int8),
        ws=rng.random(6).astype(F) / 100,
        wz=np.arange(6, dtype=np.int8),
        s=np.array(0.02, F),
        z=np.array(3, np.int8),
    )
    placement = RUNTIME.placement(model, TARGET)
    assert placement is not None
    broken = [each for each in placement.breaks if each.op == "Conv"]
    coverage = RUNTIME.coverage(model, ["c"], TARGET)
    assert coverage is not None
    assert len(broken) == coverage.claimed - coverage.fused
    assert all("without zero points" in each.mend for each in broken)


@needed
def test_a_broken_file_is_one_error(tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, TARGET)
    artifact.path.write_bytes(artifact.path.read_bytes()[:400])
    session = RUNTIME.session(artifact, TARGET)
    with pytest.raises(MeasurementError, match="openvino could not load it"):
        session.run(images())
    session.close()


@needed
def test_nothing_is_sent_home() -> None:
    code = (
        "import sys\n"
        "from edgecompress.runtimes.openvino import OpenVinoEngine\n"
        "print(OpenVinoEngine().start())\n"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"
