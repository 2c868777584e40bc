"""Real runtimes, one per file: what they support, how a model is prepared for them and run.

Worker processes import this package, so it loads neither onnx nor a runtime.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress import members
from edgecompress.errors import TargetError
from edgecompress.runtimes._records import (
    Artifact,
    Break,
    FusionCoverage,
    PlacedNode,
    Placement,
    RuntimeNode,
    Unsupported,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = [
    "Runtime",
    "Engine",
    "Session",
    "Artifact",
    "Placement",
    "PlacedNode",
    "Break",
    "Unsupported",
    "RuntimeNode",
    "FusionCoverage",
    "runtime_names",
    "runtime_class",
    "python_of",
]


class Engine(ABC):
    """The side of a runtime that lives in a worker process, with one loaded model.

    The worker may run in another Python environment than this one (see :func:`python_of`), with
    nothing in it but numpy and the runtime. So the module of an engine imports, at its top, only
    the standard library and this module; the runtime's own library is imported in methods.
    """

    @abstractmethod
    def start(self) -> str:
        """Import the runtime, so that what that costs is not taken for the model's; its version."""

    @abstractmethod
    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load the model.

        Args:
            path: First file of the artifact.
            options: ``provider`` and ``threads`` of the target, its ``options`` table, and
                ``trace``: prefix of a file for times per operator, or None.

        Returns:
            Facts worth reporting; ``providers`` names what really runs it, the wanted one first.
        """

    @abstractmethod
    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A function that runs the model once on ``feeds``; nothing but its call is timed."""

    @abstractmethod
    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs by their names in the ONNX model, from what the bound function returned."""

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make the runtime's own files of an ONNX file, without network.

        Returns:
            ``files``: paths, the one to load first; ``notes``: a list of sentences.
        """
        raise NotImplementedError(f"{type(self).__name__} loads ONNX files as they are")

    def memory(self) -> Mapping[str, Any]:
        """Figures of the runtime's own allocator, in bytes, by name; empty where it has none."""
        return {}

    def end_profiling(self) -> Mapping[str, Any]:
        """Times per operator of the runs so far.

        Returns:
            ``profile``: a file that onnxruntime wrote, or ``rows``: a list of ``{name, op,
            provider, mean_us, calls}``.
        """
        return {"rows": []}


class Session(ABC):
    """A loaded model."""

    @abstractmethod
    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name.

        Raises:
            MeasurementError: The runtime refuses the inputs or fails.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """Give back what the session holds; it cannot be run again."""


class Runtime(ABC):
    """A runtime: knows what it supports, and how to prepare, load and explain a model.

    Attributes:
        name: Name of the member; that of its file.
        engine: ``module:class`` of its :class:`Engine`.
        packages: Import names that its engine needs.
        install: The command that brings them.
        fixed_shapes: Whether its files are made for one shape of the inputs.
        timed: Whether times taken here mean anything; those of an emulator do not.
        untimed_reason: Why not.
        half: Whether it computes float graphs in 16 bits unless told otherwise.
    """

    name: ClassVar[str]
    engine: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""
    fixed_shapes: ClassVar[bool] = False
    timed: ClassVar[bool] = True
    untimed_reason: ClassVar[str] = ""
    half: ClassVar[bool] = False

    def present(self, profile: TargetProfile) -> tuple[bool, str]:
        """Whether the runtime, and the profile's provider, are installed here; if not, the cure."""
        if python_of(self.name) is not None:
            return True, "this machine"
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return False, f"{self.name} is not installed here; {self.install} brings it"
        return True, "this machine"

    def runs_here(self) -> bool:
        """Whether prepared files can be run on this system at all, timed or not."""
        return True

    @abstractmethod
    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that the runtime cannot run; empty where all is well."""

    @abstractmethod
    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write the files that the runtime loads into ``folder``.

        Raises:
            OutputError: The folder cannot be written.
            MeasurementError: The runtime's converter refuses the model or fails.
        """

    def session(self, artifact: Artifact, profile: TargetProfile) -> Session:
        """Load the files, with the numerics of the target as far as possible; close it after use.

        Raises:
            MeasurementError: The runtime cannot load them.
        """
        from edgecompress.runtimes._remote import WorkerSession

        return WorkerSession(self, artifact, profile)

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage | None:
        """Which of the nodes with the outputs ``claimed`` run on integers.

        None where the runtime does not tell.

        Raises:
            MeasurementError: The runtime cannot load the model.
        """
        return None

    def estimate(self, model: Model, profile: TargetProfile) -> Mapping[str, Any] | None:
        """The vendor's own estimate of a run: ``latency_ms``, ``memory_mb``, ``source``.

        None where there is none.

        Raises:
            MeasurementError: The vendor's tool refuses the model or fails.
        """
        return None

    def placement(self, model: Model, profile: TargetProfile) -> Placement | None:
        """Where each node runs and what breaks the chain; None where the runtime does not tell.

        Raises:
            MeasurementError: The runtime cannot load the model.
        """
        return None


def python_of(runtime: str) -> str | None:
    """Interpreter of another environment that a runtime is installed in, or None for this one.

    Named by the environment variable ``EDGECOMPRESS_PYTHON_<RUNTIME>``, since some runtimes need
    other versions of packages than this one.
    """
    return os.environ.get(f"EDGECOMPRESS_PYTHON_{runtime.upper().replace('-', '_')}") or None


def runtime_names() -> list[str]:
    """Names of all installed runtimes, sorted."""
    return members.names("edgecompress.runtimes")


def runtime_class(name: str) -> type[Runtime]:
    """The class of a runtime.

    Raises:
        TargetError: There is no runtime of that name.
    """
    return members.load(
        "edgecompress.runtimes",
        name,
        Runtime,  # type: ignore[type-abstract]
        lambda message: TargetError(message, where="runtime"),
    )
