"""Engines that fail in the ways that real ones do; workers find them through PYTHONPATH."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.runtimes._session import OnnxRuntimeEngine

if TYPE_CHECKING:
    import numpy.typing as npt


class CrashesAtLoad(OnnxRuntimeEngine):
    """Dies of a segmentation fault where a file has a Softplus in it."""

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if b"Softplus" in Path(path).read_bytes():
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().load(path, options)


class AbortsInRun(OnnxRuntimeEngine):
    """Aborts with a last word in the first run of a file that has an Erf in it."""

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        self.bad = b"Erf" in Path(path).read_bytes()
        return super().load(path, options)

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        if not self.bad:
            return super().bind(feeds)

        def step() -> object:
            os.write(2, b"terminate called: no kernel\n")
            os.abort()

        return step


class CrashesOnce(OnnxRuntimeEngine):
    """Dies where its file does not look as if it had been cut: nothing that can be found."""

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if "first_" not in Path(path).name:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().load(path, options)


class HasChildren(OnnxRuntimeEngine):
    """Starts a process that would outlive it, and tells its number."""

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        child = subprocess.Popen(["sleep", "60"])
        return {**super().load(path, options), "child": child.pid}
