from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgecompress import target
from edgecompress.errors import DataError, MeasurementError
from edgecompress.measure import Measurement, measure, random_feeds
from edgecompress.model import Signature, TensorSpec
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes._client import WorkerProcess
from edgecompress.runtimes._onnx_file import SourceGraph, SourceNode, artifact_of, named_copy
from edgecompress.runtimes._profile import operator_rows
from edgecompress.target import MeasurementSettings, TargetProfile
from tests.models import small_cnn

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


def event(name: str, ts: int, dur: int, op: str | None = None, index: int = 0) -> dict[str, Any]:
    if op is None:
        return {"cat": "Session", "name": name, "ts": ts, "dur": dur, "args": {}}
    args = {"op_name": op, "provider": "CPUExecutionProvider", "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def test_operator_times_leave_out_warm_up_and_nested_nodes(tmp_path: Path) -> None:
    events = [
        *(event("model_run", 0, 99), event("big_token_3", 0, 90, "Conv", 1)),
        *(event("model_run", 100, 60), event("big_token_3", 101, 40, "Conv", 1)),
        *(event("branch", 141, 10, "If", 2), event("inner", 142, 8, "Add", 0)),
        *(event("model_run", 200, 60), event("big_token_3", 201, 20, "Conv", 1)),
        *(event("branch", 221, 0, "If", 2), event("last", 221, 4, "Add", 3)),
    ]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(events))
    big, branch = SourceNode("Conv", (), ("c1",)), SourceNode("If", (), ("i",))
    rows = operator_rows(file, 2, SourceGraph({"big": big, "branch": branch}))
    assert [(r.name, r.mean_us, r.calls, r.output_names) for r in rows] == [
        ("big_token_3", 30.0, 1.0, ("c1",)),
        ("branch", 5.0, 1.0, ("i",)),
        ("last", 2.0, 0.5, ()),
    ]


def test_kernels_with_blocked_layout_are_named_by_values(tmp_path: Path) -> None:
    _, graph = named_copy(small_cnn().save(tmp_path / "cnn.onnx")[0], tmp_path)
    assert graph.stands_for("r1_nchwc", "Conv", {"r1"}) == ("c1", "r1")
    assert graph.stands_for("s_nchwc", "Conv", {"r1", "s"}) == ("c3", "s")
    assert graph.stands_for("Gemm:y_token_1", "QGemm", set()) == ("y",)
    assert graph.stands_for("ReorderOutput", "ReorderOutput", set()) == ()


def test_external_data_count_as_size(tmp_path: Path) -> None:
    files = small_cnn().save(tmp_path / "cnn.onnx", external_data=True)
    assert len(files) == 2
    assert artifact_of(files[0]).size_bytes == sum(file.stat().st_size for file in files)
    assert named_copy(files[0], tmp_path / "elsewhere")[0] == files[0]


def spec(dtype: str, *shape: int | str | None, known: bool = True) -> Signature:
    return Signature((TensorSpec("x", dtype, shape if known else None),), ())


@pytest.mark.parametrize(
    ("signature", "shape", "dtype"),
    [
        (spec("float32", "batch", 3), (4, 3), np.float32),
        (spec("float16", None, 3), (1, 3), np.float16),
        (spec("int64", "unnamed", "tokens"), (1, 7), np.int64),
        (spec("bool"), (), np.bool_),
    ],
)
def test_random_feeds_fit(signature: Signature, shape: tuple[int, ...], dtype: type) -> None:
    x = random_feeds(signature, {"batch": 4, "tokens": 7})["x"]
    assert (x.shape, x.dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(x, random_feeds(signature, {"batch": 4, "tokens": 7})["x"])


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (spec("float32", 1, "length"), "dimension 'length' has no number"),
        (spec("float32", known=False), "its shape is unknown"),
        (spec("bfloat16", 1), "cannot make up values of type bfloat16"),
        (spec("object", 1), "cannot make up values of type object"),
    ],
)
def test_random_feeds_say_what_is_missing(signature: Signature, said: str) -> None:
    with pytest.raises(DataError, match=said):
        random_feeds(signature)
