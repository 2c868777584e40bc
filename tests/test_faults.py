"""Faults at any moment: kills, full disks, folders that vanish, two builds at once.

Nothing is lost, nothing is half-written, and the next run continues.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgecompress import delivery, locks
from edgecompress.delivery import claim_output, deliver, deliver_report
from edgecompress.errors import BuildError
from edgecompress.files import ScratchFolder
from edgecompress.model import Model
from tests.models import small_cnn
from tests.recipes import BROKEN_OFF, DELIVERED, UNREACHABLE, names, save_inputs, write_recipe
from tests.reports import sample_report
from tests.warm import Ended, Fault, begin, end, start, wait_for, was_killed

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and signals of POSIX systems")

REJECTED = {"rejected.onnx", *BROKEN_OFF}
SOURCE = Path("cnn.onnx")
NEVER = 10**9


@dataclass(frozen=True)
class Place:
    """A recipe, with every folder that its build writes to."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def arguments(self, *more: str) -> list[str]:
        return ["build", os.fspath(self.folder / "recipe.json"), *more]

    def build(self, *more: str, fault: Fault | None = None) -> Ended:
        log = self.folder / "log"
        process = begin(self.arguments(*more), log, temporary=self.temporary, fault=fault)
        return end(process, log)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def make_place(folder: Path, channels: int = 8) -> Place:
    save_inputs(folder)
    small_cnn(channels=channels).save(folder / "cnn.onnx")
    build = {"output": "out", "cache": "cache"}
    passes = [{"name": "cleanup"}, {"name": "quantize", "bias_correction": False}]
    write_recipe(folder, target=UNREACHABLE, build=build, **{"pass": passes})
    (folder / "tmp").mkdir()
    return Place(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()} if folder.exists() else {}


def check_manifest(output: Path) -> None:
    """Whoever sees a manifest sees all that it speaks of."""
    if (output / "manifest.json").exists():
        for record in json.loads((output / "manifest.json").read_text())["files"]:
            found = hashlib.sha256((output / record["name"]).read_bytes()).hexdigest()
            assert found == record["sha256"], record["name"]
        assert json.loads((output / "report.json").read_text())["status"] == "passed"


def check_goes_on(place: Place) -> None:
    """The next run succeeds, takes finished steps from the cache, and leaves nothing behind."""
    kept = len(list(place.cache.glob("*/manifest.json")))
    done = place.build()
    assert done.code == 0, done.text
    assert names(place.output) == DELIVERED
    check_manifest(place.output)
    report = json.loads((place.output / "report.json").read_text())
    assert sum(step["cached"] for step in report["steps"]) >= kept
    # Python itself tries by a file of another name whether the folder can be written.
    assert not list(place.temporary.glob("edgecompress-*"))
    assert not [file for file in place.cache.rglob("*") if file.suffix in (".part", ".ready")]


def check_error(done: Ended, code: int, *pieces: str) -> None:
    assert done.code == code, done.text
    assert done.text.count("error: ") == 1, done.text
    assert "internal error" not in done.text
    assert "Traceback" not in done.text
    assert "\n  -> " in done.text
    for piece in pieces:
        assert piece in done.text


# Kills while results are delivered: every step


def give(output: Path, status: str, seed: int) -> None:
    report = sample_report(status=status)
    if status == "error":
        deliver_report(output, report)
    else:
        deliver(output, small_cnn(seed), report, {"schema": 1})


def kill_at_all_steps(folder: Path, status: str) -> None:
    """Deliver onto copies of ``old``, in forks of this process that are killed at each step."""
    delivery.write_html = lambda report, path: path.write_text("page")  # a page takes long to make
    for step in range(1, 80):
        output = folder / str(step) / "out"
        shutil.copytree(folder / "old", output)
        child = os.fork()
        if child == 0:
            wait_for(Fault(step, output, kill=signal.SIGKILL))
            give(output, status, seed=1)
            os._exit(0)
        _, ended = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(ended) == 0:
            os._exit(0)
    os._exit(1)


@pytest.mark.parametrize("before", [None, "passed", "failed"])
@pytest.mark.parametrize(
    ("status", "expected"), [("passed", DELIVERED), ("failed", REJECTED), ("error", BROKEN_OFF)]
)
def test_killed_at_any_step_of_the_delivery(
    tmp_path: Path, before: str | None, status: str, expected: set[str]
) -> None:
    (tmp_path / "old").mkdir()
    if before is not None:
        give(tmp_path / "old", before, seed=0)
    old = content_of_files(tmp_path / "old")
    process = start(kill_at_all_steps, tmp_path, status)
    process.join(60)
    assert process.exitcode == 0
    places = sorted((each for each in tmp_path.iterdir() if each.name != "old"), key=_number)
    assert len(places) > 10
    moved = False
    for place in places:
        output = place / "out"
        check_manifest(output)
        moving = any(name.endswith(".ready") for name in names(output))
        moved = moved or moving
        if not moved:
            assert content_of_files(output) == old
        with claim_output(output, SOURCE):
            found = content_of_files(output)
        found.pop(".edgecompress.lock")
        assert found.keys() == expected if moved else found == old, place
        assert names(output) == found.keys()
        check_manifest(output)
    assert moved


def _number(place: Path) -> int:
    return int(place.name)


def content_of_files(folder: Path) -> dict[str, bytes]:
    files = folder.iterdir() if folder.exists() else ()
    return {file.name: file.read_bytes() for file in files if file.is_file()}


# Kills and interrupts of whole builds


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many steps an undisturbed build has."""
    place = make_place(tmp_path_factory.mktemp("steps"))
    done = place.build(fault=Fault(NEVER, place.folder))
    assert done.code == 0, done.text
    return int(done.text.rsplit("steps: ", 1)[1])


def kill_at(place: Place, step: int) -> None:
    """Kill a build, perhaps on top of an earlier result, and see what is left."""
    before = content(place.output)
    done = place.build(fault=Fault(step, place.folder, kill=signal.SIGKILL))
    assert was_killed(done), done.text
    check_manifest(place.output)
    if not any(name.endswith(".ready") for name in names(place.output)):
        after = content_of_files(place.output)
        assert {name: after.get(name) for name in before} == before
    check_goes_on(place)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.85, 0.97])
def test_a_killed_build(place: Place, steps: int, share: float) -> None:
    kill_at(place, max(1, round(steps * share)))


def test_a_build_killed_on_top_of_a_result(place: Place, steps: int) -> None:
    check_goes_on(place)
    shutil.rmtree(place.cache)
    kill_at(place, round(steps * 0.8))


@pytest.mark.slow
def test_a_build_killed_at_any_step(tmp_path: Path, steps: int) -> None:
    for step in range(1, steps):
        kill_at(make_place(tmp_path / str(step)), step)


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
    ids=["SIGTERM", "SIGINT"],
)
def test_an_interrupt_leaves_nothing(
    place: Place, steps: int, share: float, number: int, code: int, word: str
) -> None:
    done = place.build(fault=Fault(round(steps * share), place.folder, kill=number))
    assert done.code == code, done.text
    assert f"{word}; nothing was written, the next run continues from the cache" in done.text
    assert "Traceback" not in done.text
    assert not place.output.exists()
    assert names(place.temporary) == set()
    assert not list(place.cache.rglob("*.part"))
    check_goes_on(place)


# Full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", os.fspath(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", os.fspath(folder)], check=True)


def fill(disk: Path, free: int) -> None:
    """Leave ``free`` bytes of a disk."""
    size = max(0, shutil.disk_usage(disk).free - free)
    (disk / "filler").write_bytes(bytes(size))


@pytest.mark.parametrize("free_kb", [0, 12, 32])
@pytest.mark.parametrize("earlier", [False, True], ids=["new", "replaced"])
def test_a_full_output_disk(tmp_path: Path, disk: Path, free_kb: int, earlier: bool) -> None:
    place = make_place(tmp_path / "work")
    output = disk / "out"
    if earlier:
        assert place.build("-o", os.fspath(output)).code == 0
    fill(disk, free_kb * 1024)
    before = content(output)
    done = place.build("-o", os.fspath(output))
    check_error(
        done, 2, f"{output}: no space left on the disk", "MB are free", "MB are needed", "free some"
    )
    assert content(output) == before
    assert names(place.temporary) == set()
    (disk / "filler").unlink()
    assert place.build("-o", os.fspath(output)).code == 0
    check_manifest(output)


@pytest.mark.parametrize("free_kb", [0, 12])
def test_a_full_cache_is_no_reason_to_fail(tmp_path: Path, disk: Path, free_kb: int) -> None:
    place = make_place(tmp_path / "work")
    place.cache.symlink_to(disk)
    fill(disk, free_kb * 1024)
    done = place.build()
    assert done.code == 0, done.text
    assert "finished steps are not kept" in done.text
    assert "no space left on the disk" in done.text
    assert names(place.output) == DELIVERED
    (disk / "filler").unlink()
    check_goes_on(place)


@pytest.mark.parametrize("free_kb", [12, 64])
def test_a_full_disk_of_temporary_files(tmp_path: Path, disk: Path, free_kb: int) -> None:
    place = make_place(tmp_path / "work", channels=128)
    shutil.rmtree(place.temporary)
    place.temporary.symlink_to(disk)
    fill(disk, free_kb * 1024)
    done = place.build()
    check_error(done, 2, f"{place.temporary}: no space left on the disk", "set TMPDIR")
    assert names(disk) == {"filler"}
    assert not place.output.exists()
    (disk / "filler").unlink()
    check_goes_on(place)


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(Exception, match="no folder for temporary files") as caught:
        ScratchFolder()
    assert "TMPDIR" in caught.value.cure


# Folders that vanish


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("which", ["tmp", "cache"])
def test_a_folder_that_vanishes(place: Place, steps: int, share: float, which: str) -> None:
    place.cache.mkdir()
    wiped = place.folder / which
    done = place.build(fault=Fault(round(steps * share), place.folder, wipe=wiped))
    if done.code:
        assert done.code in (1, 2)
        check_error(done, done.code)
    else:
        check_manifest(place.output)
    check_goes_on(place)


# Two at once


def test_two_builds_in_one_folder(place: Place) -> None:
    with locks.only_writer(place.output):
        done = place.build()
        check_error(
            done,
            1,
            f"{place.output}: another build writes to this folder (process {os.getpid()} on ",
            "wait until it is done, or name another folder with --output",
        )
    assert not place.output.exists()
    check_goes_on(place)


def test_two_builds_of_one_process_in_one_folder(tmp_path: Path) -> None:
    with (
        claim_output(tmp_path, SOURCE),
        pytest.raises(BuildError, match="another build writes"),
        claim_output(tmp_path, SOURCE),
    ):
        pytest.fail("both had the folder")


def test_the_lock_of_a_dead_process_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / ".edgecompress.lock").write_text("process 1 on here")
    with claim_output(tmp_path, SOURCE):
        assert names(tmp_path) == {".edgecompress.lock"}
    assert names(tmp_path) == set()


def test_a_disk_that_cannot_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    left = tmp_path / ".edgecompress-left.part"
    left.mkdir()
    with claim_output(tmp_path, SOURCE):
        give(tmp_path, "passed", seed=0)
    assert names(tmp_path) == {*DELIVERED, left.name}  # who knows whether its writer lives


def test_builds_that_start_together(tmp_path: Path) -> None:
    """In one folder one of them builds; with one cache all do."""
    place = make_place(tmp_path)
    logs = {name: tmp_path / f"log-{name}" for name in ("a", "a again", "b")}
    running = {
        name: begin(place.arguments("-o", os.fspath(tmp_path / name[0])), log)
        for name, log in logs.items()
    }
    ended = {name: end(running[name], log) for name, log in logs.items()}
    assert ended["b"].code == 0, ended["b"].text
    same = [ended["a"], ended["a again"]]
    assert 0 in [each.code for each in same]
    for each in same:
        if each.code:
            check_error(each, 1, "another build writes to this folder")
    for name in ("a", "b"):
        assert names(tmp_path / name) == DELIVERED
        check_manifest(tmp_path / name)
    models = {(tmp_path / name / "model.onnx").read_bytes() for name in ("a", "b")}
    assert len(models) == 1
    assert Model.load(tmp_path / "a/model.onnx").steps == ()


# What the dead have left


def test_leftovers_of_living_processes_stay() -> None:
    with ScratchFolder() as one, ScratchFolder() as other:
        assert one.is_dir()
        assert other.is_dir()
        dead = one.with_name("edgecompress-scratch-dead")
        dead.mkdir()
        (dead / "x").write_text("")
        with ScratchFolder():
            assert not dead.exists()
            assert one.is_dir()
    assert not one.exists()
    assert not other.exists()
