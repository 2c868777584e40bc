"""Digests of weights, each computed once.

Tensors are never changed, only replaced, so a digest is kept with its tensor: clones of a model
share their tensors, and a model of many gigabytes is read once for all digests that a build asks
for. A file of weights must stay the one that it was, which is seen to each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import onnx_ir as ir
from onnx_ir import ExternalTensor

from edgecompress.weights.external_data import FileTensor, chunks

__all__ = ["tensor_digest", "tensor_digests"]

_KEY = "edgecompress.sha256"
_MOST_THREADS = 4


def tensor_digests(tensors: Iterable[ir.TensorProtocol]) -> list[str]:
    """The digests of several tensors, in their order; hashing takes longer than reading.

    Raises:
        ModelError: As :func:`tensor_digest`.
    """
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(tensor_digest, tensors))


def tensor_digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of the tensor's values, wherever they lie; not of its name, type or shape.

    Raises:
        ModelError: Its data file is gone, cut short, or another one than was loaded.
    """
    if isinstance(tensor, FileTensor):
        tensor.file.check()
    if _KEY in tensor.meta:
        return str(tensor.meta[_KEY])
    sha = hashlib.sha256()
    if tensor.dtype == ir.DataType.STRING:
        for text in tensor.numpy().reshape(-1).tolist():
            encoded = text if isinstance(text, bytes) else str(text).encode()
            sha.update(len(encoded).to_bytes(8, "little") + encoded)
    else:
        for piece in chunks(tensor):
            sha.update(piece)
    if isinstance(tensor, FileTensor) or not isinstance(tensor, ExternalTensor):
        tensor.meta[_KEY] = sha.hexdigest()
    return sha.hexdigest()
