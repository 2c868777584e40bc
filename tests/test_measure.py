from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.measure import Measurement, measure
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes._client import WorkerProcess
from edgecompress.runtimes._onnx_file import artifact_of, named_copy
from edgecompress.target import MeasurementSettings, TargetProfile
from tests.models import from_text, small_cnn

QUICK = MeasurementSettings(warmup=2, runs=20, seconds=0.1, blocks=4, timeout_seconds=60)
FEEDS = {"x": np.zeros((2, 3, 16, 16), np.float32)}


def quick(name: str | None = None) -> TargetProfile:
    profile = target.load(name or target.host_target())
    return profile.model_copy(update={"measurement": QUICK})


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cnn().save(tmp_path_factory.mktemp("cnn") / "cnn.onnx")[0]


@pytest.fixture(scope="module")
def itself(cnn: Path) -> dict[str, Measurement]:
    """A file measured against itself."""
    return measure({"a": cnn, "b": cnn}, quick(), FEEDS, reference="a")


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())  # of other tests: pools that are kept warm
    yield
    children = set(psutil.Process().children()) - before
    assert [p for p in children if p.status() != psutil.STATUS_ZOMBIE] == []


def worker(model: Path, timeout_seconds: float = 60) -> WorkerProcess:
    return WorkerProcess(str(model), threads=1, timeout_seconds=timeout_seconds)


def load(process: WorkerProcess, model: Path, folder: Path) -> dict[str, Any]:
    np.savez(folder / "feeds.npz", FEEDS["x"])
    options = {"provider": "CPUExecutionProvider", "threads": 1}
    inputs = {"feeds": str(folder / "feeds.npz"), "names": ["x"]}
    process.load(runtime_class("onnxruntime").engine, model, inputs, options)
    return process.loaded


def test_a_file_against_itself_is_about_as_fast(itself: dict[str, Measurement]) -> None:
    assert itself["a"].latency_ratio is None
    ratio = itself["b"].latency_ratio
    assert ratio is not None
    assert 0.5 < ratio < 2


def test_a_measurement_is_whole(itself: dict[str, Measurement], cnn: Path) -> None:
    found = itself["b"]
    assert found.basis == "measured"
    assert found.reason is None
    assert found.size_bytes == cnn.stat().st_size
    latency = found.latency_ms
    assert latency is not None
    assert 0 < latency.min <= latency.p50 <= latency.p90 <= latency.p99
    assert latency.min <= latency.mean
    assert latency.runs >= QUICK.blocks
    assert latency.warmup >= QUICK.warmup
    assert latency.cpu_min_ms is not None
    assert latency.cpu_min_ms > 0
    assert found.load_ms is not None
    assert found.load_ms > 0
    assert found.first_run_ms is not None
    conditions = found.conditions
    assert conditions is not None
    assert conditions.cpu
    assert conditions.runtime_version
    assert conditions.inputs == {"x": [2, 3, 16, 16]}
    assert conditions.threads == 1
    assert conditions.quiet == (conditions.noise_note is None)


def test_peak_memory_is_that_of_a_process_of_its_own(itself: dict[str, Measurement]) -> None:
    found = itself["b"]
    assert found.peak_memory_mb is not None
    assert found.memory_over_runner_mb is not None
    assert 0 < found.memory_over_runner_mb < found.peak_memory_mb
    # numpy and onnxruntime only; with torch or onnx beside them it would be far more.
    assert found.peak_memory_mb < 200


def test_memory_says_how_it_was_taken(itself: dict[str, Measurement]) -> None:
    found = itself["b"]
    memory = found.memory
    assert memory is not None
    assert memory.peak_mb == found.peak_memory_mb
    assert memory.basis in ("vmhwm", "rusage")
    # The profiler of onnxruntime tells since 1.31.
    assert {"held", "in_use_peak"} <= set(memory.arena_mb) or not memory.arena_mb
    assert memory.peak_mb is not None
    assert all(0 < figure < memory.peak_mb for figure in memory.arena_mb.values())
    if memory.group_peak_mb is not None:
        assert memory.group_anonymous_mb is not None
        assert 0 < memory.group_anonymous_mb <= memory.group_peak_mb


def test_the_compressed_size_is_that_of_a_zip_file(
    itself: dict[str, Measurement], cnn: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=6) as app:
        app.write(cnn)
        (entry,) = app.infolist()
    assert itself["b"].compressed_bytes == entry.compress_size


def test_a_measurement_survives_json(itself: dict[str, Measurement]) -> None:
    for found in itself.values():
        assert Measurement.model_validate_json(found.model_dump_json()) == found


def test_operators_lead_back_to_nodes_without_names(itself: dict[str, Measurement]) -> None:
    operators = itself["b"].operators
    assert sum(o.share for o in operators) == pytest.approx(1)
    assert sorted((o.mean_us for o in operators), reverse=True) == [o.mean_us for o in operators]
    assert all(o.calls == 1 for o in operators)
    outputs = {name for o in operators for name in o.output_names}
    assert {"c1", "c2", "c3", "y"} <= outputs


def test_operators_can_be_left_out_and_progress_is_told(cnn: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = measure(
        {"a": cnn}, quick(), FEEDS, operators=False, progress=lambda *step: told.append(step)
    )["a"]
    assert found.operators == ()
    assert told == [("measure", done, QUICK.blocks) for done in range(1, QUICK.blocks + 1)]


def test_an_unreachable_target_is_unknown(cnn: Path) -> None:
    found = measure({"a": cnn}, quick("ios-coreml"), FEEDS)["a"]
    assert found.basis == "unknown"
    assert found.latency_ms is None
    assert found.size_bytes == cnn.stat().st_size
    assert found.reason is not None
    assert "cannot be reached" in found.reason


def test_a_truncated_file_is_refused(tmp_path: Path, cnn: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(cnn.read_bytes()[:1000])
    with pytest.raises(MeasurementError, match="could not load it") as caught:
        measure({"a": cnn, "b": broken}, quick(), FEEDS)
    assert "broken.onnx" in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="no such file"):
        measure({"a": tmp_path / "none.onnx"}, quick(), FEEDS)


def test_inputs_that_do_not_fit_are_refused(cnn: Path) -> None:
    with pytest.raises(MeasurementError, match=r"could not run it: Required inputs"):
        measure({"a": cnn}, quick(), {"z": FEEDS["x"]})


def test_a_model_that_wants_more_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        big (int64[1] n) => (float[m] y) {
            y = ConstantOfShape<value = float[1] {1.0}>(n)
        }
        """
    file = from_text(text).save(tmp_path / "big.onnx")[0]
    with pytest.raises(MeasurementError, match=r"ran out of memory \(run\)") as caught:
        measure({"a": file}, quick(), {"n": np.array([10**15])})
    assert caught.value.where == str(file)


def test_an_unknown_reference_is_refused(cnn: Path) -> None:
    with pytest.raises(MeasurementError, match="unknown reference 'flaot'; did you mean 'float'"):
        measure({"float": cnn}, quick(), FEEDS, reference="flaot")


def test_an_interrupt_ends_the_workers(cnn: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"a": cnn, "b": cnn}, quick(), FEEDS, progress=interrupt)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_worker_is_told_as_such(tmp_path: Path, cnn: Path) -> None:
    with worker(cnn) as process:
        load(process, cnn, tmp_path)
        os.kill(process.process.pid, signal.SIGKILL)
        with pytest.raises(MeasurementError, match="killed by SIGKILL") as caught:
            process.ask("run", count=1)
    assert "out of memory" in str(caught.value)


def test_a_dying_workers_last_words_are_told(cnn: Path) -> None:
    with worker(cnn) as process:
        assert process.process.stdin is not None
        process.process.stdin.write("not JSON\n")
        with pytest.raises(MeasurementError, match=r"ended with code 1.*JSONDecodeError"):
            process.ask("memory")


def test_a_worker_that_hangs_is_given_up(cnn: Path) -> None:
    with (
        worker(cnn, timeout_seconds=0.01) as process,
        pytest.raises(MeasurementError, match=r"did not answer within 0\.01 s"),
    ):
        process.ask("memory")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_workers_environment_has_no_telemetry(cnn: Path) -> None:
    with worker(cnn) as process:
        process.ask("memory")
        environment = Path(f"/proc/{process.process.pid}/environ").read_bytes().split(b"\0")
    assert b"ORT_DISABLE_TELEMETRY=1" in environment
    assert b"OMP_NUM_THREADS=1" in environment


def test_a_worker_loads_little() -> None:
    heavy = ["torch", "onnx", "onnx_ir", "pydantic", "psutil"]
    code = (
        f"import edgecompress.runtimes._worker, sys;print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_measurements_can_be_read_without_a_runtime() -> None:
    code = "import edgecompress.measure, sys; print({'torch', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_external_data_count_as_size(tmp_path: Path) -> None:
    files = small_cnn().save(tmp_path / "cnn.onnx", external_data=True)
    assert len(files) == 2
    assert artifact_of(files[0]).size_bytes == sum(file.stat().st_size for file in files)
    assert named_copy(files[0], tmp_path / "elsewhere")[0] == files[0]
