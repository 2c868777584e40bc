"""A graph whose shapes are all numbers, with everything folded that follows from them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from edgecompress.errors import TargetError
from edgecompress.litert_writer.blocks import split_block_gathers
from edgecompress.model import Model
from edgecompress.rewrite import lift_constants, quiet, remove_identities

__all__ = ["FreeDimensionError", "fixed", "free_dimensions", "read_shapes"]

_MOST_ROUNDS = 6
# Elements; masks and positions stay far below, and weights are not folded.
_LARGEST_FOLDED = 1 << 20
_KEPT = frozenset({"QuantizeLinear", "DequantizeLinear"})


class FreeDimensionError(Exception):
    """Dimensions of inputs that nobody has given a number.

    Attributes:
        found: For each input, what is free.
    """

    def __init__(self, found: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {what}" for name, what in found.items()))
        self.found = dict(found)


def read_shapes(text: str) -> dict[str, int]:
    """Numbers for free dimensions, from ``"batch=1, sequence=128"``.

    A dimension without a name is called ``INPUT[AXIS]``.

    Raises:
        TargetError: It is not written like that.
    """
    found = {}
    for part in filter(None, (part.strip() for part in str(text).split(","))):
        name, _, number = (each.strip() for each in part.rpartition("="))
        if not name or not number.isdecimal() or int(number) < 1:
            raise TargetError(
                f"expected NAME=NUMBER of a dimension, got {part!r}",
                where="key 'options.shapes'",
                cure='write it like shapes = "batch=1, sequence=128"',
            )
        found[name] = int(number)
    return found


def free_dimensions(model: Model) -> dict[str, list[tuple[int, str]]]:
    """For each input, axis and name of the dimensions that are no numbers."""
    initializers = model.ir.graph.initializers
    found = {}
    for value in model.ir.graph.inputs:
        name = value.name or ""
        if name not in initializers and value.shape is not None:
            free = [
                (axis, f"{name}[{axis}]" if d.value is None else str(d.value))
                for axis, d in enumerate(value.shape)
                if not isinstance(d, int)
            ]
            if free:
                found[name] = free
    return found


def fixed(model: Model, shapes: Mapping[str, int]) -> tuple[Model, list[str]]:
    """A clone with fixed shapes, folded; and what was assumed, a sentence each.

    The first dimension of an input, which is nearly always that of the rows, becomes 1 where no
    number is given for it.

    Raises:
        FreeDimensionError: Another dimension has no number.
    """
    from onnx_ir.passes import common

    clone = model.clone()
    assumed = _fix_inputs(clone, shapes)
    with quiet():
        common.InlinePass()(clone.ir)
        common.RemoveInitializersFromInputsPass()(clone.ir)
        lift_constants(clone)
        split_block_gathers(clone.ir)
        for value in (v for node in clone.ir.graph for v in node.outputs):
            value.shape = None  # told again from the inputs
        remove_identities(clone, lambda node: True)
        _fold(clone)
        _fold_batch_norm(clone)
    return clone, assumed


def _fix_inputs(model: Model, shapes: Mapping[str, int]) -> list[str]:
    numbers, missing = dict(shapes), {}
    assumed = []
    free = free_dimensions(model)
    for dims in free.values():
        axis, key = dims[0]
        if axis == 0 and key not in numbers:
            numbers[key] = 1
            assumed.append(f"the free dimension {key} was fixed at 1")
    for name, dims in free.items():
        unknown = [key for _, key in dims if key not in numbers]
        if unknown:
            missing[name] = ", ".join(unknown)
    for value in model.ir.graph.inputs:
        if value.shape is None and value.name not in model.ir.graph.initializers:
            missing[value.name or ""] = "its rank"
    if missing:
        raise FreeDimensionError(missing)
    for value in model.ir.graph.inputs:
        for axis, key in free.get(value.name or "", ()):
            assert value.shape is not None
            shape = value.shape.copy()
            shape[axis] = numbers[key]
            value.shape = shape
    return assumed


def _fold(model: Model) -> None:
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    for _ in range(_MOST_ROUNDS):
        before = len(model.ir.graph)
        lift_constants(model)
        fold_constants(
            model.ir,
            onnx_shape_inference=True,
            input_size_limit=2**31,
            output_size_limit=_LARGEST_FOLDED,
            should_fold=lambda node: False if node.op_type in _KEPT else None,
        )
        lift_constants(model)
        common.RemoveUnusedNodesPass()(model.ir)
        if len(model.ir.graph) == before:
            return


def _fold_batch_norm(model: Model) -> None:
    from onnx_ir.passes import common

    from edgecompress.fusions import apply_rules, batch_norm_rules

    def record(what: str, old: ir.Node, new: ir.Node | None) -> None:
        """Nothing to tell: the file computes the same."""

    if apply_rules(model.ir, batch_norm_rules(), lambda node: True, record):
        lift_constants(model)
        _fold(model)
        common.RemoveUnusedNodesPass()(model.ir)
