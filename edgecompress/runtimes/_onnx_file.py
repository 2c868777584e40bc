"""Facts of an ONNX file that need no runtime and none of its weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgecompress.errors import MeasurementError
from edgecompress.runtimes import Artifact

__all__ = ["SourceGraph", "SourceNode", "artifact_of", "named_copy", "without_suffixes"]

# What onnxruntime appends to the name of what a kernel stands for.
_SUFFIXES = re.compile(r"(_token_\d+|_nchwc|/MatMulAddFusion|/duplicated)+$")
# Operators that a blocked convolution or pool takes in from behind it.
_ABSORBED = frozenset(
    {"Add", "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "BatchNormalization"}
)


def artifact_of(given: Artifact | Path) -> Artifact:
    """An ONNX file with the files that hold its weights; an artifact as it is.

    Raises:
        MeasurementError: There is no such file.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    if isinstance(given, Artifact):
        return given
    if not given.is_file():
        raise MeasurementError("no such file", where=str(given), cure="check the path")
    try:
        tensors = onnx.load(given, load_external_data=False).graph.initializer
    except DecodeError:
        tensors = []  # another format, or broken: the runtime will tell
    places = {
        given.parent / ExternalDataInfo(tensor).location
        for tensor in tensors
        if tensor.data_location == tensor.EXTERNAL
    }
    return Artifact((given, *sorted(place for place in places if place.is_file())))


@dataclass(frozen=True)
class SourceNode:
    """Operator, inputs and outputs of a node in the file."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class SourceGraph:
    """Nodes of a file, by their own names where these are unique, and by the values they make."""

    by_name: Mapping[str, SourceNode] = field(default_factory=dict)
    by_value: Mapping[str, SourceNode] = field(default_factory=dict)

    def stands_for(self, kernel: str, op: str, kernels: Collection[str]) -> tuple[str, ...]:
        """Outputs of the nodes that a kernel computes, the one that gave it its operator first.

        Args:
            kernel: onnxruntime's name for it: that of a node, or, for blocked convolutions and
                pools (``_nchwc``), of the value that it makes.
            op: onnxruntime's operator for it.
            kernels: Names of all kernels, without suffixes.
        """
        name, suffixes = without_suffixes(kernel)
        if "_nchwc" in suffixes and name in self.by_value:
            return self._behind(name, op, kernels) or self.by_value[name].outputs
        return self.by_name[name].outputs if name in self.by_name else ()

    def _behind(self, value: str, op: str, kernels: Collection[str]) -> tuple[str, ...]:
        """From a value back through what a kernel absorbs to the node of operator ``op``."""
        node = self.by_value.get(value)
        if node is None:
            return ()
        if node.op == op:
            return node.outputs
        if node.op in _ABSORBED:
            for other in node.inputs:
                found = () if other in kernels else self._behind(other, op, kernels)
                if found:
                    return (*found, *node.outputs)
        return ()


def without_suffixes(kernel: str) -> tuple[str, str]:
    """A kernel's name in two parts: the source's name, and what onnxruntime appended."""
    match = _SUFFIXES.search(kernel)
    return (kernel[: match.start()], match.group()) if match else (kernel, "")


def named_copy(file: Path, folder: Path) -> tuple[Path, SourceGraph]:
    """A file that computes the same and whose nodes all have names of their own, and its graph.

    Kernels can only be traced back to nodes by name. It is ``file`` itself where nothing had to be
    named, or where its weights lie in other files, next to which a copy would have to lie.
    """
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError:
        return file, SourceGraph()  # another format, which has no names to offer
    counts = Counter(node.name for node in model.graph.node)
    nameless = [n for n in model.graph.node if not n.name or counts[n.name] > 1]
    external = any(t.data_location == t.EXTERNAL for t in model.graph.initializer)
    if nameless and not external:
        for node in nameless:
            node.name = f"{node.op_type}:{node.output[0]}"
        file = folder / file.name
        onnx.save(model, file)
    counts = Counter(node.name for node in model.graph.node)
    by_name, by_value = {}, {}
    for node in model.graph.node:
        source = SourceNode(node.op_type, tuple(node.input), tuple(node.output))
        by_value.update(dict.fromkeys(source.outputs, source))
        if node.name and counts[node.name] == 1:
            by_name[node.name] = source
    return file, SourceGraph(by_name, by_value)
