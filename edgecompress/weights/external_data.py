"""Weights in files of their own: whether it is safe to read them, and reading them.

ONNX keeps large weights beside the graph. What is here reads them when somebody asks, into memory
that goes with the array: mapped pages would count as memory of the process until the model goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir import ExternalTensor

from edgecompress.errors import ModelError
from edgecompress.weights.data_file import DataFile

__all__ = [
    "FileTensor",
    "attach_files",
    "check_locations",
    "chunks",
    "external_tensors",
    "in_memory",
    "read",
    "tensor_bytes",
]

_CHUNK_BYTES = 1 << 23
_SMALL_BYTES = 4096


class FileTensor(ExternalTensor):
    """A tensor that reads its file each time it is asked for values, and keeps none of them.

    Args:
        file: The file; it must lie at ``base_dir / location``.
        location: Path of the file from the model's folder.
        offset: Where its bytes begin.
        dtype: Element type.
        shape: Dimensions.
        name: Name of the tensor.
        base_dir: The model's folder.
    """

    def __init__(
        self,
        file: DataFile,
        location: str | os.PathLike[str],
        offset: int,
        dtype: ir.DataType,
        *,
        shape: ir.Shape,
        name: str,
        base_dir: str | os.PathLike[str],
    ) -> None:
        super().__init__(location, offset, None, dtype, shape=shape, name=name, base_dir=base_dir)
        self._length = self.nbytes
        self.file = file

    def fill(self, at: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``at`` on.

        Raises:
            ModelError: The data file is gone, cut short, or another one by now.
        """
        try:
            self.file.fill((self.offset or 0) + at, buffer)
        except ModelError as error:
            error.where = f"{error.where}: tensor {self.name!r}"
            raise

    def twin(self) -> FileTensor:
        """Another tensor of the same values and name, without doc string and metadata."""
        return FileTensor(
            self.file,
            self.location,
            self.offset or 0,
            self.dtype,
            shape=ir.Shape(self.shape.numpy()),
            name=self.name,
            base_dir=self.base_dir,
        )

    def numpy(self) -> npt.NDArray[Any]:
        """The values, in memory of their own."""
        stored = np.empty(self.nbytes, np.uint8)
        self.fill(0, stored.data)
        shape = self.shape.numpy()
        if self.dtype.bitwidth < 8:
            return ir.PackedTensor(stored, self.dtype, shape=shape, name=self.name).numpy()
        # The files are little-endian on every machine.
        return stored.view(np.dtype(self.dtype.numpy()).newbyteorder("<")).reshape(shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """The values, as numpy asks for them."""
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def tobytes(self) -> bytes:
        """The bytes as the file holds them."""
        stored = bytearray(self.nbytes)
        self.fill(0, memoryview(stored))
        return bytes(stored)

    def tofile(self, file: Any) -> None:
        """Write the bytes to an open file, piece by piece."""
        for piece in chunks(self):
            file.write(piece)


def read(tensor: ir.TensorProtocol) -> npt.NDArray[Any]:
    """Values of a tensor, without leaving pages of a mapped file in memory.

    Args:
        tensor: Any tensor. One that lies in a file is read into memory of its own, which the caller
            may change and which goes with the array; of others their array comes back.

    Returns:
        An array of the tensor's shape, with one element per value also for 2- to 6-bit types.

    Raises:
        ModelError: The data file is gone, cut short, or another one than was loaded.
    """
    return _from_file(tensor).numpy()


def chunks(tensor: ir.TensorProtocol, size: int = _CHUNK_BYTES) -> Iterator[memoryview]:
    """The tensor's bytes as files hold them, piece by piece.

    A piece is valid until the next one is asked for. Strings have no such form.

    Raises:
        ModelError: As :func:`read`.
    """
    source = _from_file(tensor)
    if not isinstance(source, FileTensor):
        whole = memoryview(source.tobytes())
        yield from (whole[at : at + size] for at in range(0, len(whole), size))
        return
    buffer = memoryview(bytearray(min(size, source.nbytes)))
    for at in range(0, source.nbytes, size):
        piece = buffer[: min(size, source.nbytes - at)]
        source.fill(at, piece)
        yield piece


def _from_file(
    tensor: ir.TensorProtocol, files: dict[str, DataFile] | None = None
) -> ir.TensorProtocol:
    """The tensor as a :class:`FileTensor`, where it lies in a file."""
    if not isinstance(tensor, ExternalTensor) or isinstance(tensor, FileTensor):
        return tensor
    files = {} if files is None else files
    path = os.path.abspath(tensor.path)
    file = files[path] if path in files else files.setdefault(path, DataFile(path))
    return FileTensor(
        file,
        tensor.location,
        tensor.offset or 0,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def attach_files(model: ir.Model) -> list[Path]:
    """Make all external tensors of a fresh model, in place, such that hold no memory.

    Small ones, which shape inference wants to see, and those in attributes move into memory.

    Returns:
        The data files, sorted.

    Raises:
        ModelError: A data file is missing or cut short.
    """
    paths = {Path(tensor.path) for tensor in external_tensors(model)}
    files: dict[str, DataFile] = {}
    for value in _initializers(model):
        tensor = value.const_value
        if isinstance(tensor, ExternalTensor) and tensor.nbytes <= _SMALL_BYTES:
            value.const_value = in_memory(tensor)
        elif isinstance(tensor, ExternalTensor):
            value.const_value = copied(tensor, _from_file(tensor, files))
    for node in model.graph.all_nodes():
        for name, attribute in tuple(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(
                attribute.value, ExternalTensor
            ):
                node.attributes[name] = ir.AttrTensor(name, in_memory(attribute.value))
    return sorted(paths)


def in_memory(tensor: ExternalTensor) -> ir.TensorProtocol:
    """The tensor with its values in memory.

    Raises:
        ModelError: As :func:`read`.
    """
    shape = ir.Shape(tensor.shape.numpy())
    return copied(tensor, ir.Tensor(read(tensor), dtype=tensor.dtype, shape=shape))


def copied(old: ir.TensorProtocol, new: ir.TensorProtocol) -> ir.TensorProtocol:
    """``new`` with the name, doc string and metadata of ``old``."""
    new.name, new.doc_string = old.name, old.doc_string
    new.metadata_props.update(old.metadata_props)
    return new


def external_tensors(model: ir.Model) -> Iterator[ExternalTensor]:
    """All tensors that lie in files of their own, those in attributes included."""
    for value in _initializers(model):
        if isinstance(value.const_value, ExternalTensor):
            yield value.const_value
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and isinstance(
                attribute.value, ExternalTensor
            ):
                yield attribute.value


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.initializers.values()


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of the tensor's values; for strings those of their characters."""
    if tensor.dtype == ir.DataType.STRING:
        texts = tensor.numpy().reshape(-1).tolist()
        return sum(len(text if isinstance(text, bytes) else str(text).encode()) for text in texts)
    return tensor.nbytes


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
