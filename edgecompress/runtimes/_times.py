"""Times of many small models against one another, in one worker process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecompress.files import ScratchFolder
from edgecompress.runtimes._client import WorkerProcess

if TYPE_CHECKING:
    from edgecompress.target import TargetProfile

__all__ = ["run_times"]


def run_times(models: Sequence[bytes], profile: TargetProfile) -> list[float]:
    """Least seconds of a run of each model on a target that this machine reaches.

    They are loaded together and take turns, so that other load on the machine hits all of them
    alike; of the runs of each the fastest counts, since other load only ever adds to it.

    Args:
        models: Serialized; of fixed input shapes. Inputs are random.
        profile: Provider and threads.

    Raises:
        MeasurementError: A model cannot be loaded or run, or the worker died or hung.
    """
    settings = profile.measurement
    if not models:
        return []
    with (
        ScratchFolder() as folder,
        WorkerProcess(
            "single layers", threads=settings.threads, timeout_seconds=settings.timeout_seconds
        ) as worker,
    ):
        files = []
        for number, model in enumerate(models):
            file = folder / f"{number}.onnx"
            file.write_bytes(model)
            files.append(os.fspath(file))
        answer = worker.ask(
            "times", models=files, provider=profile.provider, threads=settings.threads
        )
    return [float(seconds) for seconds in answer["seconds"]]
