"""This machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from edgecompress.devices import Device, DeviceFacts
from edgecompress.errors import MeasurementError
from edgecompress.runtimes import runtime_class
from edgecompress.runtimes._client import Peer, WorkerProcess
from edgecompress.runtimes._remote import engine_options, write_feeds

if TYPE_CHECKING:
    from edgecompress.devices import Arrays
    from edgecompress.runtimes import Artifact
    from edgecompress.target import TargetProfile

__all__ = ["Local"]


class Local(Device):
    """This machine; each model runs in a worker process of its own."""

    scheme: ClassVar[str] = "local"
    here = True

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def facts(self) -> DeviceFacts:
        """Facts of this machine."""
        from edgecompress.machine.host import host

        here = host()
        return DeviceFacts(
            name="this machine",
            cpu=here.cpu,
            arch=here.arch,
            isa=here.isa,
            cores=here.physical_cores,
            ram_bytes=here.ram_bytes,
            os=here.os,
        )

    def start(
        self,
        artifact: Artifact,
        profile: TargetProfile,
        feeds: Arrays,
        *,
        where: str,
        trace: Path | None = None,
    ) -> Peer:
        """A worker process with the model loaded; see :meth:`Device.start`."""
        settings = profile.measurement
        worker = WorkerProcess(
            where,
            runtime=profile.runtime,
            threads=settings.threads,
            timeout_seconds=settings.timeout_seconds,
            memory_limit_mb=settings.memory_limit_mb,
        )
        try:
            engine = runtime_class(profile.runtime).engine
            options = engine_options(profile, trace=None if trace is None else str(trace))
            inputs = write_feeds(feeds, Path(self._folder.name))
            worker.load(engine, artifact.path, inputs, options)
            if worker.loaded["providers"][0] != profile.provider:
                raise MeasurementError(
                    f"{profile.runtime} did not take {profile.provider}, "
                    f"but {worker.loaded['providers'][0]}",
                    where=where,
                    cure="check that the provider's libraries and drivers are installed",
                )
        except BaseException:
            worker.__exit__(None, None, None)
            raise
        return worker
