from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.machine.noise import NoiseMeter

BUSY = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"


def test_other_programs_are_noticed() -> None:
    meter = NoiseMeter()
    busy = [
        subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(max(1, os.cpu_count() or 1))
    ]
    for process in busy:
        process.wait()
    assert any("other programs used" in reason for reason in meter.found(0.0))


def test_what_the_workers_used_is_not_noise() -> None:
    meter = NoiseMeter()
    reasons = meter.found(workers_cpu_s=1e9)
    assert [reason for reason in reasons if "other programs" in reason] == []


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's schedstat")
def test_a_process_that_shares_its_processor_has_waited() -> None:
    code = """
import os, time
from edgecompress.machine.waiting import waited_ms
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
other = os.fork()
end = time.time() + 0.5
before = waited_ms()
while time.time() < end: pass
if other:
    os.waitpid(other, 0)
    print(waited_ms() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100
