"""From ONNX values to torch values: element types, constants, and small host tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.weights.external_data import read

__all__ = [
    "NARROW_TYPES",
    "as_tensors",
    "axis_of",
    "dims",
    "integers",
    "scalar",
    "torch_dtype",
    "to_numpy",
    "to_tensor",
    "unsupported",
]

_DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
    ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}

# torch has no such types: constants are widened to 8 bits, which only an operator that reads the
# values (DequantizeLinear) may see; one that takes the type as its range would be wrong.
NARROW_TYPES: dict[ir.DataType, type[np.generic]] = {
    ir.DataType.INT4: np.int8,
    ir.DataType.UINT4: np.uint8,
    ir.DataType.INT2: np.int8,
    ir.DataType.UINT2: np.uint8,
}

# numpy knows these types only through ml_dtypes, which torch does not read: the bits travel.
_AS_BITS: dict[torch.dtype, type[np.generic]] = {
    torch.bfloat16: np.int16,
    torch.float8_e4m3fn: np.uint8,
    torch.float8_e4m3fnuz: np.uint8,
    torch.float8_e5m2: np.uint8,
    torch.float8_e5m2fnuz: np.uint8,
}


def unsupported(what: str) -> ModelError:
    """The error for a form of a known operator that has no torch translation."""
    return ModelError(
        what,
        cure="rewrite the node in standard operators, or leave it out of the slice given to torch",
    )


def torch_dtype(code: int) -> torch.dtype:
    """Torch's element type for a number of ``onnx.TensorProto.DataType``.

    Raises:
        ModelError: torch has no such type.
    """
    try:
        return _DTYPES[ir.DataType(code)]
    except (KeyError, ValueError):
        known = ir.DataType(code).name if code in set(ir.DataType) else str(code)
        raise unsupported(f"element type {known} has no torch counterpart") from None


def to_tensor(constant: ir.TensorProtocol, *, copy: bool = False) -> Tensor:
    """A constant of the graph as a CPU tensor.

    Args:
        constant: The values.
        copy: Own the memory. Without it a writable array is shared, and only a read-only one
            (a protobuf) is copied, as torch cannot hold such memory. What lies in a file of its own
            is read, and its memory goes with the tensor.

    Raises:
        ModelError: Its element type has no torch counterpart, or its file cannot be read.
    """
    narrow = NARROW_TYPES.get(constant.dtype)
    if narrow is not None:
        return torch.from_numpy(read(constant).astype(narrow))
    dtype = torch_dtype(constant.dtype)
    array = read(constant)
    copy = copy and not isinstance(constant, ir.ExternalTensor)
    bits = _AS_BITS.get(dtype)
    if bits is not None:
        array = array.view(bits)
    if copy or not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    tensor = torch.from_numpy(array)
    return tensor if bits is None else tensor.view(dtype)


def to_numpy(tensor: Tensor, like: np.dtype[np.generic]) -> np.ndarray:
    """A copy of a tensor as a numpy array of the given element type."""
    host = tensor.detach().to("cpu")
    if host.dtype in _AS_BITS and like.name == str(host.dtype).removeprefix("torch."):
        return host.contiguous().view(torch.int16).numpy().view(like).copy()
    if host.dtype in _AS_BITS:
        host = host.to(torch.float32)
    return np.array(host.numpy(), dtype=like, order="C")


def integers(tensor: Tensor) -> list[int]:
    """Values of an integer tensor of rank 0 or 1."""
    found: int | list[int] = tensor.tolist()
    return [found] if isinstance(found, int) else found


def scalar(tensor: Tensor) -> float:
    """The one value of a tensor, as a Python number of its kind."""
    return tensor.reshape(()).item()


def as_tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays of a batch as feeds of a graph, which moves them to its device itself."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def dims(shape: Sequence[int]) -> Tensor:
    """A shape as the int64 host tensor that ONNX makes of it."""
    return torch.tensor(list(shape), dtype=torch.int64)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise ModelError(f"expected an axis in [-{rank}, {rank}), got {axis}")
    return axis + rank if axis < 0 else axis
