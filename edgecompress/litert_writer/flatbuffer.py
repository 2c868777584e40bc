"""A TFLite file in the making: tensors, buffers and operators, packed into a flatbuffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import MissingDependencyError, ModelError

__all__ = ["Affine8", "FileBuilder", "Operator", "Quantization", "Tensor", "tensor_type"]

_SCHEMA_VERSION = 3
_ALIGNMENT = 16  # bytes; the schema's force_align of Buffer.data, which the generated code forgets
_LARGEST_FILE = 2**31 - 1
_IDENTIFIER = b"TFL3"

_TYPES = {
    "bool": "BOOL",
    "float16": "FLOAT16",
    "float32": "FLOAT32",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
}

# The version of an operator since which it takes int8, where that is not the first; older runtimes
# refuse a file by these instead of computing something else.
_INT8_VERSIONS = {
    "ADD": 2,
    "AVERAGE_POOL_2D": 2,
    "BATCH_MATMUL": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "FULLY_CONNECTED": 5,
    "GATHER": 2,
    "GELU": 2,
    "LEAKY_RELU": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
    "MEAN": 2,
    "MUL": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "DEPTH_TO_SPACE": 2,
    "RELU": 2,
    "RELU6": 2,
    "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
    "SLICE": 2,
    "SOFTMAX": 2,
    "STRIDED_SLICE": 2,
    "SUB": 2,
    "TANH": 2,
    "TRANSPOSE": 2,
}

# Versions that operators start at where that is not 1.
_FIRST_VERSIONS = {"BROADCAST_TO": 2}


@dataclass(frozen=True)
class Affine8:
    """int8 values that stand for ``scale * (q - zero_point)``."""

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Quantization:
    """Scales and zero points of a tensor, one per slice of ``axis`` or a single one."""

    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]
    axis: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        index: Its number.
        shape: Its dimensions, all known.
        dtype: Name of its numpy type.
        affine: What its int8 values stand for, or None where they are what they are.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str
    affine: Affine8 | None = None


@dataclass(frozen=True)
class Operator:
    """An operator of the file.

    Attributes:
        code: Its name in the schema.
        origin: First output of the ONNX node that it was made for.
        outputs: Names of the tensors that it makes.
        integer: Whether these are int8.
    """

    code: str
    origin: str
    outputs: tuple[str, ...]
    integer: bool


def tensor_type(dtype: str) -> str | None:
    """TFLite's word for a numpy type, or None where the writer has none."""
    return _TYPES.get(dtype)


class FileBuilder:
    """Collects one subgraph; the order of calls is the order in the file.

    Raises:
        MissingDependencyError: The schema or the flatbuffers library is not installed.
    """

    def __init__(self) -> None:
        try:
            import flatbuffers
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise MissingDependencyError(
                error.name or "ai_edge_litert", "a TFLite file", "litert"
            ) from error
        self._flatbuffers: Any = flatbuffers
        self._schema: Any = schema
        self._graph = schema.SubGraphT()
        self._graph.name = "main"
        self._graph.tensors, self._graph.operators = [], []
        self._buffers: list[npt.NDArray[np.uint8] | None] = [None]
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}
        self.operators: list[Operator] = []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        *,
        data: npt.NDArray[Any] | None = None,
        quantization: Quantization | Affine8 | None = None,
    ) -> Tensor:
        """Add a tensor; with ``data`` it is a constant."""
        schema = self._schema
        made = schema.TensorT()
        made.name = name
        made.shape = [int(d) for d in shape]
        made.type = getattr(schema.TensorType, _TYPES[dtype])
        made.buffer = 0
        if data is not None:
            made.buffer = len(self._buffers)
            flat = np.ascontiguousarray(data).reshape(-1)
            self._buffers.append(flat.view(np.uint8))
        affine = quantization if isinstance(quantization, Affine8) else None
        if quantization is not None:
            made.quantization = self._quantization(quantization)
        self._graph.tensors.append(made)
        return Tensor(len(self._graph.tensors) - 1, tuple(made.shape), dtype, affine)

    @property
    def size(self) -> int:
        """Tensors so far."""
        return len(self._graph.tensors)

    def constant(self, name: str, array: npt.NDArray[Any]) -> Tensor:
        """A small constant such as a shape; equal ones are one tensor."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.tensor(name, array.shape, array.dtype.name, data=array)
        return self._constants[key]

    def _quantization(self, given: Quantization | Affine8) -> Any:
        made = self._schema.QuantizationParametersT()
        if isinstance(given, Affine8):
            made.scale = np.array([given.scale], np.float32)
            made.zeroPoint = np.array([given.zero_point], np.int64)
        else:
            made.scale = given.scales.astype(np.float32).reshape(-1)
            made.zeroPoint = given.zero_points.astype(np.int64).reshape(-1)
            made.quantizedDimension = given.axis
        return made

    def operator(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: str = "",
        origin: str = "",
        version: int | None = None,
        **fields: Any,
    ) -> None:
        """Add an operator.

        Args:
            code: Its name in the schema's BuiltinOperator.
            inputs: Its inputs; None for an optional one left out.
            outputs: Its outputs.
            options: Name of its table of options, without ``T``; empty where it has none.
            origin: First output of the ONNX node that it is for.
            version: Of the operator; default: the first that has its types.
            fields: Fields of that table.
        """
        schema = self._schema
        made = schema.OperatorT()
        integer = any(t is not None and t.dtype == "int8" for t in (*inputs, *outputs))
        first = _FIRST_VERSIONS.get(code, 1)
        least = _INT8_VERSIONS.get(code, first) if integer else first
        made.opcodeIndex = self._code(code, least if version is None else version)
        made.inputs = [-1 if t is None else t.index for t in inputs]
        made.outputs = [t.index for t in outputs]
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")()
            for field, value in fields.items():
                if not hasattr(made.builtinOptions, field):
                    raise AttributeError(f"{options} has no field {field}")
                setattr(made.builtinOptions, field, value)
        self._graph.operators.append(made)
        names = tuple(str(self._graph.tensors[t.index].name) for t in outputs)
        whole = all(t.dtype == "int8" for t in outputs)
        self.operators.append(Operator(code, origin, names, whole))

    def word(self, enumeration: str, name: str) -> int:
        """Number of a member of one of the schema's enumerations."""
        return int(getattr(getattr(self._schema, enumeration), name))

    def type_number(self, dtype: str) -> int:
        """Number of a numpy type in the schema."""
        return self.word("TensorType", _TYPES[dtype])

    def _code(self, code: str, version: int) -> int:
        return self._codes.setdefault((code, version), len(self._codes))

    def finish(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> bytes:
        """The file, with a signature that names inputs and outputs.

        Raises:
            ModelError: It would be larger than a flatbuffer may be.
        """
        schema = self._schema
        size = sum(0 if data is None else data.nbytes for data in self._buffers)
        if size > _LARGEST_FILE - 2**24:
            raise ModelError(
                f"is too large for a .tflite file: {size / 1e9:.1f} GB of constants, at most 2 GB",
                cure="quantize the weights first",
            )
        self._graph.inputs = [t.index for t in inputs.values()]
        self._graph.outputs = [t.index for t in outputs.values()]
        model = schema.ModelT()
        model.version = _SCHEMA_VERSION
        model.description = "edgecompress"
        model.operatorCodes = [self._operator_code(*key) for key in self._codes]
        model.subgraphs = [self._graph]
        model.signatureDefs = [self._signature(inputs, outputs)]
        model.buffers = [_aligned(schema, data) for data in self._buffers]
        builder = self._flatbuffers.Builder(1024 + size + size // 8)
        builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def _operator_code(self, code: str, version: int) -> Any:
        made = self._schema.OperatorCodeT()
        made.builtinCode = getattr(self._schema.BuiltinOperator, code)
        # Readers older than 2020 know this field only; it holds what fits into a byte.
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        made.version = version
        return made

    def _signature(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> Any:
        made = self._schema.SignatureDefT()
        made.signatureKey, made.subgraphIndex = "serving_default", 0
        made.inputs = [self._named(*item) for item in inputs.items()]
        made.outputs = [self._named(*item) for item in outputs.items()]
        return made

    def _named(self, name: str, tensor: Tensor) -> Any:
        made = self._schema.TensorMapT()
        made.name, made.tensorIndex = name, tensor.index
        return made


def _aligned(schema: Any, data: npt.NDArray[np.uint8] | None) -> Any:
    """A buffer that packs its bytes aligned, as kernels that load vectors want them."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802 - the generated code's name
            vector = None
            if data is not None and data.size:
                builder.StartVector(1, data.size, _ALIGNMENT)
                builder.head = builder.Head() - data.size
                builder.Bytes[builder.Head() : builder.Head() + data.size] = data.tobytes()
                vector = builder.EndVector()
            schema.BufferStart(builder)
            if vector is not None:
                schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    return Aligned()
