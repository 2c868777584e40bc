"""A torch module or an exported program, through ``torch.export`` and the dynamo ONNX exporter."""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection

from edgecompress.errors import EdgeCompressError, SourceError
from edgecompress.progress import Progress
from edgecompress.references import user_line
from edgecompress.rewrite import quiet
from edgecompress.sources.loaded import ExampleInputs, Loaded
from edgecompress.sources.translate import BATCH, STEPS, Axes, How, reason, translate

__all__ = ["call_user", "export_module", "export_saved_program"]

_EXAMPLES = "a tuple of tensors, or a dictionary of tensors by parameter name"


def call_user(build: Callable[..., Any], reference: str) -> tuple[Any, Any]:
    """Call the user's callable, which returns a module and example inputs.

    Raises:
        SourceError: It fails, or returns something else.
        EdgeCompressError: What a function of ours raised in it.
    """
    try:
        made = build()
    except EdgeCompressError:  # from load_checkpoint, and says all
        raise
    except Exception as error:
        raise SourceError(
            f"failed when it was called: {type(error).__name__}: {reason(error)}",
            where=f"{reference} ({user_line(error)})",
            cure="make it run by itself, without arguments",
        ) from error
    if not isinstance(made, tuple) or len(made) != 2:
        got = f"{len(made)} values" if isinstance(made, tuple) else type(made).__name__
        raise SourceError(
            f"expected it to return (module, example inputs), got {got}",
            where=reference,
            cure=f"return the module and {_EXAMPLES}",
        )
    return made


def export_module(
    module: Any, example_inputs: ExampleInputs, *, how: How, dynamic_batch: bool
) -> Loaded:
    """Export a module in evaluation mode and compare it with torch; the module stays as it was.

    Args:
        module: The module.
        example_inputs: Tensors to call it with.
        how: Its ``axes`` name the dimensions that become symbolic. Where they are None it is the
            first one, in the first input and in all others that are as long there.
        dynamic_batch: Whether the first dimension may become symbolic at all.

    Raises:
        SourceError: No module, no tensors, or torch cannot run or export it.
        ExportMismatchError: The exported graph computes something else.
    """
    if not isinstance(module, torch.nn.Module):
        raise SourceError(
            f"expected a torch.nn.Module, got {type(module).__name__}",
            where=how.origin,
            cure="hand over the module itself, with its weights loaded",
        )
    args, kwargs = _arguments(module, example_inputs, how.origin)
    if dynamic_batch:
        args, kwargs = _at_least_two(args, kwargs)
    with _evaluating(module), torch.no_grad():
        how.progress("export", 0, STEPS)
        try:
            module(*args, **kwargs)
        except Exception as error:
            raise SourceError(
                f"the module fails on its example inputs: {type(error).__name__}: {reason(error)}",
                where=f"{how.origin} ({user_line(error)})",
                cure="check the shapes and dtypes of the example inputs",
            ) from error
        program = _capture(module, args, kwargs, how, dynamic_batch)
        return translate(program, module, args, kwargs, how)


def export_saved_program(path: Path, *, origin: str, opset: int, progress: Progress) -> Loaded:
    """Translate a program saved by ``torch.export.save``; its dynamic dimensions stay dynamic.

    Raises:
        SourceError: The file is missing, no such program, or of another version of torch.
        ExportMismatchError: The exported graph computes something else.
    """
    if not path.is_file():
        raise SourceError("no such file", where=origin, cure="check the path")
    progress("export", 0, STEPS)
    try:
        with quiet(), _weights_only():
            program = torch.export.load(path)
    except Exception as error:
        broken = not zipfile.is_zipfile(path)
        why = "it is no archive, or truncated" if broken else reason(error)
        raise SourceError(
            f"is not a program that torch {torch.__version__} can load: {why}",
            where=origin,
            cure="save it again by torch.export.save, with this version of torch",
        ) from error
    if program.example_inputs is None:
        raise SourceError(
            "holds no example inputs, so that the export could not be checked",
            where=origin,
            cure="save it again by torch.export.save, from torch.export.export",
        )
    args, kwargs = program.example_inputs
    with torch.no_grad():
        how = How(origin, opset, progress, kind="exported-program")
        return translate(program, program.module(), args, kwargs, how)


def _arguments(
    module: torch.nn.Module, example_inputs: ExampleInputs, origin: str
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Positional and keyword tensors, keywords in the order of forward's parameters."""
    args: tuple[torch.Tensor, ...] = ()
    kwargs: dict[str, torch.Tensor] = {}
    if isinstance(example_inputs, Mapping):
        order = list(inspect.signature(module.forward).parameters)
        places = {name: order.index(name) for name in example_inputs if name in order}
        names = sorted(example_inputs, key=lambda name: places.get(name, len(order)))
        kwargs = {name: example_inputs[name] for name in names}
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    tensors = (*args, *kwargs.values())
    wrong = [type(t).__name__ for t in tensors if not isinstance(t, torch.Tensor)]
    if wrong or not tensors:
        got = wrong[0] if wrong else f"{type(example_inputs).__name__} without tensors"
        raise SourceError(
            f"expected example inputs as {_EXAMPLES}, got {got}",
            where=origin,
            cure="wrap the module in one whose forward takes tensors alone",
        )
    return args, kwargs


def _at_least_two(
    args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Double a batch of one row, since torch.export takes the size 1 for a constant."""

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor]) if _rows(tensor) == 1 else tensor

    if _rows(next(iter((*args, *kwargs.values())))) != 1:
        return args, kwargs
    return tuple(map(doubled, args)), {name: doubled(t) for name, t in kwargs.items()}


def _rows(tensor: torch.Tensor) -> int | None:
    return tensor.shape[0] if tensor.dim() else None


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in training:
            part.training = flag


@contextmanager
def _weights_only() -> Iterator[None]:
    """Refuse pickles in a .pt2 archive; the switch is torch's own and has no argument there."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


def _capture(
    module: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    how: How,
    dynamic_batch: bool,
) -> ExportedProgram:
    def capture(dynamic: bool) -> ExportedProgram:
        with quiet():
            shapes = ShapesCollection()  # type: ignore[no-untyped-call]
            for tensor, axes in _symbolic(args, kwargs, how.axes):
                # The batch must be free; the range of other axes is what the module allows.
                names = {axis: name for axis, name in axes.items() if dynamic or name != BATCH}
                if names:
                    shapes[tensor] = {
                        axis: Dim(name) if name == BATCH else Dim.AUTO
                        for axis, name in names.items()
                    }
            spec = shapes.dynamic_shapes(module, args, kwargs) if len(shapes) else None  # type: ignore[no-untyped-call]
            return torch.export.export(module, args, kwargs, dynamic_shapes=spec, strict=False)

    try:
        return capture(dynamic_batch)
    except Exception as error:
        cure = "torch.export must be able to trace it: see the first line of torch's reason"
        if dynamic_batch and _works(lambda: capture(False)):
            cure = "keep the examples' batch size: dynamic_batch = false, or --static-batch"
        raise SourceError(
            f"torch cannot export it: {reason(error)}", where=how.origin, cure=cure
        ) from error


def _symbolic(
    args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], axes: Axes | None
) -> Iterator[tuple[torch.Tensor, Mapping[int, str]]]:
    """Tensors with their symbolic axes; by default the first one, where all are as long."""
    tensors = (*args, *kwargs.values())
    if axes is not None:
        yield from ((kwargs[name], named) for name, named in axes.items())
        return
    rows = _rows(tensors[0])
    yield from ((t, {0: BATCH}) for t in tensors if rows is not None and _rows(t) == rows)


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except Exception:
        return False
    return True
