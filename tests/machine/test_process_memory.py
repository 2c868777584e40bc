from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)

HEAD = """
from edgecompress.machine.process_memory import *
def show(*figures): print(*figures)
"""


def fresh(code: str) -> list[str]:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@needs_proc
def test_the_peak_outlives_what_made_it_until_it_is_forgotten() -> None:
    code = """
data = bytearray(80_000_000)
del data
high = resident()
forget_peak()
low = resident()
show(high.peak_mb, low.peak_mb, low.anonymous_mb + low.file_mb + low.shared_mb, low.basis)
"""
    high, low, parts, basis = fresh(code)
    assert float(high) > 80
    assert float(low) < float(high) - 60
    assert float(parts) == pytest.approx(float(low), rel=0.05)
    assert basis == "vmhwm"


@needs_proc
def test_mapped_files_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(30_000_000))
    code = f"""
import mmap
before = resident()
with open({str(file)!r}, "rb") as stream:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    total = sum(mapped[::4096])
after = resident()
show(after.file_mb - before.file_mb, after.anonymous_mb - before.anonymous_mb)
"""
    in_files, anonymous = map(float, fresh(code))
    assert in_files == pytest.approx(30, rel=0.1)
    assert anonymous < 5


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_data_can_be_limited() -> None:
    code = """
limited = limit_data(300)
try:
    data = bytearray(400_000_000)
except MemoryError:
    show(limited, "refused")
"""
    assert fresh(code) == ["True", "refused"]


@needs_proc
def test_a_worker_dies_before_its_parent() -> None:
    code = 'die_first(); show(open("/proc/self/oom_score_adj").read())'
    assert fresh(code) == ["1000"]
