from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.machine.cgroup import GROUP_VARIABLE, MemoryGroup

V1 = {
    "memory.max_usage_in_bytes": "900\n",
    "memory.usage_in_bytes": "700\n",
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory.stat": "cache 100\nrss 500\nhierarchical_memory_limit 4096\n",
}
V2 = {
    "memory.peak": "900\n",
    "memory.current": "700\n",
    "memory.max": "4096\n",
    "memory.events": "low 0\nhigh 0\nmax 5\noom 3\noom_kill 2\noom_group_kill 0\n",
    "memory.stat": "anon 500\nfile 100\nkernel 80\nshmem 0\n",
}


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    made = MemoryGroup.make()
    if made is None:
        pytest.skip("no memory control group can be made here: it takes root, or delegation")
    yield made
    made.remove()
    assert not made.folder.exists()


def inside(group: MemoryGroup, code: str) -> subprocess.CompletedProcess[str]:
    command = [*group.command, sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_group_counts_what_its_process_holds(group: MemoryGroup) -> None:
    before = group.memory()
    done = inside(group, "data = bytearray(50_000_000)")
    assert done.returncode == 0, done.stderr
    held = group.memory()
    assert before is not None
    assert held is not None
    assert 50e6 < held.peak - before.peak < 80e6
    assert held.usage < 20e6
    assert held.oom_kills == 0


def test_a_peak_can_start_again(group: MemoryGroup) -> None:
    inside(group, "data = bytearray(50_000_000)")
    if not group.forget_peak():
        pytest.skip("this kernel cannot start the peak of a group again")
    held = group.memory()
    assert held is not None
    assert held.peak < 30e6


def test_a_process_above_the_limit_is_killed(group: MemoryGroup) -> None:
    assert group.limit(40_000_000)
    assert group.most_bytes == pytest.approx(40e6, abs=4096)
    done = inside(group, "data = bytearray(100_000_000)")
    assert done.returncode == -9
    held = group.memory()
    assert held is not None
    assert held.oom_kills == 1


def test_a_process_finds_its_group(group: MemoryGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GROUP_VARIABLE, os.fspath(group.folder))
    mine = MemoryGroup.mine()
    assert mine is not None
    assert mine.folder == group.folder
    monkeypatch.setenv(GROUP_VARIABLE, os.fspath(group.folder / "gone"))
    assert MemoryGroup.mine() is None


def test_removal_ends_what_still_runs(group: MemoryGroup) -> None:
    with subprocess.Popen([*group.command, "sleep", "60"]) as process:
        while not (group.folder / "cgroup.procs").read_text().strip():
            pass
        group.remove()
        assert process.wait(10) == -9
    assert not group.folder.exists()


@pytest.mark.parametrize("files", [V1, V2], ids=["version 1", "version 2"])
def test_both_versions_are_read(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = MemoryGroup(tmp_path)
    held = group.memory()
    assert held is not None
    assert (held.peak, held.usage, held.anonymous, held.file) == (900, 700, 500, 100)
    assert held.oom_kills == 2
    assert group.most_bytes == 4096


def test_a_folder_that_is_no_group_tells_nothing(tmp_path: Path) -> None:
    assert MemoryGroup(tmp_path).memory() is None
