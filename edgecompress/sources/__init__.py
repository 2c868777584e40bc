"""A model from outside becomes a :class:`~edgecompress.model.Model`.

========================================  ==========================================================
``net.onnx``                              an ONNX file
``build.py:make``, ``package.mod:make``   a callable that returns ``(module, example inputs)``
``net.pt2``                               a program saved by ``torch.export.save``
a folder with ``config.json``             a model of transformers on disk, or of
                                          sentence-transformers
a ``torch.nn.Module``                     from Python, with ``example_inputs``
========================================  ==========================================================

``package:name/path`` is a path inside an installed package; none of its code is run.

A checkpoint holds weights but no architecture, and is read by :func:`load_checkpoint` inside the
user's own callable. No pickle is run, neither in a checkpoint nor in a .pt2 file; but torch itself
evaluates expressions while it loads a .pt2 file, so take those only from whom you trust.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import SourceError
from edgecompress.progress import Progress, silent
from edgecompress.references import is_reference, load_callable
from edgecompress.sources.loaded import ExampleInputs, Loaded, Reference

if TYPE_CHECKING:
    import torch

__all__ = ["ExampleInputs", "Loaded", "Reference", "load", "load_checkpoint"]

_PACKAGE = re.compile(r"package:[A-Za-z_]\w*/")
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_ACCEPTED = (
    "name an .onnx file, a .pt2 file saved by torch.export.save, a folder of transformers, or a "
    "callable that returns (module, example inputs) as path/to/file.py:name or package.module:name"
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
        dynamic_batch: Export with a symbolic first dimension of the inputs. Without, a folder of
            transformers is exported with a batch of one.
        progress: Called as work goes on.

    Raises:
        SourceError: The source is of no known kind, or torch cannot export it.
        ModelError: An ONNX file cannot be used.
        MissingDependencyError: A folder of transformers, without that package.
        ExportMismatchError: The exported graph computes something else than torch.
    """
    if not isinstance(source, (str, os.PathLike)):
        from edgecompress.sources.torch import export_module
        from edgecompress.sources.translate import How

        if example_inputs is None:
            raise SourceError(
                "a module says nothing of its inputs",
                where=type(source).__name__,
                cure="hand example_inputs over: a tuple of tensors, or a dictionary by name",
            )
        return export_module(
            source,
            example_inputs,
            how=How(type(source).__qualname__, opset, progress),
            dynamic_batch=dynamic_batch,
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
    path = _in_package(text) if _PACKAGE.match(text) else base / Path(text).expanduser()
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
        from edgecompress.sources.transformers_folder import looks_like

        if not looks_like(path):
            raise SourceError("is a folder, expected a model", where=text, cure=_ACCEPTED)
        from edgecompress.sources.transformers import export_folder

        return export_folder(
            path, origin=text, opset=opset, dynamic_batch=dynamic_batch, progress=progress
        )
    if is_reference(text):
        from edgecompress.sources.torch import call_user, export_module
        from edgecompress.sources.translate import How

        module, inputs = call_user(load_callable(text, base=base, refuse=SourceError), text)
        return export_module(
            module, inputs, how=How(text, opset, progress), dynamic_batch=dynamic_batch
        )
    raise SourceError(
        f"expected a model, got {text!r}" if path.exists() else "no such file, and no callable",
        where=text,
        cure=_ACCEPTED,
    )


def _in_package(text: str) -> Path:
    """The path that ``package:name/path`` stands for; the package is found, not imported."""
    name, _, path = text.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name)
    places = None if found is None else found.submodule_search_locations
    if not places:
        raise SourceError(
            f"no package {name!r} is installed", where=text, cure=f"pip install {name}"
        )
    return Path(places[0]) / path


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
