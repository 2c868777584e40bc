"""What runtimes answer: files, nodes that they refuse, and where the others run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "Artifact",
    "Unsupported",
    "RuntimeNode",
    "FusionCoverage",
    "PlacedNode",
    "Break",
    "Placement",
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
        runs_on: The runtime's name for the back end or processor, e.g. ``QNNExecutionProvider``;
            empty where it runs nowhere by itself: merged into another, or computed at load.
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
