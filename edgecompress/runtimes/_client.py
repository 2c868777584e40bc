"""The side of the worker that asks: starts it, waits with a limit, and always ends it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgecompress.errors import MeasurementError

__all__ = ["WorkerProcess"]

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-P", "-m", "edgecompress.runtimes._worker")
_TAIL_LINES = 5


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: no telemetry, no thread pools besides onnxruntime's."""
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(_PACKAGE_PARENT), *([path] if path else [])]),
    }


class WorkerProcess:
    """A worker process for one model; use it in a ``with`` block, which ends it in any case.

    Args:
        where: The model, as errors name it.
        threads: Threads inside an operator.
        timeout_seconds: Longest wait for one answer.
    """

    def __init__(self, where: str, *, threads: int, timeout_seconds: float) -> None:
        self.where = where
        self.timeout_seconds = timeout_seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads),
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A thread, since a pipe cannot be waited on with a limit on every system.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            MeasurementError: The worker failed, died, or did not answer in time.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self._answers.get(timeout=self.timeout_seconds)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            raise MeasurementError(
                f"the worker did not answer within {self.timeout_seconds:g} s ({do})",
                where=self.where,
                cure="raise timeout_seconds in the target's [measurement] table",
            ) from None
        if line is None:
            raise self._death(do)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasurementError(
                f"onnxruntime could not {do} it: {_short(answer['error'])}",
                where=self.where,
                cure="check that the file is whole and that the inputs fit it",
            )
        return answer

    def _death(self, do: str) -> MeasurementError:
        code = self.process.wait()
        how = f"ended with code {code}"
        cure = None
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if -code == getattr(signal, "SIGKILL", None):
                cure = "the system may have run out of memory; free some, or take a smaller batch"
        tail = self.stderr_tail()
        said = f"; its last lines: {tail}" if tail else ""
        return MeasurementError(f"the worker {how} ({do}){said}", where=self.where, cure=cure)

    def stderr_tail(self) -> str:
        """The last lines that the worker wrote to its standard error."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-_TAIL_LINES:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._stderr.close()


def _short(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 300 else f"{line[:300]} ..."
