"""Sharded statistics: the numbers of one sweep, bit for bit, in processes and on a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress import sharding
from edgecompress.data.calibration import CalibrationSet, DataSpec, PreprocessSpec
from edgecompress.errors import DataError, ModelError, OutputError, RecipeError
from edgecompress.model import Model
from edgecompress.parallel import engine
from edgecompress.sharding import collect_sharded
from edgecompress.statistics import Statistics, TensorStatistics, collect
from edgecompress.statistics_table import chosen_values
from tests.models import from_text, small_cnn
from tests.running import rows_of

VALUES = ["y", "x", "c1", "s"]

# One matrix product so long that torch adds it up in another order on two threads.
LONG_SUMS = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 8192] x, float[8192, 33] w) => (float[n, 33] y) { y = MatMul(x, w) }
"""


def long_sums() -> Model:
    w = np.random.default_rng(0).normal(0, 1, (8192, 33)).astype(np.float32)
    return from_text(LONG_SUMS, w=w)


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (rows, 3, 16, 16)).astype(np.float32)


def assert_same(a: Statistics, b: Statistics) -> None:
    """All fields, to the last bit, and in the same order."""
    assert a.rows == b.rows
    assert list(a.tensors) == list(b.tensors)
    for name in a.tensors:
        first, second = a[name], b[name]
        assert (first.low, first.high, first.count) == (second.low, second.high, second.count)
        assert (first.mean, first.rms) == (second.mean, second.rms)
        assert torch.equal(first.sums.total(), second.sums.total())
        assert first.histogram.exponent == second.histogram.exponent
        assert torch.equal(first.histogram.counts, second.histogram.counts)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two real worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as started:
        yield started.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture(scope="module")
def model() -> Model:
    return small_cnn()


@pytest.fixture(scope="module")
def rows(model: Model, tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    """Seven batches, the last of them smaller."""
    return rows_of(tmp_path_factory.mktemp("rows"), model, {"x": images(50)}, batch_size=8)


@pytest.fixture(scope="module")
def whole(model: Model, rows: CalibrationSet) -> Statistics:
    return collect_sharded(model, rows, VALUES)


@pytest.mark.parametrize("shards", [2, 3, 4, 7, 9])
def test_any_number_of_shards_in_any_order(
    shards: int, model: Model, rows: CalibrationSet, whole: Statistics, tmp_path: Path
) -> None:
    file = model.save(tmp_path / "model.onnx")[0]
    work = sharding._Shard(file, model.digest, rows, tuple(VALUES), (0, 1), None, None)
    parts = [dataclasses.replace(work, shard=(k, shards)) for k in range(shards)]
    found = [sharding._collect_shard(part) for part in parts]
    order = np.random.default_rng(shards).permutation(shards)
    merged = Statistics()
    for k in order:
        merged = found[k].merge(merged)
    assert_same(sharding._in_order(merged, VALUES), whole)


@pytest.mark.parametrize("jobs", [2, 4])
def test_processes(jobs: int, model: Model, rows: CalibrationSet, whole: Statistics) -> None:
    seen: list[tuple[str, int, int]] = []
    found = collect_sharded(model, rows, VALUES, jobs=jobs, progress=lambda *a: seen.append(a))
    assert_same(found, whole)
    assert seen[-1] == ("calibrate", 50, 50)
    assert len(seen) == jobs


@pytest.mark.parametrize("jobs", [1, 3])
def test_dask(
    jobs: int, model: Model, rows: CalibrationSet, whole: Statistics, cluster: str
) -> None:
    assert_same(collect_sharded(model, rows, VALUES, jobs=jobs, engine=cluster), whole)


def test_errors_of_workers_are_those_of_one_sweep(cluster: str, tmp_path: Path) -> None:
    model = from_text("""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[n, 2] x) => (float[n, 2] y) { y = Log(x) }
    """)
    data = rows_of(tmp_path, model, {"x": np.full((4, 2), -1, np.float32)}, batch_size=1)
    texts = []
    for place in (None, cluster):
        with pytest.raises(DataError, match="values are NaN or infinite") as caught:
            collect_sharded(model, data, ["y"], jobs=1, engine=place)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_the_number_of_threads_outside_does_not_matter(tmp_path: Path) -> None:
    model = long_sums()
    x = np.random.default_rng(1).normal(0, 1, (8, 8192)).astype(np.float32)
    data = rows_of(tmp_path, model, {"x": x}, batch_size=4)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(collect_sharded(model, data, ["y"]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_a_memory_limit_changes_no_number(
    model: Model, rows: CalibrationSet, whole: Statistics, tmp_path: Path
) -> None:
    found = collect_sharded(model, rows, VALUES, memory=20_000, scratch=tmp_path)
    assert_same(found, whole)
    assert not any(tmp_path.iterdir())


def test_workers_share_the_memory_of_this_machine(
    model: Model, rows: CalibrationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[sharding._Shard] = []
    empty = Statistics({name: TensorStatistics() for name in VALUES})

    def run(function: object, works: list[sharding._Shard], **_: object) -> list[Statistics]:
        sent.extend(works)
        assert works[0].path.is_file()
        return [empty for _ in works]

    monkeypatch.setattr(engine, "run", run)
    monkeypatch.chdir(tmp_path)
    collect_sharded(model, rows, VALUES, jobs=3, memory=900, scratch=Path())
    assert [work.memory for work in sent] == [300] * 3
    assert [work.shard for work in sent] == [(0, 3), (1, 3), (2, 3)]
    assert {work.scratch for work in sent} == {tmp_path}
    collect_sharded(model, rows, VALUES, jobs=3, memory=900, engine="dask://head:8786")
    assert [work.memory for work in sent[3:]] == [900] * 3
    assert not any(tmp_path.iterdir())


def test_no_more_shards_than_batches(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows_of(tmp_path, model, {"x": images(3)}, batch_size=16)
    monkeypatch.setattr(engine, "run", None)
    assert_same(collect_sharded(model, data, VALUES, jobs=8), collect_sharded(model, data, VALUES))


def test_in_one_process_it_is_the_plain_sweep(
    model: Model, rows: CalibrationSet, whole: Statistics
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_same(collect(model, rows, VALUES), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda file: file.unlink(), "a worker finds no such file"),
        (lambda file: long_sums().save(file), "a worker finds another model here"),
    ],
    ids=["missing", "another"],
)
def test_a_worker_wants_the_very_model(
    change: Callable[[Path], object],
    text: str,
    model: Model,
    rows: CalibrationSet,
    cluster: str,
    tmp_path: Path,
) -> None:
    file = model.save(tmp_path / "model.onnx")[0]
    change(file)
    with pytest.raises(ModelError, match=text) as caught:
        collect_sharded(model, rows, VALUES, engine=cluster, file=file)
    assert caught.value.where == str(file)


def test_refuses(model: Model, rows: CalibrationSet, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected dask://host:port"):
        collect_sharded(model, rows, VALUES, engine="http://head:80")
    with pytest.raises(OutputError, match="the scratch folder cannot be written"):
        collect_sharded(model, rows, VALUES, jobs=2, scratch=tmp_path / "absent")
    with pytest.raises(ModelError, match="has no value 'z'"):
        collect_sharded(model, rows, ["z"])


@pytest.mark.slow
def test_ray(model: Model, rows: CalibrationSet, whole: Statistics) -> None:
    pytest.importorskip("ray")
    assert_same(collect_sharded(model, rows, VALUES, jobs=2, engine="ray://local"), whole)


@pytest.mark.slow
def test_mobilenet(shared: Callable[[str], Path], tmp_path: Path) -> None:
    """All float values over 400 images."""
    model = Model.load(shared("mobilenet_v1_075_224.onnx"))
    preprocess = PreprocessSpec(scale=1 / 127.5, offset=-1.0)
    spec = DataSpec(
        path=str(shared("imagenet/eval")), rows=400, validation_share=0.0, preprocess=preprocess
    )
    data = CalibrationSet.open(spec, model.signature)
    names = chosen_values(model)
    whole = collect_sharded(model, data, names)
    assert whole.rows == 400
    assert len(names) > 50
    for jobs in (2, 4):
        assert_same(collect_sharded(model, data, names, jobs=jobs, file=model.path), whole)
