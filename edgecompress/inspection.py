"""What a model holds: layers, blocks, costs, and what could compress it.

Only shapes are looked at; weights are read for nothing but the digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from edgecompress.costs import COSTLY, int_attribute, node_macs, total_macs
from edgecompress.graph_pass import pass_class, pass_names
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.quantized_form import quantized_form
from edgecompress.results import BlockInfo, Inspection, LayerInfo

__all__ = ["inspect_model", "list_layers", "macs"]

# Their constants are scales, sizes and fill values, not weights.
_WITHOUT_WEIGHTS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Resize", "Upsample", "Clip", "Pad", "Constant"}
)
_INDEX_TYPES = frozenset(
    {
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.UINT64,
        ir.DataType.UINT32,
        ir.DataType.BOOL,
        ir.DataType.STRING,
    }
)


def inspect_model(model: Model) -> Inspection:
    """All that ``edgecompress inspect`` shows of a model.

    Args:
        model: The model; it is not changed.
    """
    graph = _at_batch_one(model)
    nodes = list(graph.all_nodes())
    form = quantized_form(model)
    return Inspection(
        path=str(model.path or "model"),
        opset=model.opset,
        producer=f"{model.ir.producer_name or ''} {model.ir.producer_version or ''}".strip(),
        digest=model.digest,
        size_bytes=_file_bytes(model),
        signature=model.signature.as_json(),
        nodes=len(nodes),
        operators=dict(Counter(_operator(node) for node in nodes).most_common()),
        parameters=_parameters(nodes),
        macs=total_macs(graph),
        already_quantized=form is not None,
        quantized_form=None if form is None else str(form),
        unsupported=_unsupported(nodes, model.ir.opset_imports),
        layers=_layers(nodes),
        blocks=_blocks(model),
    )


def _blocks(model: Model) -> list[BlockInfo]:
    from edgecompress.walk.blocks import find_blocks

    return [
        BlockInfo(
            name=block.name,
            nodes=len(block.nodes),
            layers=block.layers,
            parameters=block.parameters,
            inputs=list(block.inputs),
            outputs=list(block.outputs),
            live_bytes=block.live_bytes,
            opaque=block.opaque,
            group=None if block.repeat < 0 else block.repeat,
        )
        for block in find_blocks(model)
    ]


def list_layers(model: Model) -> list[LayerInfo]:
    """The nodes that carry weights or cost multiply-accumulates; weights are not read.

    Args:
        model: The model; it is not changed.
    """
    return _layers(_at_batch_one(model).all_nodes())


def _layers(nodes: Iterable[ir.Node]) -> list[LayerInfo]:
    return [layer for node in nodes if (layer := _layer(node)) is not None]


def macs(model: Model) -> dict[str, int | None]:
    """Multiply-accumulates at batch 1 of each node that has any, by its first output's name.

    The first dimension of each graph input counts as 1 where it is symbolic. Nodes whose shapes
    depend on other symbolic dimensions are None.

    Args:
        model: The model; it is not changed.
    """
    return {
        node.outputs[0].name or "": node_macs(node)
        for node in _at_batch_one(model).all_nodes()
        if node.op_type in COSTLY
    }


def _at_batch_one(model: Model) -> ir.Graph:
    """A copy of the graph, functions inlined, with shapes inferred for batch 1."""
    clone = model.clone().ir
    if clone.functions:
        InlinePass()(clone)
    batch = set()
    for value in clone.graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            batch.add(value.shape[0].value)
            value.shape = ir.Shape([1, *value.shape.dims[1:]])
    batch.discard(None)
    for value in _values(clone.graph):
        if value.shape is not None and not value.shape.is_static():
            dims = [
                1 if isinstance(d, ir.SymbolicDim) and d.value in batch else d for d in value.shape
            ]
            value.shape = ir.Shape(dims)
    ShapeInferencePass(check_type=False, strict_mode=False)(clone)
    return clone.graph


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}::{node.op_type}"


def _layer(node: ir.Node) -> LayerInfo | None:
    tensors = [tensor for _, tensor in _weights(node)]
    count = _node_parameters(node, tensors)
    if node.op_type not in COSTLY and not tensors:
        return None
    largest = max(tensors, key=lambda tensor: tensor.size, default=None)
    return LayerInfo(
        node=node.name or node.outputs[0].name or "",
        op=_operator(node),
        weight_shape=None if largest is None else [int(d) for d in largest.shape.numpy()],
        parameters=count,
        bytes=sum(tensor.nbytes for tensor in tensors),
        macs=node_macs(node) if node.op_type in COSTLY else 0,
        passes=_compressing_passes(node.op_type) if count else [],
    )


@cache
def _compressing_passes(op_type: str) -> list[str]:
    return [
        name
        for name in pass_names()
        if op_type in getattr(pass_class(name), "compresses", frozenset())
    ]


def _weights(node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Constants among the inputs that are weights, seen through DequantizeLinear."""
    if node.op_type in _WITHOUT_WEIGHTS:
        return
    for value in node.inputs:
        if value is None:
            continue
        producer = value.producer()
        dequantized = producer is not None and producer.op_type == "DequantizeLinear"
        source = producer.inputs[0] if producer is not None and dequantized else value
        tensor = None if source is None else ir.convenience.get_const_tensor(source)
        if source is None or tensor is None:
            continue
        if tensor.size == 1 and node.op_type not in COSTLY:
            continue  # a factor or a bound
        # A bias is int32 behind DequantizeLinear; elsewhere int32 is an index or a shape.
        if dequantized or tensor.dtype not in _INDEX_TYPES:
            yield source, tensor


def _node_parameters(node: ir.Node, tensors: list[ir.TensorProtocol]) -> int:
    if node.op_type == "MatMulNBits":  # packed: the array has fewer elements than the matrix
        return int_attribute(node, "K") * int_attribute(node, "N")
    return sum(tensor.size for tensor in tensors)


def _parameters(nodes: list[ir.Node]) -> int:
    """Weights of all nodes; one that several nodes share counts once."""
    seen: set[ir.Value] = set()
    total = 0
    for node in nodes:
        new = [(value, tensor) for value, tensor in _weights(node) if value not in seen]
        seen.update(value for value, _ in new)
        if new:
            total += _node_parameters(node, [tensor for _, tensor in new])
    return total


def _unsupported(nodes: list[ir.Node], opsets: Mapping[str, int]) -> list[str]:
    """Operators that :mod:`edgecompress.torchgraph` has no translation of, at these opsets."""
    from edgecompress.torchgraph import has_translation

    return sorted({_operator(node) for node in nodes if not has_translation(node, opsets)})


def _file_bytes(model: Model) -> int:
    """Bytes on disk, external data included; of the protobuf where the model is not on disk."""
    if model.path is None or not model.path.is_file():
        return model.size_bytes
    return sum(file.stat().st_size for file in {model.path, *model.data_files})
