"""What a graph tells of its values: shapes, types, constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.litert_writer import ranges
from edgecompress.litert_writer.flatbuffer import tensor_type
from edgecompress.litert_writer.ranges import array_of, is_op
from edgecompress.litert_writer.registry import RefusalError

__all__ = ["Facts"]


class Facts:
    """Questions to a graph with fixed shapes."""

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Dimensions of a value.

        Raises:
            RefusalError: They are not known.
        """
        if value is None or value.shape is None or not value.shape.is_static():
            name = None if value is None else value.name
            raise RefusalError(f"the shape of {name!r} depends on values of the inputs")
        return tuple(int(d) for d in value.shape.numpy())

    def dtype(self, value: ir.Value) -> str:
        """Name of a value's numpy type in the file."""
        if value.dtype is None:
            raise RefusalError(f"the type of {value.name!r} is not known")
        name = value.dtype.numpy().name
        if tensor_type(name) is None:
            raise RefusalError(f"{value.name!r} is of type {name}, which is not written")
        return name

    def array(self, value: ir.Value | None) -> npt.NDArray[Any] | None:
        """The value of a constant as ONNX computes with it, or None."""
        found = array_of(value)
        if found is None and value is not None:
            node = value.producer()
            if node is not None and is_op(node, "DequantizeLinear"):
                found = ranges.dequantized(node)
        return found

    def numbers(self, value: ir.Value | None, what: str) -> list[int]:
        """Integers that must be constant, such as axes.

        Raises:
            RefusalError: They are computed while the model runs.
        """
        found = self.array(value)
        if found is None:
            raise RefusalError(
                f"its {what} are computed while the model runs; only constants are written"
            )
        return [int(n) for n in found.reshape(-1)]

    def clip_name(self, node: ir.Node) -> str:
        """The activation function that a Clip is, or ``NONE``."""
        return {
            (0.0, 6.0): "RELU6",
            (0.0, float("inf")): "RELU",
            (-1.0, 1.0): "RELU_N1_TO_1",
        }.get(self.clip_bounds(node), "NONE")

    def clip_bounds(self, node: ir.Node) -> tuple[float, float]:
        """Lower and upper bound of a Clip; of any operator set.

        Raises:
            RefusalError: They are not constant.
        """
        bounds = []
        for place, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
            given = node.inputs[place] if len(node.inputs) > place else None
            if given is None:
                bounds.append(float(node.attributes.get_float(name, default)))
                continue
            array = self.array(given)
            if array is None:
                raise RefusalError("its bounds are computed while the model runs")
            bounds.append(float(array))
        return bounds[0], bounds[1]
