"""Weights from a checkpoint, without running any code that the file may hold."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgecompress.errors import MissingDependencyError, SourceError
from edgecompress.rewrite import quiet

__all__ = ["read"]

_NESTED_UNDER = ("state_dict", "model_state_dict", "model")


def read(path: Path) -> dict[str, torch.Tensor]:
    """See :func:`edgecompress.sources.load_checkpoint`."""
    if not path.is_file():
        raise SourceError("no such file", where=str(path), cure="check the path")
    held = _safetensors(path) if path.suffix.lower() == ".safetensors" else _pickle(path)
    for key in _NESTED_UNDER:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
            break
    if not isinstance(held, Mapping) or not held:
        raise _no_tensors(path, type(held).__name__)
    for name, tensor in held.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise _no_tensors(path, f"{type(tensor).__name__} under {name!r}")
    return dict(held)


def _pickle(path: Path) -> Any:
    try:
        with quiet():
            return _mapped(path)
    except pickle.UnpicklingError as error:
        raise SourceError(
            "needs to unpickle more than tensors, which could run any code, and is refused",
            where=str(path),
            cure="save the weights alone, where you trust the file: "
            "torch.save(module.state_dict(), path)",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise SourceError(
            f"is not a checkpoint, or it is truncated ({path.stat().st_size:,} bytes)",
            where=str(path),
            cure="copy it again; check its size against the original",
        ) from error


def _mapped(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:
        # Files from before torch 1.6 are no zip archives, and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> Any:
    try:
        safetensors = importlib.import_module("safetensors")
        load_file = importlib.import_module("safetensors.torch").load_file
    except ImportError:
        raise MissingDependencyError(
            "safetensors", "reading a .safetensors file", "transformers"
        ) from None
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise SourceError(
            f"is not a safetensors file, or it is truncated: {error}",
            where=str(path),
            cure="copy it again; check its size against the original",
        ) from error


def _no_tensors(path: Path, got: str) -> SourceError:
    return SourceError(
        f"expected tensors by name, got {got}",
        where=str(path),
        cure="save the weights alone: torch.save(module.state_dict(), path)",
    )
