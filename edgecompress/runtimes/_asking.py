"""Asking the engine of a runtime something about a model, in a worker process without network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompress.runtimes._client import WorkerProcess
from edgecompress.runtimes._remote import engine_options

if TYPE_CHECKING:
    from pathlib import Path

    from edgecompress.runtimes import Runtime
    from edgecompress.target import TargetProfile

__all__ = ["ask_engine"]


def ask_engine(
    runtime: Runtime, source: Path, profile: TargetProfile, question: str, **more: Any
) -> dict[str, Any]:
    """What ``Engine.convert`` answers to a ``question`` in its options, in place of files.

    Raises:
        MeasurementError: The worker failed.
    """
    settings = profile.measurement
    with WorkerProcess(
        str(source),
        runtime=runtime.name,
        threads=settings.threads,
        timeout_seconds=settings.timeout_seconds,
    ) as worker:
        return worker.ask(
            "convert",
            engine=runtime.engine,
            source=str(source),
            folder=str(source.parent),
            options=engine_options(profile, question=question, **more),
        )
