"""ONNX files written piece by piece, so that no weight but the one at hand is in memory.

A protobuf message is a row of fields, each a key, for most a length, and a content; see
https://protobuf.dev/programming-guides/encoding. The weights are the only large fields of a model:
everything else is serialized by protobuf itself, and they are put between, as it would.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir
from onnx_ir import ExternalTensor

from edgecompress.weights.external_data import chunks, in_memory

__all__ = ["pieces", "protobuf_bytes", "with_data_file", "without_weights"]

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9

# Shapes, axes, pads and the like, which shape inference reads, are far smaller.
_READ_BY_INFERENCE = 1024
# Small tensors stay in the graph: shape inference and people who look into it want to see them.
_STAYS_INSIDE_BYTES = 256
# Runtimes map large tensors into memory, which starts at pages, on Windows at blocks of 64 KiB.
_LARGE_BYTES, _LARGE_ALIGNMENT, _ALIGNMENT = 1 << 20, 1 << 16, 64


def pieces(model: ir.Model) -> Iterator[bytes | memoryview]:
    """The model as one protobuf, weights inside; the same bytes for the same graph.

    A piece is valid until the next one is asked for.

    Raises:
        ModelError: A data file is gone, cannot be read, or is shorter than when it was loaded.
    """
    model_ends, graph_ends, entries = _parts(model)
    yield model_ends[0] + _head(_MODEL_GRAPH, _graph_bytes(graph_ends, entries)) + graph_ends[0]
    for tensor, header in entries:
        yield _head(_GRAPH_INITIALIZER, _tensor_bytes(tensor, header))
        if isinstance(tensor, ExternalTensor):
            before, after = _split(header, _TENSOR_RAW_DATA)
            yield before + _head(_TENSOR_RAW_DATA, tensor.nbytes)
            yield from chunks(tensor)
            yield after
        else:
            yield _serialized(_whole(tensor, header))
    yield graph_ends[1] + model_ends[1]


def protobuf_bytes(model: ir.Model) -> int:
    """How long :func:`pieces` are together; weights in files of their own are not read."""
    model_ends, graph_ends, entries = _parts(model)
    inside = _graph_bytes(graph_ends, entries)
    return sum(map(len, model_ends)) + len(_head(_MODEL_GRAPH, inside)) + inside


def with_data_file(model: ir.Model, folder: Path, location: str) -> ir.Model:
    """Write the weights to ``folder / location``; a clone whose weights lie there.

    They lie in the order of the graph, and of the same graph in the same places. The file is made
    even where no weight is large enough for it.

    Raises:
        ModelError: A data file is gone, cannot be read, or is shorter than when it was loaded.
    """
    clone = model.clone()
    with (folder / location).open("wb") as file:
        for graph in (clone.graph, *clone.graph.subgraphs()):
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                if tensor.nbytes > _STAYS_INSIDE_BYTES:
                    offset = _append(file, tensor)
                    value.const_value = ExternalTensor(
                        location,
                        offset,
                        tensor.nbytes,
                        tensor.dtype,
                        shape=ir.Shape(tensor.shape.numpy()),
                        name=name,
                        doc_string=tensor.doc_string,
                        metadata_props=dict(tensor.metadata_props),
                        base_dir=folder,
                    )
                elif isinstance(tensor, ExternalTensor):
                    value.const_value = in_memory(tensor)
    return clone


def _append(file: BinaryIO, tensor: ir.TensorProtocol) -> int:
    """Write a tensor at the end of a file, aligned; returns where."""
    alignment = _LARGE_ALIGNMENT if tensor.nbytes >= _LARGE_BYTES else _ALIGNMENT
    file.write(bytes(-file.tell() % alignment))
    offset = file.tell()
    for piece in chunks(tensor):
        file.write(piece)
    return offset


def without_weights(model: ir.Model, *, keep: int = _READ_BY_INFERENCE) -> ir.Model:
    """A clone whose initializers are inputs, so that it holds their types alone.

    Those of at most ``keep`` elements stay, external or not: shape inference reads them.
    """
    clone = model.clone()
    main = clone.graph
    held = [(g, v) for g in (main, *main.subgraphs()) for v in g.initializers.values()]
    for number, (graph, value) in enumerate(held):
        tensor, name = value.const_value, value.name or ""
        if tensor is None:
            continue
        stays_inside = graph is not main and value.is_graph_output()
        if stays_inside or math.prod(tensor.shape.numpy()) <= keep:
            if isinstance(tensor, ExternalTensor):
                value.const_value = in_memory(tensor)
            continue
        del graph.initializers[name]
        # Without its tensor first: a tensor is shared with the original and renamed with the value.
        value.const_value = None
        if value.is_graph_input():
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        if graph is not main:
            value.name = f"{name} ({number})"  # sibling subgraphs may share names
        main.inputs.append(value)
    return clone


_Entry = tuple[ir.TensorProtocol, Any]
_Ends = tuple[bytes, bytes]


def _parts(model: ir.Model) -> tuple[_Ends, _Ends, list[_Entry]]:
    """Model without graph and graph without initializers, cut where those go; and those.

    An initializer is a tensor and its protobuf without values.
    """
    clone = model.clone()
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, value in clone.graph.initializers.items():
        if value.const_value is not None:
            tensors[name] = value.const_value
            value.const_value = _stub(value.const_value, name)
    for graph in clone.graph.subgraphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ExternalTensor):
                value.const_value = in_memory(value.const_value)
    whole = ir.to_proto(clone)
    entries: list[_Entry] = []
    for header in whole.graph.initializer:
        header.ClearField("external_data")
        header.ClearField("data_location")
        entries.append((tensors[header.name], copy.deepcopy(header)))
    whole.graph.ClearField("initializer")
    graph_ends = _split(whole.graph, _GRAPH_INITIALIZER)
    whole.ClearField("graph")
    return _split(whole, _MODEL_GRAPH), graph_ends, entries


def _stub(tensor: ir.TensorProtocol, name: str) -> ExternalTensor:
    """The tensor without its values."""
    return ExternalTensor(
        "",
        None,
        None,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _whole(tensor: ir.TensorProtocol, header: Any) -> Any:
    proto = ir.to_proto(tensor)
    proto.name = header.name
    return proto


def _graph_bytes(ends: _Ends, entries: list[_Entry]) -> int:
    total = sum(map(len, ends))
    for tensor, header in entries:
        length = _tensor_bytes(tensor, header)
        total += len(_head(_GRAPH_INITIALIZER, length)) + length
    return total


def _tensor_bytes(tensor: ir.TensorProtocol, header: Any) -> int:
    if not isinstance(tensor, ExternalTensor):
        return int(_whole(tensor, header).ByteSize())
    raw = len(_head(_TENSOR_RAW_DATA, tensor.nbytes)) + tensor.nbytes
    return int(header.ByteSize()) + raw


def _split(message: Any, number: int) -> _Ends:
    """A message's fields before and after the one of that number, serialized."""
    before, after = copy.deepcopy(message), copy.deepcopy(message)
    for field, _ in message.ListFields():
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return _serialized(before), _serialized(after)


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _head(number: int, length: int) -> bytes:
    """Key and length of a field that has a length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
