"""A model from outside becomes a :class:`~edgecompress.model.Model`.

========================================  ==========================================================
``net.onnx``                              an ONNX file
``build.py:make``, ``package.mod:make``   a callable that returns ``(module, example inputs)``
``net.pt2``                               a program saved by ``torch.export.save``
a ``torch.nn.Module``                     from Python, with ``example_inputs``
========================================  ==========================================================

A checkpoint holds weights but no architecture, and is read by :func:`load_checkpoint` inside the
user's own callable. No pickle is run, neither in a checkpoint nor in a .pt2 file; but torch itself
evaluates expressions while it loads a .pt2 file, so take those only from whom you trust.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import SourceError
from edgecompress.progress import Progress, silent
from edgecompress.references import is_reference, load_callable
from edgecompress.sources.loaded import ExampleInputs, Loaded, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["ExampleInputs", "Loaded", "Reference", "load", "load_checkpoint"]

_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_ACCEPTED = (
    "name an .onnx file, a .pt2 file saved by torch.export.save, or a callable that returns "
    "(module, example inputs) as path/to/file.py:name or package.module:name"
)


def load(
    source: str | os.PathLike[str] | torch.nn.Module,
    *,
    base: Path = Path(),
    opset: int = 20,
    example_inputs: ExampleInputs | None = None,
    dynamic_batch: bool = True,
    progress: Progress = silent,
) -> Loaded:
    """Turn a source into a model, and check an export against torch.

    Args:
        source: See the table above.
        base: Folder that relative paths start from.
        opset: ONNX operator set to export with; an ONNX file keeps its own.
        example_inputs: Tensors to call a module with: a tuple, or a dictionary by parameter name.
            Only with a module.
        dynamic_batch: Export with a symbolic first dimension of the inputs.
        progress: Called as work goes on.

    Raises:
        SourceError: The source is of no known kind, or torch cannot export it.
        ModelError: An ONNX file cannot be used.
        ExportMismatchError: The exported graph computes something else than torch.
    """
    if not isinstance(source, (str, os.PathLike)):
        from edgecompress.sources.torch import export_module

        if example_inputs is None:
            raise SourceError(
                "a module says nothing of its inputs",
                where=type(source).__name__,
                cure="hand example_inputs over: a tuple of tensors, or a dictionary by name",
            )
        return export_module(
            source,
            example_inputs,
            origin=type(source).__qualname__,
            opset=opset,
            dynamic_batch=dynamic_batch,
            progress=progress,
        )
    text = os.fspath(source)
    if example_inputs is not None:
        raise SourceError(
            "example_inputs belong to a module, not to a path or a callable",
            where=text,
            cure="leave them out; a callable returns its own",
        )
    return _load_named(text, base, opset, dynamic_batch, progress)


def _load_named(
    text: str, base: Path, opset: int, dynamic_batch: bool, progress: Progress
) -> Loaded:
    path = base / Path(text).expanduser()
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from edgecompress.sources.onnx import load_onnx

        return load_onnx(path, origin=text)
    if suffix == ".pt2":
        from edgecompress.sources.torch import export_saved_program

        return export_saved_program(path, origin=text, opset=opset, progress=progress)
    if suffix in _CHECKPOINTS:
        raise SourceError(
            "is a checkpoint: it holds weights, but not the architecture that they belong to",
            where=text,
            cure="write a callable that builds the module, loads the weights by "
            "edgecompress.sources.load_checkpoint and returns (module, example inputs), and name "
            "it: path/to/file.py:name",
        )
    if path.is_dir():
        raise _folder(text, path)
    if is_reference(text):
        from edgecompress.sources.torch import call_user, export_module

        module, inputs = call_user(load_callable(text, base=base, refuse=SourceError), text)
        return export_module(
            module,
            inputs,
            origin=text,
            opset=opset,
            dynamic_batch=dynamic_batch,
            progress=progress,
        )
    raise SourceError(
        f"expected a model, got {text!r}" if path.exists() else "no such file, and no callable",
        where=text,
        cure=_ACCEPTED,
    )


def _folder(text: str, path: Path) -> SourceError:
    if (path / "config.json").is_file():
        return SourceError(
            "is a transformers folder, which this version does not read yet",
            where=text,
            cure="write a callable that returns (module, example inputs) from it, and name it: "
            "path/to/file.py:name",
        )
    return SourceError("is a folder, expected a model", where=text, cure=_ACCEPTED)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Weights by name, from a checkpoint, without running any code that it may hold.

    Reads what ``torch.save(module.state_dict(), path)`` wrote, also below the keys ``state_dict``,
    ``model_state_dict`` or ``model``, and ``.safetensors`` files. Always ``weights_only=True``;
    memory-mapped where the file's format allows it.

    Raises:
        SourceError: The file is missing or broken, needs to unpickle more than tensors, or holds no
            tensors by name.
        MissingDependencyError: A .safetensors file, without the safetensors package.
    """
    from edgecompress.sources.checkpoint import read

    return read(Path(path))
