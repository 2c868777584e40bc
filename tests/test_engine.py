"""Independent calls: the same answers and the same errors wherever they run, and no noise."""

from __future__ import annotations

import math
import operator
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgecompress import errors
from edgecompress.parallel import engine, pools
from edgecompress.parallel.engine import check_engine, run

distributed = pytest.importorskip("distributed")

HERE = "this machine"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two real worker processes; a call whose worker dies is given up at once."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as started,
    ):
        yield started.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture(params=[HERE, "dask"])
def where(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == HERE else str(request.getfixturevalue("cluster"))


def test_one_job_stays_in_this_process() -> None:
    seen: list[tuple[str, int, int]] = []
    found = run(
        lambda i: (i, os.getpid()), [3, 1, 2], label="part", progress=lambda *a: seen.append(a)
    )
    assert found == [(3, os.getpid()), (1, os.getpid()), (2, os.getpid())]
    assert seen == [("part", 1, 3), ("part", 2, 3), ("part", 3, 3)]


def test_one_job_loads_neither_joblib_nor_a_cluster() -> None:
    code = (
        "import sys, math; from edgecompress.parallel.engine import run; run(math.sqrt, [1, 4]); "
        "print([m for m in ('joblib', 'distributed', 'ray', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_answers_keep_the_order_of_the_arguments(
    where: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, int, int]] = []
    numbers = [float(i) for i in range(9)]
    found = run(math.sqrt, numbers, jobs=4, engine=where, progress=lambda *a: seen.append(a))
    assert found == [math.sqrt(n) for n in numbers]
    assert seen == [("task", i, 9) for i in range(1, 10)]
    assert capfd.readouterr() == ("", "")


def test_errors_of_ours_arrive_as_they_were_raised(
    where: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.RecipeError, match="got 'nonsense'") as caught:
        run(check_engine, [None, "nonsense", None], jobs=2, engine=where)
    assert caught.value.where == "engine"
    assert caught.value.cure == "leave it out to work on this machine"
    assert "in check_engine" in str(caught.value.__cause__)
    assert capfd.readouterr() == ("", "")


def test_other_errors_name_the_call(where: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.BuildError) as caught:
        run(math.sqrt, [1.0, -1.0, 4.0], jobs=2, engine=where, label="shard")
    assert caught.value.where == "shard 2 of 3"
    assert caught.value.what == "failed: ValueError: math domain error"
    assert capfd.readouterr() == ("", "")


def test_a_print_of_the_users_code_is_not_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    run(print, ["from a worker", "from a worker"], jobs=2)
    assert capfd.readouterr() == ("", "from a worker\nfrom a worker\n")


def test_a_worker_that_dies_here() -> None:
    with pytest.raises(errors.BuildError, match="a worker process died") as caught:
        run(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL], jobs=2)
    assert caught.value.where == "2 jobs on this machine"


def test_a_worker_that_dies_on_a_cluster(cluster: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.BuildError, match="the cluster broke off the work: KilledWorker"):
        run(signal.raise_signal, [signal.SIGKILL], engine=cluster)
    assert capfd.readouterr().out == ""


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_WITHOUT_WORKERS_SECONDS", 0.5)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        address = empty.scheduler_address.replace("tcp://", "dask://")
        with pytest.raises(errors.BuildError, match=r"the cluster has had no worker for 0\.5 s"):
            run(math.sqrt, [1.0], engine=address)


@pytest.mark.parametrize("scheme", ["dask", "ray"])
def test_a_cluster_that_is_not_there(scheme: str) -> None:
    if scheme == "ray":
        pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.BuildError, match="the cluster cannot be reached") as caught:
            run(math.sqrt, [1.0], engine=address)
    assert caught.value.where == address


def test_something_else_at_the_address(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pools, "_CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"dask://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(errors.BuildError, match="the cluster cannot be reached: timed out"):
            run(math.sqrt, [1.0], engine=address)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("package", "where", "jobs", "extra"),
    [
        ("joblib", None, 2, "parallel"),
        ("distributed", "dask://head:8786", 1, "dask"),
        ("ray", "ray://local", 1, "ray"),
    ],
)
def test_what_is_not_installed(
    package: str, where: str | None, jobs: int, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingDependencyError, match=f"needs the package '{package}'") as e:
        run(math.sqrt, [1.0, 4.0], jobs=jobs, engine=where)
    assert e.value.cure == f'pip install "edgecompress[{extra}]"'


@pytest.mark.parametrize(
    "form",
    [
        "",
        "dask",
        "dask://",
        "dask://head",
        "dask://head:port",
        "dask://head:99999",
        "dask://head:8786/path",
        "spark://head:7077",
        "ray://",
        "dask://local",
        "tcp://head:8786",
    ],
)
def test_engines_of_no_known_form(form: str) -> None:
    with pytest.raises(errors.RecipeError, match=r"expected dask://host:port, ray://host:port or"):
        check_engine(form)


@pytest.mark.parametrize("form", [None, "dask://head:8786", "ray://10.0.0.1:10001", "ray://local"])
def test_engines_of_known_form(form: str | None) -> None:
    check_engine(form)


def test_no_jobs() -> None:
    with pytest.raises(errors.RecipeError, match="expected a number from 1, got 0"):
        run(math.sqrt, [1.0], jobs=0)


@pytest.mark.parametrize(
    "error",
    [
        errors.DataError("w", where="p", cure="c"),
        errors.UnsupportedOperatorError("no such", ["b", "a"], where="p", cure="c"),
        errors.MissingDependencyError("pillow", "reading images", "images"),
    ],
    ids=operator.attrgetter("__class__.__name__"),
)
def test_all_kinds_of_errors_travel(error: errors.EdgeCompressError) -> None:
    failure = pickle.loads(pickle.dumps(engine._Failure.of(0, error)))
    again = failure.error("task 1 of 1")
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert (str(again), again.as_json()) == (str(error), error.as_json())


def test_an_interrupt_ends_the_workers(tmp_path: Path) -> None:
    code = (
        "import signal, time; from edgecompress.parallel.engine import run; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's & ignores it
        "run(time.sleep, [600, 600], jobs=2)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        workers: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and len(workers) < 3:  # two, and their tracker
            time.sleep(0.1)
            workers = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(1)
        os.killpg(parent.pid, signal.SIGINT)
        parent.communicate(timeout=60)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
        assert parent.returncode != 0
    finally:
        parent.kill()


@pytest.mark.slow
def test_ray(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    assert run(math.sqrt, [1.0, 4.0, 9.0], jobs=2, engine="ray://local") == [1.0, 2.0, 3.0]
    with pytest.raises(errors.RecipeError, match="got 'nonsense'"):
        run(check_engine, [None, "nonsense"], jobs=2, engine="ray://local")
    with pytest.raises(errors.BuildError, match="the cluster broke off the work: WorkerCrashed"):
        run(signal.raise_signal, [signal.SIGKILL], engine="ray://local")
    assert capfd.readouterr() == ("", "")
