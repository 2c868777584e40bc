"""Constants in 16-bit floating point: which can be, and the form in which they are only stored.

::

    w (float32) -> Conv        becomes        w (float16) -> Cast to float32 -> Conv

onnxruntime folds the Cast when it loads the model: the file is half as large, everything else is as
before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from edgecompress.graph_pass import Change, Skip
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.numerics.half import half_problem
from edgecompress.qdq_plan import label
from edgecompress.quantization.editing import Editor, body_graphs, first_readers

__all__ = ["QUANTIZERS", "Half", "as_half", "constant_problem", "half_type", "store_half"]

# Small constants stay: together they take few bytes, and among them are the frequencies of rotary
# embeddings, which are multiplied by positions of thousands.
_LEAST_ELEMENTS = 1024
# Operators to which each number matters, however small beside the others.
_EXACT = frozenset(
    {
        *("Div", "Pow", "Log", "Sqrt", "Reciprocal", "BatchNormalization", "Clip", "Max", "Min"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Sin", "Cos"),
    }
)
QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Their scales are part of the integers' format."""


@dataclass
class Half:
    """What became of a model."""

    changed: list[Change] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    saved: int = 0


def half_type(dtype: str) -> ir.DataType:
    """The ONNX type of ``float16`` or ``bfloat16``."""
    return ir.DataType[dtype.upper()]


def as_half(array: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.generic]:
    """The numbers in 16 bits, rounded to nearest even; infinite where they are too large."""
    with np.errstate(over="ignore"):
        found: npt.NDArray[np.generic] = array.astype(half_type(dtype).numpy())
    return found


def constant_problem(value: ir.Value, dtype: str) -> str:
    """Why a constant must stay float32, or an empty string."""
    tensor = value.const_value
    if tensor is None:
        return ""
    values = torch.from_numpy(np.array(tensor.numpy()))
    exact = any(use.node.op_type in _EXACT for use in value.uses())
    return half_problem(values, dtype, each=exact or values.numel() == 1)


def store_half(model: Model, dtype: str, wanted: Callable[[ir.Node], bool]) -> Half:
    """Store the float weights in 16 bits, in place.

    Args:
        model: Weights in its main graph and in bodies are looked at.
        dtype: ``float16`` or ``bfloat16``.
        wanted: Whether a node's weights may be stored so.
    """
    half, editor = Half(), Editor(model.ir.graph)
    for graph in body_graphs(model):
        readers = first_readers(graph)
        for value in list(graph.initializers.values()):
            reader = readers.get(id(value))
            if reader is None or not _stores_float(value):
                continue
            where = (label(reader), reader.op_type)
            reason = constant_problem(value, dtype)
            if value.is_graph_input():
                why = "its weight may be overridden by an input (the pass 'cleanup' forbids that)"
                half.skipped.append(Skip(*where, why))
            elif not all(wanted(use.node) for use in value.uses()):
                half.skipped.append(Skip(*where, "left out by the recipe"))
            elif reason:
                half.skipped.append(Skip(*where, f"its constant {value.name!r} {reason}"))
            else:
                before, after = _store(editor, graph, value, reader, dtype)
                half.changed.append(Change(*where, f"{dtype} weights", before, after))
                half.saved += before - after
    return half


def _stores_float(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        tensor is not None
        and tensor.dtype == ir.DataType.FLOAT
        and tensor.size >= _LEAST_ELEMENTS
        and not value.is_graph_output()
        and all(_takes_cast(use.node) for use in value.uses())
    )


def _takes_cast(node: ir.Node) -> bool:
    """Whether a constant of the node may be the output of a Cast."""
    return node.domain in DEFAULT_DOMAINS and node.op_type not in QUANTIZERS


def _store(
    editor: Editor, graph: ir.Graph, value: ir.Value, reader: ir.Node, dtype: str
) -> tuple[int, int]:
    assert value.const_value is not None  # _stores_float has seen to it
    stored = editor.initializer(
        graph, f"{value.name}_{dtype}", as_half(value.const_value.numpy(), dtype)
    )
    cast = editor.node(
        "Cast",
        [stored],
        {f"{value.name}_float32": ir.DataType.FLOAT},
        attributes={"to": ir.DataType.FLOAT.value},
        shape=value.shape,
    )
    graph.insert_before(reader, cast)
    before = value.const_value.nbytes
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    del graph.initializers[value.name or ""]
    return before, before // 2
