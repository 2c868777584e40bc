"""New weights of large models on disk, until the model is saved.

A pass makes weights one block at a time. Those of a large model would pile up in memory; a spool
takes them to a scratch file, and gives tensors that read from there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy.typing as npt
import onnx_ir as ir
from onnx_ir import ExternalTensor

from edgecompress import files
from edgecompress.weights.data_file import DataFile
from edgecompress.weights.external_data import FileTensor, chunks, copied

__all__ = ["WeightSpool"]

_NAME = "weights.data"
_ALIGNMENT = 64
_KEEP_BYTES = 256_000_000


class WeightSpool:
    """A scratch file that takes tensors; made when the first one comes.

    It has no name, so that it is gone with the process, however that ends; and before, once
    neither the spool nor one of its tensors is in use, or after :meth:`close`. The tensors cannot
    be handed to another process: save the model for that.

    Args:
        folder: Where to make it; default: the system's folder for temporary files.
        keep_bytes: How many bytes :meth:`keep` leaves in memory.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, keep_bytes: int = _KEEP_BYTES
    ) -> None:
        self._folder = Path(tempfile.gettempdir() if folder is None else folder)
        self._keep_bytes = keep_bytes
        self._file: DataFile | None = None

    def put(self, name: str, array: npt.NDArray[Any], dtype: ir.DataType) -> FileTensor:
        """Append an array, and give the tensor that reads it back.

        Args:
            name: Name of the tensor.
            array: One element per value, also for types below one byte.
            dtype: Element type in the graph.

        Raises:
            OutputError: The folder cannot be written, or the disk is full.
        """
        return self._append(ir.Tensor(array, dtype=dtype, name=name))

    def keep(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The tensor as it is while few bytes were kept so far, else one that lies in the spool.

        Raises:
            OutputError: As :meth:`put`.
        """
        if isinstance(tensor, ExternalTensor) or tensor.dtype == ir.DataType.STRING:
            return tensor
        if tensor.nbytes <= self._keep_bytes:
            self._keep_bytes -= tensor.nbytes
            return tensor
        return copied(tensor, self._append(tensor))

    def close(self) -> None:
        """Remove the file; its tensors cannot be read any more."""
        if self._file is not None:
            self._file.close()

    def _append(self, tensor: ir.TensorProtocol) -> FileTensor:
        try:
            if self._file is None:
                handle = tempfile.TemporaryFile(  # noqa: SIM115
                    dir=self._folder, prefix="edgecompress-", buffering=0
                )
                self._file = DataFile(self._folder / _NAME, cast(BinaryIO, handle))
            offset = self._file.append(chunks(tensor), _ALIGNMENT)
        except OSError as error:
            raise files.refused(error, self._folder / _NAME) from error
        return FileTensor(
            self._file,
            _NAME,
            offset,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            base_dir=self._folder,
        )
