"""Small helpers that find and replace things in a graph, shared by sources and passes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.weights.digests import tensor_digest
from edgecompress.weights.external_data import FileTensor, chunks

__all__ = [
    "all_graphs",
    "infer_shapes",
    "keep_signature",
    "lift_constants",
    "merge_equal_initializers",
    "quiet",
    "remove_identities",
    "same_graph",
    "strip_provenance",
]

_FIRST_BYTES = 4096
_CHATTY = ("onnx_ir", "onnxscript", "torch.export", "torch.onnx")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings and log lines of the exporters and graph libraries, but not errors."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def all_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """The main graph, the model's functions, and the subgraphs of both."""
    tops: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for top in tops:
        yield top
        yield from top.subgraphs()


def strip_provenance(model: Model) -> int:
    """Remove, in place, all metadata and doc strings; names stay.

    Exporters write stack traces, local paths and class names there.

    Returns:
        How many nodes, values, graphs and tensors carried any.
    """
    found = int(_clear(model.ir))
    for graph in all_graphs(model.ir):
        found += _clear(graph)
        if isinstance(graph, ir.Graph):
            found += sum(_clear_value(value) for value in graph.initializers.values())
        found += sum(_clear_value(value) for value in graph.inputs)
        for node in graph:
            found += _clear(node) + sum(_clear_value(value) for value in node.outputs)
            for key, attribute in tuple(node.attributes.items()):
                if attribute.doc_string:
                    node.attributes[key] = _without_doc(attribute)
                    found += 1
    return found


def _clear(holder: ir.Model | ir.Graph | ir.Function | ir.Node | ir.Value) -> bool:
    carried = bool(holder.metadata_props) or bool(holder.doc_string)
    holder.metadata_props.clear()
    holder.doc_string = None
    return carried


def _clear_value(value: ir.Value) -> bool:
    tensor = value.const_value
    # Clones share their tensors, so a tensor is replaced, never changed.
    if tensor is not None and (tensor.metadata_props or tensor.doc_string):
        value.const_value = _own(tensor)
        _clear(value)
        return True
    return _clear(value)


def _without_doc(attribute: ir.Attr) -> ir.Attr:
    if attribute.is_ref():
        return ir.RefAttr(attribute.name, str(attribute.ref_attr_name), attribute.type)
    return ir.Attr(attribute.name, attribute.type, attribute.value)


@contextmanager
def keep_signature(model: Model) -> Iterator[None]:
    """Write names, types and shapes of inputs and outputs back after the edits in the block.

    Graph inputs that are initializers may go, others may not. Shape inference would otherwise
    replace symbolic dimensions that the model's author named.
    """
    graph = model.ir.graph
    inputs = {
        v.name: (v.type, _copied(v.shape)) for v in graph.inputs if v.name not in graph.initializers
    }
    outputs = [(v.name, v.type, _copied(v.shape)) for v in graph.outputs]
    yield
    graph = model.ir.graph
    for value in graph.inputs:
        value.type, value.shape = inputs[value.name]
    for value, (name, dtype, shape) in zip(graph.outputs, outputs, strict=True):
        value.name, value.type, value.shape = name, dtype, shape


def _copied(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()


def lift_constants(model: Model) -> None:
    """Turn Constant nodes into initializers, in place, in the main graph and all subgraphs.

    Strings and constants that are outputs themselves stay nodes.
    """
    for graph in (model.ir.graph, *model.ir.graph.subgraphs()):
        for node in tuple(graph):
            if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
                _lift_constant(graph, node)


def _lift_constant(graph: ir.Graph, node: ir.Node) -> None:
    output = node.outputs[0]
    held = node.attributes.get("value")
    strings = "value_string" in node.attributes or "value_strings" in node.attributes
    if held is not None:
        strings = held.value.dtype is ir.DataType.STRING
        node.attributes["value"] = ir.AttrTensor("value", _own(held.value))
    if output.is_graph_output() or strings:
        return
    tensor = ir.convenience.get_const_tensor(output)
    if tensor is None:
        return
    value = ir.Value(
        name=output.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.numpy().shape),
        const_value=tensor,
    )
    ir.convenience.replace_all_uses_with(output, value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def _own(tensor: Any) -> Any:
    """A tensor apart: naming a value names its tensor, and clones of a model share theirs."""
    if tensor.dtype is ir.DataType.STRING:
        return ir.StringTensor(list(tensor.string_data()), shape=tensor.shape, name=tensor.name)
    if isinstance(tensor, FileTensor):
        return tensor.twin()
    return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def merge_equal_initializers(model: Model) -> int:
    """Let equal initializers of a graph be one, in place; those that are outputs stay.

    Weights of the same type and shape are compared by their first bytes, and read as a whole only
    where those are equal.

    Returns:
        How many are gone.
    """
    gone = 0
    for graph in (model.ir.graph, *model.ir.graph.subgraphs()):
        alike = [_mergeable(graph)]
        for key in (_form, _beginning, tensor_digest):
            alike = [group for values in alike for group in _groups(values, key)]
        for kept, *others in alike:
            for value in others:
                ir.convenience.replace_all_uses_with(value, kept)
                del graph.initializers[value.name or ""]
            gone += len(others)
    return gone


def _mergeable(graph: ir.Graph) -> list[ir.Value]:
    return [
        value
        for value in graph.initializers.values()
        if value.const_value is not None
        and not value.is_graph_input()
        and not value.is_graph_output()
    ]


def _groups(values: list[ir.Value], key: Callable[[Any], Hashable]) -> list[list[ir.Value]]:
    """Values whose tensors have the same key, where there are several."""
    found: dict[Hashable, list[ir.Value]] = {}
    for value in values:
        found.setdefault(key(value.const_value), []).append(value)
    return [group for group in found.values() if len(group) > 1]


def _form(tensor: ir.TensorProtocol) -> Hashable:
    return tensor.dtype, tuple(tensor.shape.numpy())


def _beginning(tensor: ir.TensorProtocol) -> Hashable:
    strings = tensor.dtype is ir.DataType.STRING
    return b"" if strings else bytes(next(chunks(tensor, _FIRST_BYTES), b""))


def remove_identities(model: Model, allowed: Callable[[ir.Node], bool]) -> None:
    """Remove Identity nodes, in place, in all graphs.

    One stays where an output of a graph is an input, an initializer, another output or a value of
    the graph around it: there it is what gives the output a name of its own.
    """
    for graph in all_graphs(model.ir):
        for node in tuple(graph):
            if node.op_type == "Identity" and node.domain in DEFAULT_DOMAINS and allowed(node):
                _remove_identity(graph, node)


def _remove_identity(graph: ir.Graph | ir.Function, node: ir.Node) -> None:
    source, target = node.inputs[0], node.outputs[0]
    if source is None:
        return
    name = target.name if target.is_graph_output() else source.name
    if target.is_graph_output():
        producer = source.producer()
        if producer is None or producer.graph is not node.graph or source.is_graph_output():
            return
    source.shape = source.shape if source.shape is not None else target.shape
    source.type = source.type if source.type is not None else target.type
    ir.convenience.replace_all_uses_with(target, source, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    source.name = name


def infer_shapes(model: Model) -> int:
    """Write shapes and types of intermediate values, in place, where ONNX can infer them.

    Returns:
        How many values had no shape and have one now.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    held = [v.const_value for v in model.ir.graph.initializers.values()]
    if any(tensor is not None and tensor.dtype is ir.DataType.STRING for tensor in held):
        return 0  # onnx_ir asks string tensors for their size, fails and leaves a broken graph
    values = [v for graph in all_graphs(model.ir) for node in graph for v in node.outputs]
    unknown = [v for v in values if v.shape is None]
    with quiet(), keep_signature(model):
        ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model.ir)
    return sum(v.shape is not None for v in unknown)


def same_graph(a: ir.Model, b: ir.Model) -> bool:
    """Whether two graphs are equal, by looking at every byte but those of weights."""
    return all(part(a) == part(b) for part in _PARTS)


_PARTS: tuple[Callable[[ir.Model], object], ...] = (
    lambda m: (m.ir_version, dict(m.opset_imports), dict(m.metadata_props), m.doc_string),
    lambda m: sorted(m.functions),
    lambda m: [ir.to_proto(v).SerializeToString(deterministic=True) for v in m.graph.inputs],
    lambda m: [ir.to_proto(v).SerializeToString(deterministic=True) for v in m.graph.outputs],
    lambda m: {k: id(v.const_value) for k, v in m.graph.initializers.items()},
    lambda m: [ir.to_proto(n).SerializeToString(deterministic=True) for n in m.graph],
    lambda m: [
        ir.to_proto(v).SerializeToString(deterministic=True) for n in m.graph for v in n.outputs
    ],
)
