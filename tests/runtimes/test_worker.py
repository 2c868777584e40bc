"""Worker processes: what they answer, and how their failures are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgecompress.errors import MeasurementError
from edgecompress.machine.cgroup import MemoryGroup
from edgecompress.model import Model
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes._client import PipePeer, WorkerProcess
from edgecompress.runtimes._remote import write_feeds
from edgecompress.runtimes._sizes import compressed_bytes
from edgecompress.runtimes._times import run_times
from edgecompress.target import host_target
from edgecompress.target import load as load_target
from tests.models import from_text, small_cnn

OPTIONS = {"provider": "CPUExecutionProvider", "threads": 1}
CNN = {"x": np.zeros((1, 3, 16, 16), np.float32)}
ENGINE = runtime_class("onnxruntime").engine


def save(model: Model, folder: Path) -> Path:
    return model.save(folder / "model.onnx")[0]


def expanding(folder: Path) -> Path:
    """A model that fills as many floats as its input says."""
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        big (int64[1] n) => (float y) {
            ones = ConstantOfShape<value = float[1] {1.0}>(n)
            y = ReduceSum<keepdims=0>(ones)
        }
        """
    return save(from_text(text), folder)


@contextmanager
def loaded(
    model: Path, feeds: dict[str, Any], folder: Path, limit: float | None = None
) -> Iterator[WorkerProcess]:
    with WorkerProcess(str(model), threads=1, timeout_seconds=60, memory_limit_mb=limit) as process:
        process.load(ENGINE, model, write_feeds(feeds, folder), OPTIONS)
        yield process


class Saying(PipePeer):
    """A peer that is a few lines of Python."""

    def outputs(self) -> dict[str, Any]:
        return {}


def says(code: str, timeout_seconds: float = 30) -> Saying:
    return Saying(
        [sys.executable, "-c", code],
        where="model.onnx",
        who="test",
        timeout_seconds=timeout_seconds,
    )


def test_memory_is_told_in_parts(tmp_path: Path) -> None:
    with loaded(save(small_cnn(), tmp_path), CNN, tmp_path) as process:
        process.ask("run", count=3)
        told = process.ask("memory")
    assert told["peak_mb"] >= process.loaded["runner_mb"] > 0
    if told["basis"] != "vmhwm":
        pytest.skip("only Linux tells anonymous and file pages apart")
    parts = told["anonymous_mb"] + told["file_mb"] + told["shared_mb"]
    assert parts <= told["peak_mb"] * 1.01


def test_memory_is_told_by_a_group_where_there_is_one(tmp_path: Path) -> None:
    group = MemoryGroup.make()
    if group is None:
        pytest.skip("no memory control group can be made here: it takes root, or delegation")
    group.remove()
    big = 50_000_000
    with loaded(expanding(tmp_path), {"n": np.array([big])}, tmp_path) as process:
        folder = process._group.folder if process._group else Path()
        process.ask("run", count=1, warm=False)
        told = process.ask("memory")
    assert not folder.exists()
    assert 200 < told["group"]["over_runner_mb"] < 250
    assert told["peak_mb"] - process.loaded["runner_mb"] == pytest.approx(
        told["group"]["over_runner_mb"], rel=0.1
    )


def test_more_memory_than_the_limit_is_one_clear_error(tmp_path: Path) -> None:
    wanted = {"n": np.array([100_000_000])}
    with (
        loaded(expanding(tmp_path), wanted, tmp_path, limit=250) as process,
        pytest.raises(MeasurementError, match="memory") as caught,
    ):
        process.ask("run", count=1)
    assert caught.value.where == str(tmp_path / "model.onnx")
    assert "raise its limit" in str(caught.value)
    if process._group is not None:
        assert "held 250 MB of the 250 MB of its limit" in str(caught.value)


def test_memory_that_the_system_refuses_is_one_clear_error(tmp_path: Path) -> None:
    absurd = {"n": np.array([10**15])}
    with (
        loaded(expanding(tmp_path), absurd, tmp_path) as process,
        pytest.raises(MeasurementError, match=r"ran out of memory \(run\)"),
    ):
        process.ask("run", count=1)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_without_groups_a_limit_holds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryGroup, "make", lambda: None)
    wanted = {"n": np.array([100_000_000])}
    with (
        loaded(expanding(tmp_path), wanted, tmp_path, limit=300) as process,
        pytest.raises(MeasurementError, match="ran out of memory"),
    ):
        process.ask("run", count=1)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"x": np.zeros((1, 3, 16), np.float32)}, "Invalid rank"),
        ({"x": np.zeros((1, 4, 16, 16), np.float32)}, "invalid dimensions"),
        ({"x": np.zeros((1, 3, 16, 16), np.int64)}, "Unexpected input data type"),
        ({"z": CNN["x"]}, "Required inputs"),
    ],
    ids=["rank", "dimension", "type", "name"],
)
def test_inputs_that_do_not_fit_are_recognised(
    tmp_path: Path, feeds: dict[str, Any], said: str
) -> None:
    with (
        loaded(save(small_cnn(), tmp_path), feeds, tmp_path) as process,
        pytest.raises(MeasurementError, match=said) as caught,
    ):
        process.ask("run", count=1)
    assert "give inputs of the types and shapes that the model takes" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Welcome to my server", "'Welcome to my server'"),
        ("[1, 2]", r"'\[1, 2\]'"),
        ("caf\\xe9", "not a JSON object"),
    ],
)
def test_an_answer_that_is_none_is_told(line: str, said: str) -> None:
    code = f'import sys; sys.stdout.buffer.write(b"{line}\\n"); sys.stdout.flush(); input()'
    with says(code) as peer, pytest.raises(MeasurementError, match=said):
        peer.ask("memory")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("pass", "ended with code 0"),
        ("raise SystemExit('no such library')", "ended with code 1.*no such library"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
        ("import sys; print('bad_alloc', file=sys.stderr); sys.exit(3)", "ran out of memory"),
    ],
    ids=["vanishes", "fails", "hangs", "allocates"],
)
def test_a_peer_that_owes_an_answer_is_told(code: str, said: str) -> None:
    limit = 0.5 if "sleep" in code else 30
    with says(code, limit) as peer, pytest.raises(MeasurementError, match=said):
        peer.ask("run", count=1)


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_children_of_a_worker_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).parent))
    model = save(small_cnn(), tmp_path)
    with WorkerProcess(str(model), threads=1, timeout_seconds=60) as process:
        inputs = write_feeds(CNN, tmp_path)
        process.load("failing_engines:HasChildren", model, inputs, OPTIONS)
        child = psutil.Process(process.loaded["child"])
        assert child.is_running()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone or child.status() == psutil.STATUS_ZOMBIE


def test_small_models_of_all_input_types_are_timed() -> None:
    models = [
        from_text(f"""
            <ir_version: 10, opset_import: ["" : 20]>
            same ({kind}[2, 3] x) => ({kind}[2, 3] y) {{ y = Identity(x) }}
            """).to_bytes()
        for kind in ("float", "double", "float16", "int64", "int8", "uint8", "bool")
    ]
    times = run_times(models, load_target(host_target()))
    assert len(times) == len(models)
    assert all(0 < seconds < 1 for seconds in times)


def test_the_compressed_size_follows_the_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(10**6))
    zeros = compressed_bytes([file])
    file.write_bytes(np.random.default_rng(0).bytes(10**6 + 1))
    assert zeros < 2000 < 10**6 < compressed_bytes([file])
