"""Numbers for the free dimensions of a model, which many runtimes and most accelerators want."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.rewrite import infer_shapes

__all__ = ["fixed_shapes", "is_fixed"]


def is_fixed(model: Model) -> bool:
    """Whether all dimensions of all inputs are numbers."""
    return all(
        spec.shape is not None and all(isinstance(dim, int) for dim in spec.shape)
        for spec in model.signature.inputs
    )


def fixed_shapes(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """A copy whose inputs have the given shapes, with the shapes behind them inferred.

    Args:
        model: The model; returned as it is where nothing is free.
        shapes: Shape of each input, by name; they fit the model.
    """
    if is_fixed(model):
        return model
    fixed = model.clone()
    numbers: dict[str, int] = {}
    for value in fixed.ir.graph.inputs:
        shape = shapes.get(value.name or "")
        if shape is None:
            continue
        if value.shape is not None:
            for dim, number in zip(value.shape, shape, strict=True):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    numbers[dim.value] = number
        value.shape = ir.Shape(shape)
    for graph in (fixed.ir.graph, *fixed.ir.graph.subgraphs()):
        for value in (*graph.outputs, *(v for node in graph for v in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape(_with_numbers(value.shape, numbers))
    infer_shapes(fixed)
    return fixed


def _with_numbers(shape: ir.Shape, numbers: Mapping[str, int]) -> list[int | str | None]:
    return [
        dim if isinstance(dim, int) else numbers.get(dim.value or "", dim.value) for dim in shape
    ]
