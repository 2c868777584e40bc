"""Edits that make room for equalization where a graph has none: products, and Relu for ReLU6."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.qdq import QdqWriter
from edgecompress.quantization.linear_channels import LAYERS, input_channels

__all__ = ["insert_products", "remove_product", "unclip"]


def insert_products(graph: ir.Graph, layers: Iterable[ir.Node]) -> list[ir.Node]:
    """Put a product with ones in front of layers: one for all layers that read a value alike.

    Args:
        graph: The main graph; changed in place.
        layers: Of the graph, with constant weights.

    Returns:
        The new Mul nodes.
    """
    wanted = set(layers)
    readers: dict[tuple[ir.Value, tuple[int, ...]], list[ir.Node]] = {}
    for node in graph:
        value = node.inputs[0] if node in wanted else None
        if value is not None:
            readers.setdefault((value, _ones(node)), []).append(node)
    return [_insert(graph, value, ones, nodes) for (value, ones), nodes in readers.items()]


def remove_product(graph: ir.Graph, product: ir.Node) -> None:
    """Take out what :func:`insert_products` put in."""
    value, ones = product.inputs
    assert value is not None
    assert ones is not None
    ir.convenience.replace_all_uses_with(product.outputs[0], value)
    graph.remove(product, safe=True)
    del graph.initializers[ones.name or ""]


def unclip(model: Model, allowed: Sequence[ir.Node]) -> list[ir.Node]:
    """Turn Clip from 0 to a number, behind a layer and read by layers alone, into Relu.

    This changes what the graph computes for larger numbers.

    Args:
        model: Changed in place.
        allowed: Nodes that may be replaced.

    Returns:
        The new Relu nodes.
    """
    graph, made = model.ir.graph, []
    for node in allowed:
        if not _is_relu6(node):
            continue
        relu = ir.Node("", "Relu", [node.inputs[0]], name=node.name, num_outputs=1)
        old, new = node.outputs[0], relu.outputs[0]
        new.type, new.shape, name = old.type, old.shape, old.name
        graph.insert_before(node, relu)
        ir.convenience.replace_all_uses_with(old, new)
        graph.remove(node, safe=True)
        new.name = name
        made.append(relu)
    return made


def _insert(
    graph: ir.Graph, value: ir.Value, ones: tuple[int, ...], readers: Sequence[ir.Node]
) -> ir.Node:
    writer = QdqWriter(graph)
    factors = writer.initializer(f"{value.name}_factors", np.ones(ones, np.float32))
    taken = {v.name for n in graph for v in n.outputs} | graph.initializers.keys()
    name = f"{value.name}_scaled"
    while name in taken:
        name += "_"
    product = ir.Node("", "Mul", [value, factors], name=name, num_outputs=1)
    out = product.outputs[0]
    out.name, out.type, out.shape = name, value.type, value.shape
    graph.insert_before(readers[0], product)
    for reader in readers:
        reader.replace_input_with(0, out)
    return product


def _ones(node: ir.Node) -> tuple[int, ...]:
    """Shape of the factors in front of a layer."""
    channels, rank = input_channels(node)
    return (channels,) if node.op_type in ("Gemm", "MatMul") else (channels, *[1] * (rank - 2))


def _is_relu6(node: ir.Node) -> bool:
    if node.op_type != "Clip" or node.domain not in DEFAULT_DOMAINS or len(node.inputs) < 3:
        return False
    source, low, out = node.inputs[0], node.inputs[1], node.outputs[0]
    producer = None if source is None else source.producer()
    readers = [use.node for use in out.uses()]
    from_zero = (
        low is not None and low.const_value is not None and not low.const_value.numpy().any()
    )
    return (
        from_zero
        and producer is not None
        and producer.op_type in LAYERS
        and not out.is_graph_output()
        and bool(readers)
        and all(reader.op_type in LAYERS and reader.graph is node.graph for reader in readers)
    )
