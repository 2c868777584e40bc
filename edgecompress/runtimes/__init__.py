"""Real runtimes, one per file: what they support, how a model is prepared for them and run.

Worker processes import this package, so it loads neither onnx nor a runtime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    "Session",
    "Artifact",
    "Unsupported",
    "RuntimeNode",
    "FusionCoverage",
    "runtime_names",
    "runtime_class",
]


@dataclass(frozen=True)
class Unsupported:
    """A node that the runtime cannot run, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Artifact:
    """Files that a runtime loads; the first is the one that it is pointed at."""

    files: tuple[Path, ...]

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


class Session(ABC):
    """A loaded model."""

    @abstractmethod
    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """All outputs by name.

        Raises:
            MeasurementError: The runtime refuses the inputs or fails.
        """


class Runtime(ABC):
    """A runtime: knows what it supports, and how to prepare, load and explain a model."""

    name: ClassVar[str]

    @abstractmethod
    def unsupported(self, model: Model) -> list[Unsupported]:
        """Nodes that the runtime cannot run; empty where all is well."""

    @abstractmethod
    def prepare(self, model: Model, folder: Path) -> Artifact:
        """Write the files that the runtime loads into ``folder``.

        Raises:
            OutputError: The folder cannot be written.
        """

    @abstractmethod
    def session(self, artifact: Artifact, profile: TargetProfile) -> Session:
        """Load the files in this process, with the numerics of the target as far as possible.

        Raises:
            MeasurementError: The runtime cannot load them.
        """

    @abstractmethod
    def optimized_nodes(self, model: Model, profile: TargetProfile) -> list[RuntimeNode]:
        """The nodes that the runtime executes for ``model``, from its own optimized graph.

        Raises:
            MeasurementError: The runtime cannot load the model.
        """

    @abstractmethod
    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """Which of the nodes with the outputs ``claimed`` run on integers.

        Raises:
            MeasurementError: The runtime cannot load the model.
        """


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
