"""Run one compression by a peer, in the peer's own Python; edgecompress is not installed there.

Usage: ``PYTHON -P drive.py JOB.json``. The job names the driver (a file of ``peers/``), its method,
the float model, the calibration rows and the output. The answer is the peak memory of this process.
"""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Rows:
    """Calibration rows, one at a time, each with a batch axis of 1 and a length of its own."""

    def __init__(self, file: str) -> None:
        import numpy as np

        self._arrays = np.load(file)
        self._names: dict[str, list[str]] = {}
        for key in self._arrays.files:
            self._names.setdefault(key.split("|")[0], []).append(key)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for keys in self._names.values():
            yield {key.split("|")[1]: self._arrays[key] for key in keys}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    spec = importlib.util.spec_from_file_location("driver", job["driver"])
    assert spec is not None
    assert spec.loader is not None
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    driver.METHODS[job["method"]](job["source"], Rows(job["rows"]), job["output"])
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmHWM:"))
    Path(job["answer"]).write_text(json.dumps({"peak_mb": int(line.split()[1]) * 1024 / 1e6}))


if __name__ == "__main__":
    main()
