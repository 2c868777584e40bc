"""A program of torch.export becomes an ONNX graph that is checked against torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgecompress.errors import SourceError
from edgecompress.model import Model
from edgecompress.progress import Progress
from edgecompress.rewrite import quiet, strip_provenance
from edgecompress.sources.agreement import OTHER_BATCH, compare, other_batch
from edgecompress.sources.loaded import Kind, Loaded

__all__ = ["Axes", "BATCH", "How", "STEPS", "reason", "translate"]

Axes = Mapping[str, Mapping[int, str]]
"""Names of symbolic dimensions: by the input's name, then by the axis."""

BATCH = "batch"
"""Name of the symbolic first dimension."""

STEPS = 3
"""Steps of an export, for the progress bar: capture, translation, comparison."""


@dataclass(frozen=True)
class How:
    """How a program becomes ONNX, and what it is compared on.

    Attributes:
        origin: The source, for errors and the result.
        opset: ONNX operator set.
        progress: Called as work goes on.
        kind: What the source was, for the result.
        axes: Dimensions that are symbolic, of inputs that are handed over by name. None: the
            first dimension, named ``batch``, where the program leaves it free.
        checks: Inputs by name to compare on, beside the examples. None: random ones of another
            batch size, where the program takes it.
        share_weights: The module is ours and goes away, so that its weights need no copy.
    """

    origin: str
    opset: int
    progress: Progress
    kind: Kind = "torch"
    axes: Axes | None = None
    checks: Sequence[Mapping[str, torch.Tensor]] | None = None
    share_weights: bool = False


def translate(
    program: ExportedProgram,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    how: How,
) -> Loaded:
    """Write a program as ONNX and run both on the example inputs.

    Args:
        program: The program.
        module: What to compare with: the module that it was captured from, or its own.
        args: Positional example inputs.
        kwargs: Example inputs by parameter name.
        how: Names, operator set, and inputs to compare on.

    Raises:
        SourceError: Inputs or outputs are no tensors, or an operator has no ONNX counterpart.
        ExportMismatchError: The graph computes something else.
    """
    how.progress("export", 1, STEPS)
    names = list(program.graph_signature.user_inputs)
    tensors = pytree.tree_leaves((args, dict(kwargs)))
    if len(names) != len(tensors) or not all(isinstance(t, torch.Tensor) for t in tensors):
        raise SourceError(
            f"expected inputs that are all tensors, got {', '.join(map(str, names))}",
            where=how.origin,
            cure="wrap the module in one whose forward takes tensors alone",
        )
    examples = dict(zip(map(str, names), tensors, strict=True))
    outputs = _output_names(module(*args, **kwargs), set(examples), how.origin)
    axes = _free_axes(program, how)
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=how.opset,
                input_names=list(examples),
                output_names=outputs,
                dynamic_shapes={name: dict(axes.get(name, {})) or None for name in examples},
                verbose=False,
            )
    except Exception as error:
        raise SourceError(
            f"torch cannot write it as ONNX: {reason(error)}",
            where=how.origin,
            cure="replace the operator that torch names by ones that ONNX has",
        ) from error
    if exported is None:
        raise SourceError("torch returned no ONNX program", where=how.origin)
    model = Model(exported.model)
    _own_weights(model.ir, copy=not how.share_weights)
    strip_provenance(model)
    model.check()
    how.progress("export", 2, STEPS)

    def run(values: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        spec = pytree.tree_structure((args, dict(kwargs)))
        positional, named = pytree.tree_unflatten([values[name] for name in examples], spec)
        return pytree.tree_leaves(module(*positional, **named))

    checks = how.checks
    if checks is None:
        batch = list(axes)
        checks = [other_batch(examples, batch)] if _takes(program, batch, OTHER_BATCH) else []
    found, reference = compare(model, run, [examples, *checks], how.origin)
    how.progress("export", STEPS, STEPS)
    return Loaded(model, how.kind, how.origin, export_error=found, reference=reference)


def _output_names(result: Any, taken: set[str], origin: str) -> list[str]:
    """``output``; ``output_0``, ``output_1`` of a sequence; the keys of a dictionary."""
    leaves, _ = pytree.tree_flatten_with_path(result)
    names = []
    for path, leaf in leaves:
        parts = [_key(key) for key in path]
        unnamed = not parts or isinstance(path[0], pytree.SequenceKey)
        name = "_".join(["output", *parts] if unnamed else parts)
        if not isinstance(leaf, torch.Tensor):
            raise SourceError(
                f"expected outputs that are all tensors, got {type(leaf).__name__} as {name!r}",
                where=origin,
                cure="wrap the module in one whose forward returns tensors alone",
            )
        names.append(f"{name}_out" if name in taken else name)
    return names


def _key(key: object) -> str:
    """A step of a path into the outputs: a dictionary's key, an index or a field's name."""
    return next(str(getattr(key, a)) for a in ("key", "idx", "name") if hasattr(key, a))


def _free_axes(program: ExportedProgram, how: How) -> Axes:
    """The axes that were asked for; by default the first ones that the program leaves free."""
    shapes = {
        node.name: node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor)
    }
    if how.axes is None:
        return {name: {0: BATCH} for name in _batch_inputs(program, shapes)}
    axes = {}
    for name, named in how.axes.items():
        free = {axis for axis in named if isinstance(shapes[name][axis], torch.SymInt)}
        for axis in named.keys() - free:
            if named[axis] != BATCH:  # that one is fixed where the user asks for it
                raise SourceError(
                    f"torch takes the {named[axis]} of {name!r} for the constant "
                    f"{shapes[name][axis]}",
                    where=how.origin,
                    cure="its code computes with sizes as Python numbers: export it from a "
                    "callable of your own, with fixed sizes",
                )
        axes[name] = {axis: named[axis] for axis in sorted(free)}
    return axes


def _batch_inputs(program: ExportedProgram, shapes: Mapping[str, torch.Size]) -> list[str]:
    """Inputs whose first dimension is the first symbol found at such a place."""
    symbols = {
        name: str(shape[0])
        for name, shape in shapes.items()
        if name in program.graph_signature.user_inputs
        and len(shape)
        and isinstance(shape[0], torch.SymInt)
    }
    first = next(iter(symbols.values()), None)
    return [name for name, symbol in symbols.items() if symbol == first]


def _takes(program: ExportedProgram, batch: list[str], rows: int) -> bool:
    """Whether the program may be called with a batch of ``rows``."""
    for node in program.graph.nodes:
        if batch and node.name == batch[0]:
            symbol = node.meta["val"].shape[0].node.expr
            limits = program.range_constraints.get(symbol)
            return limits is not None and rows in limits
    return False


def _own_weights(model: ir.Model, *, copy: bool) -> None:
    """Make plain arrays of the weights; copies, where the module goes on to be used."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            array = np.array(tensor.numpy(), copy=copy or None)
            value.const_value = ir.tensor(array, dtype=tensor.dtype, name=value.name)


def reason(error: BaseException) -> str:
    """The first line of an error, or of its deepest cause, that says what is wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip().lstrip("- ") for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        return lines[1].split(". ")[0]
    return lines[0] if lines else type(error).__name__
