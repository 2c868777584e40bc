"""Weights beside the graph: where a model's external data lie, and the graph without or with them.

ONNX keeps large weights in files of their own. ``onnx_ir`` maps them into memory when somebody
reads them; what is here never copies more of them than it has to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
from onnx_ir import ExternalTensor

from edgecompress.errors import ModelError

__all__ = [
    "check_locations",
    "external_tensors",
    "tensor_bytes",
    "tensor_content",
    "embedded",
    "without_weights",
]

# Shapes, axes, pads and the like, which shape inference reads, are far smaller.
_READ_BY_INFERENCE = 1024


def external_tensors(model: ir.Model) -> Iterator[ExternalTensor]:
    """All initializers that lie in files of their own."""
    for _, value in _initializers(model):
        if isinstance(value.const_value, ExternalTensor):
            yield value.const_value


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of the tensor's values; for strings those of their characters."""
    if tensor.dtype == ir.DataType.STRING:
        return sum(len(text) for text in _strings(tensor))
    return tensor.nbytes


def tensor_content(tensor: ir.TensorProtocol) -> bytes:
    """The tensor's values, as bytes that differ where they differ."""
    if tensor.dtype == ir.DataType.STRING:
        return b"".join(len(text).to_bytes(8, "little") + text for text in _strings(tensor))
    return tensor.tobytes() if math.prod(tensor.shape.numpy()) else b""


def _strings(tensor: ir.TensorProtocol) -> Iterator[bytes]:
    for text in tensor.numpy().reshape(-1).tolist():
        yield text if isinstance(text, bytes) else str(text).encode()


def check_locations(model: ir.Model, file: Path) -> None:
    """See that all external data are there, whole, and inside the folder of the model ``file``.

    Raises:
        ModelError: A data file is missing, too short, linked, or outside the model's folder.
    """
    folder = file.absolute().parent
    for tensor in external_tensors(model):
        where = f"{file}: tensor {tensor.name!r}"
        location = os.fspath(tensor.location)
        data = folder / location
        inside = data.resolve().is_relative_to(folder.resolve())
        if Path(location).is_absolute() or ".." in Path(location).parts or not inside:
            raise ModelError(
                f"its external data point outside the model's folder: {location!r}",
                where=where,
                cure="save the model with its data file beside it",
            )
        if not data.is_file():
            raise ModelError(
                f"its external data file {location!r} is missing",
                where=where,
                cure=f"copy it to {data.parent}",
            )
        if data.is_symlink() or data.stat().st_nlink > 1:
            raise ModelError(
                f"its external data file {location!r} is a link, which onnx and onnxruntime refuse",
                where=where,
                cure="put a copy of the data file in its place",
            )
        offset, length = tensor.offset or 0, tensor.length or tensor.nbytes
        if length != tensor.nbytes or offset < 0:
            raise ModelError(
                f"its external data are {length:,} bytes at offset {offset:,}, "
                f"expected {tensor.nbytes:,} bytes for {tensor.dtype.name.lower()}{tensor.shape}",
                where=where,
                cure="export the model again",
            )
        if data.stat().st_size < offset + length:
            raise ModelError(
                f"its external data file {location!r} is truncated: expected at least "
                f"{offset + length:,} bytes, got {data.stat().st_size:,}",
                where=where,
                cure="copy the data file again",
            )


def embedded(model: ir.Model) -> ir.Model:
    """A clone that holds its external tensors itself; they stay mapped, not copied."""
    clone = model.clone()
    for _, value in _initializers(clone):
        if isinstance(value.const_value, ExternalTensor):
            value.const_value = _in_memory(value.const_value)
    return clone


def without_weights(model: ir.Model, *, keep: int = _READ_BY_INFERENCE) -> ir.Model:
    """A clone whose initializers are inputs, so that it holds their types alone.

    Those of at most ``keep`` elements stay, external or not: shape inference reads them.
    """
    clone = model.clone()
    main = clone.graph
    for number, (graph, value) in enumerate(list(_initializers(clone))):
        tensor, name = value.const_value, value.name or ""
        if tensor is None:
            continue
        stays_inside = graph is not main and value.is_graph_output()
        if stays_inside or math.prod(tensor.shape.numpy()) <= keep:
            if isinstance(tensor, ExternalTensor):
                value.const_value = _in_memory(tensor)
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


def _initializers(model: ir.Model) -> Iterator[tuple[ir.Graph, ir.Value]]:
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            yield graph, value


def _in_memory(tensor: ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
