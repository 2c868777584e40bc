"""The side of a worker that asks: starts it, waits with a limit, and always ends it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import python_of

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Peer", "WorkerProcess", "PipePeer", "offline"]

_PACKAGE = Path(__file__).resolve().parents[1]
_TAIL_LINES = 5


class Peer(ABC):
    """Whatever runs one model somewhere and answers requests; used in a ``with`` block.

    Requests are those of :class:`edgecompress.runtimes._worker.Worker`; a peer on a device answers
    ``run``, ``memory`` and ``end_profiling`` in the same words.

    Attributes:
        where: The model, as errors name it.
        loaded: What was answered when the model was loaded: ``load_ms``, ``runner_mb``,
            ``version``, ``providers``, ``cpus``.
    """

    where: str
    loaded: dict[str, Any]

    @abstractmethod
    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            MeasurementError: The peer failed, died, or did not answer in time.
        """

    @abstractmethod
    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """Run once on the inputs that it was given, and fetch the outputs.

        Raises:
            MeasurementError: As for :meth:`ask`.
        """

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@cache
def offline() -> tuple[str, ...]:
    """A command prefix that takes the network away, or nothing where the system forbids that."""
    unshare = shutil.which("unshare")
    for prefix in ((unshare, "-n"), (unshare, "-r", "-n")) if unshare else ():
        done = subprocess.run([*prefix, "true"], capture_output=True, check=False)
        if done.returncode == 0:
            return tuple(map(str, prefix))
    return ()


def _environment(threads: int, package: Path) -> dict[str, str]:
    """The worker's environment: no telemetry, no thread pools besides the runtime's."""
    path = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(package), *([path] if path else [])]),
    }


class PipePeer(Peer):
    """A peer at the other end of a process's pipes: a JSON object per line, and one back.

    Args:
        command: What to start.
        where: The model, as errors name it.
        who: What runs it, as errors name it, e.g. ``onnxruntime``.
        timeout_seconds: Longest wait for one answer.
        environment: Of the process; None for this one's.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        where: str,
        who: str,
        timeout_seconds: float,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.where = where
        self.who = who
        self.loaded = {}
        self.timeout_seconds = timeout_seconds
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
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
        """See :meth:`Peer.ask`."""
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
                f"{self.who} could not {do} it: {_short(answer['error'])}",
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


class WorkerProcess(PipePeer):
    """A worker process of this machine for one model.

    It sees no network where the system lets us take it away. Its Python environment is this one, or
    that of :func:`edgecompress.runtimes.python_of`.

    Args:
        where: The model, as errors name it.
        runtime: Name of the runtime.
        threads: Threads inside an operator.
        timeout_seconds: Longest wait for one answer.
    """

    def __init__(
        self, where: str, *, threads: int, timeout_seconds: float, runtime: str = "onnxruntime"
    ) -> None:
        # A folder with nothing but this package in it: the other packages beside it are of this
        # environment, and must not hide those of another one.
        self._folder = tempfile.TemporaryDirectory()
        alone = Path(self._folder.name)
        (alone / "edgecompress").symlink_to(_PACKAGE, target_is_directory=True)
        python = python_of(runtime) or sys.executable
        super().__init__(
            [*offline(), python, "-P", "-m", "edgecompress.runtimes._worker"],
            where=where,
            who=runtime,
            timeout_seconds=timeout_seconds,
            environment=_environment(threads, alone),
        )

    def load(
        self, engine: str, model: Path, inputs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        """Load a model and its inputs.

        Args:
            engine: ``module:class`` of the runtime's engine.
            model: First file of the artifact.
            inputs: What :func:`edgecompress.runtimes._trials.write_feeds` returned.
            options: As for :meth:`edgecompress.runtimes.Engine.load`.
        """
        self.loaded = self.ask(
            "load", engine=engine, model=os.fspath(model), options=options, **inputs
        )

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """See :meth:`Peer.outputs`."""
        import numpy as np

        file = Path(self._folder.name) / "outputs.npz"
        names = self.ask("outputs", file=os.fspath(file))["names"]
        with np.load(file) as arrays:
            return {name: arrays[f"arr_{place}"] for place, name in enumerate(names)}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._folder.cleanup()


def _short(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 300 else f"{line[:300]} ..."
