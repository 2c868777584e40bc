"""What every runtime that lives in a worker process shares: conversion, sessions, options."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.files import ScratchFolder
from edgecompress.runtimes import Artifact, Runtime, Session
from edgecompress.runtimes._client import WorkerProcess
from edgecompress.runtimes._crash import named_crash
from edgecompress.runtimes._faults import RuntimeCrashError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.target import TargetProfile

__all__ = ["WorkerSession", "convert", "engine_options", "write_feeds"]


def engine_options(profile: TargetProfile, **more: Any) -> dict[str, Any]:
    """What an engine is told of a target; see :meth:`edgecompress.runtimes.Engine.load`."""
    return {
        **profile.options,
        "provider": profile.provider,
        "threads": profile.measurement.threads,
        **more,
    }


def write_feeds(feeds: Mapping[str, npt.NDArray[np.generic]], folder: Path) -> dict[str, Any]:
    """Arguments of the worker's ``load`` that name the inputs."""
    import numpy as np

    file = folder / "feeds.npz"
    np.savez(file, *feeds.values())  # by place, since a name could be one of savez's parameters
    return {"feeds": str(file), "names": list(feeds)}


def convert(
    runtime: Runtime, source: Path, folder: Path, profile: TargetProfile, **more: Any
) -> Artifact:
    """Let a runtime make its own files of an ONNX file, in a process of its own without network.

    Raises:
        MeasurementError: Its converter refuses the model or fails; where it crashed, the first node
            that makes it do so is named.
    """
    try:
        return _converted(runtime, source, folder, profile, more)
    except RuntimeCrashError as crash:
        with ScratchFolder() as aside:
            raise named_crash(
                crash,
                source,
                aside,
                lambda part: _converted(runtime, part, aside, profile, more),
            ) from None


def _converted(
    runtime: Runtime, source: Path, folder: Path, profile: TargetProfile, more: dict[str, Any]
) -> Artifact:
    settings = profile.measurement
    with WorkerProcess(
        str(source),
        runtime=runtime.name,
        threads=settings.threads,
        timeout_seconds=settings.timeout_seconds,
    ) as worker:
        answer = worker.ask(
            "convert",
            engine=runtime.engine,
            source=str(source),
            folder=str(folder),
            options=engine_options(profile, **more),
        )
    return Artifact(tuple(map(Path, answer["files"])), tuple(answer.get("notes", ())))


class WorkerSession(Session):
    """A model in a worker process; for outputs, not for latency."""

    def __init__(self, runtime: Runtime, artifact: Artifact, profile: TargetProfile) -> None:
        self._runtime, self._artifact, self._profile = runtime, artifact, profile
        self._folder = tempfile.TemporaryDirectory()
        self._worker: WorkerProcess | None = None

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name; see :meth:`Session.run`."""
        inputs = write_feeds(feeds, Path(self._folder.name))
        if self._worker is None:
            self._worker = self._start(inputs)
        else:
            self._worker.ask("feed", **inputs)
        return self._worker.outputs()

    def _start(self, inputs: dict[str, Any]) -> WorkerProcess:
        settings = self._profile.measurement
        worker = WorkerProcess(
            str(self._artifact.path),
            runtime=self._runtime.name,
            threads=settings.threads,
            timeout_seconds=settings.timeout_seconds,
        )
        try:
            worker.load(
                self._runtime.engine, self._artifact.path, inputs, engine_options(self._profile)
            )
        except BaseException:
            worker.__exit__(None, None, None)
            raise
        return worker

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
            self._worker = None
        self._folder.cleanup()

    def __del__(self) -> None:
        self.close()
