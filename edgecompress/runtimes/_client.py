"""The side of a worker that asks: starts it, waits with a limit, and always ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgecompress.errors import MeasurementError
from edgecompress.machine.cgroup import GROUP_VARIABLE, MemoryGroup
from edgecompress.runtimes import python_of
from edgecompress.runtimes._peer import Peer, PipePeer

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Peer", "WorkerProcess", "PipePeer", "offline"]

_PACKAGE = Path(__file__).resolve().parents[1]


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


class WorkerProcess(PipePeer):
    """A worker process of this machine for one model.

    It sees no network where the system lets us take it away, and lives in a memory control group
    where one can be made. Its Python environment is this one, or that of
    :func:`edgecompress.runtimes.python_of`.

    Args:
        where: The model, as errors name it.
        runtime: Name of the runtime.
        threads: Threads inside an operator.
        timeout_seconds: Longest wait for one answer.
        memory_limit_mb: Most memory (10^6 bytes) that the whole process may take, interpreter and
            runtime included; it is refused more, or killed. None for what the system has.

    Raises:
        MeasurementError: The limit cannot be set on this system.
    """

    def __init__(
        self,
        where: str,
        *,
        threads: int,
        timeout_seconds: float,
        runtime: str = "onnxruntime",
        memory_limit_mb: float | None = None,
    ) -> None:
        # A folder with nothing but this package in it: the other packages beside it are of this
        # environment, and must not hide those of another one.
        self._folder = tempfile.TemporaryDirectory()
        self._group = MemoryGroup.make()
        self._limit_mb = memory_limit_mb
        try:
            limit = None if memory_limit_mb is None else int(memory_limit_mb * 1e6)
            grouped = limit is None or (self._group is not None and self._group.limit(limit))
            alone = Path(self._folder.name)
            (alone / "edgecompress").symlink_to(_PACKAGE, target_is_directory=True)
            environment = _environment(threads, alone)
            inside: tuple[str, ...] = ()
            if self._group is not None:
                environment[GROUP_VARIABLE] = os.fspath(self._group.folder)
                inside = self._group.command
            python = python_of(runtime) or sys.executable
            super().__init__(
                [*inside, *offline(), python, "-P", "-m", "edgecompress.runtimes._worker"],
                where=where,
                who=runtime,
                timeout_seconds=timeout_seconds,
                environment=environment,
                own_group=True,
            )
        except BaseException:
            self._give_back()
            raise
        if not grouped:
            self._limit_data()

    def _limit_data(self) -> None:
        try:
            if not self.ask("limit", memory_mb=self._limit_mb)["limited"]:
                raise MeasurementError(
                    f"this system cannot hold a process to {self._limit_mb:g} MB of memory",
                    where=self.where,
                    cure="leave memory_limit_mb out",
                )
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _out_of_memory(self) -> str | None:
        held = None if self._group is None else self._group.memory()
        if self._group is None or held is None or not held.oom_kills:
            return None
        most = self._group.most_bytes
        of = (
            "all that this machine has" if most is None else f"the {most / 1e6:.0f} MB of its limit"
        )
        return f"its process held {held.peak / 1e6:.0f} MB of {of} and was killed"

    def _give_back(self) -> None:
        if self._group is not None:
            self._group.remove()
        self._folder.cleanup()

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
        self._give_back()
