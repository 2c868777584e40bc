"""Constants of a graph: initializers and Constant nodes, sorted by their role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir
from torch import Tensor

from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.model import DEFAULT_DOMAINS
from edgecompress.torchgraph.execution import HOST_LIMIT
from edgecompress.torchgraph.registry import Operator
from edgecompress.torchgraph.values import to_tensor

__all__ = ["Constants", "Use", "constant_tensor", "is_constant", "is_fixed"]

_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


class Use(NamedTuple):
    """An operator that reads a constant, and as which input."""

    operator: Operator
    position: int


class Constants(NamedTuple):
    """Constants by name.

    Attributes:
        parameters: Float initializers of rank >= 1 that some node uses as a weight.
        buffers: Constants that follow the module to its device.
        host: Constants that stay on the host: scalars, small integers, shapes and axes.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    host: dict[str, Tensor]

    def place(self, name: str, value: ir.Value, uses: Sequence[Use]) -> None:
        """Read a constant and put it where its uses want it."""
        tensor = constant_tensor(value)
        real = [use for use in uses if use.position not in use.operator.host]
        trained = any(use.position not in use.operator.statistics for use in real)
        is_float = tensor.dtype in _FLOATS
        rank = len(tensor.shape)
        if is_float and rank > 0 and trained and value.is_initializer():
            self.parameters[name] = to_tensor(tensor, copy=True)
        elif rank == 0 or not real or (not is_float and tensor.size <= HOST_LIMIT):
            self.host[name] = to_tensor(tensor)
        else:
            self.buffers[name] = to_tensor(tensor)


def is_constant(node: ir.Node) -> bool:
    """Whether it is a node of the standard operator Constant."""
    return node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS


def is_fixed(value: ir.Value) -> bool:
    """Whether the graph itself holds its values."""
    producer = value.producer()
    if producer is not None:
        return is_constant(producer)
    return value.const_value is not None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The values of an initializer or of a Constant node.

    Raises:
        ModelError: It has no values.
        UnsupportedOperatorError: They are strings, or sparse.
    """
    producer = value.producer()
    if producer is None:
        if value.const_value is None:
            raise ModelError(f"initializer {value.name!r} has no values")
        return value.const_value
    attributes = producer.attributes
    if "value" in attributes:
        return attributes["value"].as_tensor()
    for name, dtype in _CONSTANT_FORMS.items():
        if name in attributes:
            return ir.tensor(attributes[name].value, dtype=dtype)
    raise UnsupportedOperatorError(
        "operators without a torch translation",
        [f"ai.onnx::Constant with attribute {', '.join(attributes)}"],
        where=f"constant {value.name!r}",
        cure="store it as a dense tensor of numbers",
    )


_CONSTANT_FORMS = {
    "value_float": ir.DataType.FLOAT,
    "value_floats": ir.DataType.FLOAT,
    "value_int": ir.DataType.INT64,
    "value_ints": ir.DataType.INT64,
}
