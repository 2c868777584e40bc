"""What ``test_adb.py`` does beside a real adbd, in the network that it has for itself.

Run as a program there; prints one JSON object. The first argument is a folder for files, the second
a model, the third its inputs (.npz).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress import target
from edgecompress.devices import connect
from edgecompress.devices.adb import AdbLink
from edgecompress.errors import MeasurementError
from edgecompress.measure import measure
from edgecompress.runtimes import Artifact
from edgecompress.target import MeasurementSettings
from tests.devices.daemons import ADB_SERIAL

ADDRESS = f"adb:{ADB_SERIAL}"
DAEMON = int(os.environ["EDGECOMPRESS_TEST_ADBD"])
THERE = Path(os.environ["EDGECOMPRESS_TEST_ADB_ROOT"]) / "data/local/tmp"
SETTINGS = MeasurementSettings(runs=8, warmup=2, blocks=2, seconds=0.2, timeout_seconds=60)
PROFILE = target.load(target.host_target()).model_copy(update={"measurement": SETTINGS})


def error_of(action: Callable[[], object]) -> dict[str, Any]:
    try:
        action()
    except MeasurementError as error:
        return error.as_json()
    return {"what": "no error"}


def left() -> list[str]:
    return sorted(entry.name for entry in THERE.iterdir())


def wait_for_daemon() -> None:
    end = time.monotonic() + 20
    while error_of(try_once)["what"] != "no error" and time.monotonic() < end:
        time.sleep(0.1)


def try_once() -> None:
    with AdbLink(ADDRESS) as link:
        link.run("true")


def run_model(folder: Path, model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    with connect(ADDRESS) as device:
        facts = device.facts()
        with device.start(Artifact((model,)), PROFILE, feeds, where=model.name) as peer:
            found = peer.outputs()
            during = left()
    np.savez(folder / "outputs.npz", **found)
    return {"arch": facts.arch, "cores": facts.cores, "during": during, "after": left()}


def profile_model(model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    found = measure({"model": model}, PROFILE, feeds, device=ADDRESS)["model"]
    return {"basis": found.basis, "operators": [row.op for row in found.operators]}


def full_device(folder: Path) -> dict[str, Any]:
    filler = THERE / "filler"
    status = os.statvfs(THERE)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - 15_000_000))
    big = folder / "big"
    big.write_bytes(bytes(20_000_000))
    try:
        before = error_of(lambda: connect(ADDRESS).__enter__())
        with AdbLink(ADDRESS) as link:
            copy = error_of(lambda: link.push([(big, "big")]))
    finally:
        filler.unlink()
    return {"before": before, "copy": copy, "after": left()}


def asleep() -> dict[str, Any]:
    with AdbLink(ADDRESS) as link:
        os.kill(DAEMON, signal.SIGSTOP)
        try:
            return error_of(lambda: link.run("true", timeout=0.5))
        finally:
            os.kill(DAEMON, signal.SIGCONT)


def killed(model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    with connect(ADDRESS) as device:
        with device.start(Artifact((model,)), PROFILE, feeds, where=model.name) as peer:
            timer = threading.Timer(0.3, os.kill, (DAEMON, signal.SIGKILL))
            timer.start()
            run = error_of(lambda: peer.ask("run", count=10**8))
            timer.join()
        then = error_of(device.facts)
    end = time.monotonic() + 10
    while (left() or living_agents()) and time.monotonic() < end:
        time.sleep(0.02)
    return {"run": run, "then": then, "after": left(), "agents": living_agents()}


def living_agents() -> int:
    """Number of processes of that name; nobody collects those that have ended here."""
    processes = (p.read_text().rpartition(")") for p in Path("/proc").glob("[0-9]*/stat"))
    return sum(name.endswith("(agent") and rest[1] != "Z" for name, _, rest in processes)


def main() -> None:
    folder, model = Path(sys.argv[1]), Path(sys.argv[2])
    with np.load(sys.argv[3]) as arrays:
        feeds = dict(arrays)
    wait_for_daemon()
    found = {
        "no such device": error_of(lambda: connect("adb:NOSUCH").__enter__()),
        "no such address": error_of(lambda: connect("adb:127.0.0.1:9").__enter__()),
        "model": run_model(folder, model, feeds),
        "profile": profile_model(model, feeds),
        "full": full_device(folder),
        "asleep": asleep(),
        "killed": killed(model, feeds),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
