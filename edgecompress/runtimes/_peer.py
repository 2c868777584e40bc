"""Whatever runs one model somewhere and answers requests, and those that do so over pipes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from edgecompress.runtimes._faults import death, no_answer, not_an_answer, refusal

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Peer", "PipePeer"]

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


class PipePeer(Peer):
    """A peer at the other end of a process's pipes: a JSON object per line, and one back.

    Args:
        command: What to start.
        where: The model, as errors name it.
        who: What runs it, as errors name it, e.g. ``onnxruntime``.
        timeout_seconds: Longest wait for one answer.
        environment: Of the process; None for this one's.
        own_group: Start it in a process group of its own, which ends with it as a whole.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        where: str,
        who: str,
        timeout_seconds: float,
        environment: dict[str, str] | None = None,
        own_group: bool = False,
    ) -> None:
        self.where = where
        self.who = who
        self.loaded = {}
        self.timeout_seconds = timeout_seconds
        self._own_group = own_group and os.name == "posix"
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0 if self._own_group else None,
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
            raise no_answer(do, self.timeout_seconds, self.where) from None
        if line is None:
            code = self.process.wait()
            raise death(do, code, self.stderr_tail(), self.where, self._out_of_memory())
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise not_an_answer(do, line, self.where)
        if "error" in answer:
            raise refusal(self.who, do, answer["error"], answer.get("kind", ""), self.where)
        return answer

    def _out_of_memory(self) -> str | None:
        """How much the process held of how much, where it was killed for that; None if unknown."""
        return None

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
        if self._own_group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._stderr.close()
