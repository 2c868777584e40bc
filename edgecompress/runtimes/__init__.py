"""Real runtimes, one per file: what they support, how a model is prepared for them and run.

Worker processes import this package, so it loads neither onnx nor a runtime.
"""

from __future__ import annotations

import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress import members
from edgecompress.errors import TargetError

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


@dataclass(frozen=True)
class Unsupported:
    """A node that the runtime cannot run, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Artifact:
    """Files that a runtime loads; the first is the one that it is pointed at.

    Attributes:
        files: The files.
        notes: What was done to the model on the way and is worth knowing, a sentence each, such as
            that it was given in float and quantized again with the same ranges.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file that the runtime is pointed at."""
        return self.files[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True)
class RuntimeNode:
    """A node of the graph that the runtime made of a model and really executes.

    Attributes:
        op_type: Operator, e.g. ``QLinearConv``.
        domain: Domain of the operator; empty for ONNX's own.
        name: Name that the runtime gave it, often that of the node that it replaces.
        inputs: Names of its inputs; empty for inputs left out.
        outputs: Names of its outputs.
        provider: Back end that runs it, or None where the runtime does not tell.
    """

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    provider: str | None


@dataclass(frozen=True)
class FusionCoverage:
    """Of the nodes that passes claimed, how many the runtime runs on integers.

    Attributes:
        claimed: Number of nodes claimed.
        fused: Number of these that an integer kernel was found for. A node counts only if its own
            kernel was found, never because a float one was not.
        unfused: For each other node, what the runtime made of it.
        integer_kernels: Number of integer kernels in the whole optimized graph.
        note: Where another provider had to stand in for the target's own; then the figures are an
            estimate for the target.
    """

    claimed: int
    fused: int
    unfused: Mapping[str, str] = field(default_factory=dict)
    integer_kernels: int = 0
    note: str | None = None


@dataclass(frozen=True)
class PlacedNode:
    """Where a node of the model runs.

    Attributes:
        node: Its name in the model, or that of its first output where it has none.
        op: Its operator in the model.
        runs_on: The runtime's name for the back end or processor, e.g. ``QNNExecutionProvider``.
        kernel: What the runtime made of it, e.g. ``QLinearConv``; empty where it does not tell.
        integer: Whether that computes on, or moves, integers; None where the runtime does not tell.
        partition: Number of the connected piece of the graph that it belongs to on that back end.
    """

    node: str
    op: str
    runs_on: str
    kernel: str = ""
    integer: bool | None = None
    partition: int | None = None


@dataclass(frozen=True)
class Break:
    """A node that keeps its neighbours from one accelerator or from integers.

    Attributes:
        node: Its name in the model.
        op: Its operator.
        reason: What the runtime did with it, and why as far as it tells.
        mend: The change of the model that would help; empty where none is known.
    """

    node: str
    op: str
    reason: str
    mend: str = ""


@dataclass(frozen=True)
class Placement:
    """Which nodes run where, from the runtime's own word.

    Attributes:
        nodes: Nodes of the model in topological order.
        accelerator: Name of the back end that is wanted.
        partitions: Connected pieces of the graph on that back end; 1 is best.
        breaks: What stands between the pieces, or keeps them from integers.
        source: What told so, e.g. ``graph assignment of onnxruntime 1.31.1``.
        note: Where something else stood in for the target, or None.
    """

    nodes: tuple[PlacedNode, ...]
    accelerator: str
    partitions: int
    breaks: tuple[Break, ...]
    source: str
    note: str | None = None

    @property
    def on_accelerator(self) -> int:
        """Number of nodes that run where they should."""
        return sum(node.runs_on == self.accelerator for node in self.nodes)


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
        """Write the times per operator and tell where: ``profile`` (onnxruntime's format), or
        ``rows``: a list of ``{name, op, provider, mean_us, calls}``.
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

    def close(self) -> None:
        """Give back what the session holds; it cannot be run again."""


class Runtime(ABC):
    """A runtime: knows what it supports, and how to prepare, load and explain a model.

    Attributes:
        name: Name of the member; that of its file.
        engine: ``module:class`` of its :class:`Engine`.
        packages: Import names that its engine needs.
        install: The command that brings them.
    """

    name: ClassVar[str]
    engine: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""

    def present(self, profile: TargetProfile) -> tuple[bool, str]:
        """Whether the runtime, and the profile's provider, are installed here; if not, the cure."""
        if python_of(self.name) is not None:
            return True, "this machine"
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return False, f"{self.name} is not installed here; {self.install} brings it"
        return True, "this machine"

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
