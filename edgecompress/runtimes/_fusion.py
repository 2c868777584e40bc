"""Which nodes onnxruntime runs on integers, read from its own optimized graph.

Before the graph is handed over, each node gets a unique tag as its name. onnxruntime keeps the name
of the node that a fused kernel stands for (it may add a suffix), so a kernel can be traced back
without guessing from value names, which it changes freely. A node counts as fused only if its own
tag is found on an integer kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.runtimes import FusionCoverage, RuntimeNode

__all__ = ["tag_of", "tag_nodes", "judge", "read_optimized", "OptimizedGraph"]

# Kernels that compute on integers, whatever stands around them.
_KERNEL = re.compile(
    r"QLinear\w+|QGemm|QAttention|\w+Integer|MatMulIntegerToFloat|DynamicQuantizeMatMul"
    r"|DynamicQuantizeLSTM|MatMulNBits|MatMulBnb4|GatherBlockQuantized"
)
# Operators whose kernels copy or compare values of any type: they run on integers if their data do.
_ANY_TYPE = frozenset(
    {
        *("MaxPool", "NhwcMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"),
        *("DepthToSpace", "Gather", "Slice", "Expand", "Tile", "Resize", "Split", "Concat"),
        *("ArgMax", "Identity"),
    }
)
_QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_QGEMM_OUTPUT_SCALE = 7
# Operators that can vanish into the kernel of the node before them.
_ABSORBED = frozenset({"Add", "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"})
_ABSORBING = frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul"})


class OptimizedGraph:
    """Nodes of an optimized graph, and which of its values are integers of at most 16 bits.

    Args:
        nodes: In topological order.
        integers: Names of inputs and constants of such types.
        initializers: Names of all constants.
    """

    def __init__(
        self,
        nodes: Sequence[RuntimeNode],
        integers: Iterable[str],
        initializers: Iterable[str] = (),
    ) -> None:
        self.nodes = tuple(nodes)
        self.initializers = frozenset(initializers)
        self._integers = set(integers)
        for node in self.nodes:
            self._integers.update(self._integer_outputs(node))

    def _integer_outputs(self, node: RuntimeNode) -> Sequence[str]:
        if node.op_type in _QUANTIZERS:
            return node.outputs[:1]
        if node.op_type == "QGemm":
            has_scale = len(node.inputs) > _QGEMM_OUTPUT_SCALE and node.inputs[_QGEMM_OUTPUT_SCALE]
            return node.outputs if has_scale else ()
        if node.op_type.startswith("QLinear"):
            return node.outputs
        if node.op_type in _ANY_TYPE and node.op_type != "ArgMax" and self._takes_integers(node):
            return node.outputs
        return ()

    def _takes_integers(self, node: RuntimeNode) -> bool:
        return node.inputs[0] in self._integers

    def is_integer(self, node: RuntimeNode) -> bool:
        """Whether the node computes on, or moves, integers."""
        if _KERNEL.fullmatch(node.op_type):
            return True
        return node.op_type in _ANY_TYPE and self._takes_integers(node)

    def tagged(self, tag: str) -> list[RuntimeNode]:
        """Nodes that stand for the node with that tag."""
        return [node for node in self.nodes if node.name.startswith(tag)]


def read_optimized(file: Path, provider: str | None) -> OptimizedGraph:
    """The graph that onnxruntime wrote; its weights are not loaded."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    types = onnx.TensorProto
    small = {types.INT8, types.UINT8, types.INT16, types.UINT16}
    integers = {t.name for t in graph.initializer if t.data_type in small}
    integers |= {v.name for v in graph.input if v.type.tensor_type.elem_type in small}
    nodes = [
        RuntimeNode(n.op_type, n.domain, n.name, tuple(n.input), tuple(n.output), provider)
        for n in graph.node
    ]
    return OptimizedGraph(nodes, integers, (t.name for t in graph.initializer))


def tag_of(index: int) -> str:
    """Name of the node at that place in a tagged model."""
    return f"<{index}>"


def tag_nodes(model: Model) -> Model:
    """A clone whose nodes in the main graph are named by their place, ``<0>``, ``<1>``, ..."""
    tagged = model.clone()
    for index, node in enumerate(tagged.ir.graph):
        node.name = tag_of(index)
    return tagged


def judge(
    model: Model, claimed: Sequence[str], optimized: OptimizedGraph, note: str | None
) -> FusionCoverage:
    """Look up what became of each claimed node.

    Args:
        model: The model before :func:`tag_nodes`.
        claimed: Output names of nodes.
        optimized: What onnxruntime made of the tagged model.
        note: Passed on.
    """
    nodes = list(model.ir.graph)
    tags = {id(node): tag_of(index) for index, node in enumerate(nodes)}
    producers = {value.name: node for node in nodes for value in node.outputs}
    names = [node.name for node in nodes]
    unfused: dict[str, str] = {}
    for output in claimed:
        producer = producers.get(output)
        if producer is None:
            unfused[output] = "the model has no node with this output"
            continue
        found = _became(producer, tags, optimized)
        if not found or not all(optimized.is_integer(node) for node in found):
            unique = producer.name and names.count(producer.name) == 1
            label = str(producer.name) if unique else output
            unfused[label] = _describe(found, optimized)
    return FusionCoverage(
        claimed=len(claimed),
        fused=len(claimed) - len(unfused),
        unfused=unfused,
        integer_kernels=sum(optimized.is_integer(node) for node in optimized.nodes),
        note=note,
    )


def _became(node: ir.Node, tags: dict[int, str], optimized: OptimizedGraph) -> list[RuntimeNode]:
    """Kernels that stand for ``node``: its own, or else those of the node that absorbed it."""
    own = optimized.tagged(tags[id(node)])
    if own or node.op_type not in _ABSORBED:
        return own
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type in _ABSORBING | _ABSORBED:
            found = _became(producer, tags, optimized)
            if found:
                return found
    return []


def _describe(found: Sequence[RuntimeNode], optimized: OptimizedGraph) -> str:
    if not found:
        return "not in the optimized graph: removed, or merged into another node"
    return ", ".join(f"{n.op_type} in float" for n in found if not optimized.is_integer(n))
