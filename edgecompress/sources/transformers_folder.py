"""What lies in a Hugging Face folder, before any weight is read: what it is, and what it lacks."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecompress.errors import MissingDependencyError, SourceError
from edgecompress.rewrite import quiet

__all__ = ["check_config", "check_weights", "library", "looks_like", "quietly", "read_json"]

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = tuple(f"{name}.index.json" for name in _WHOLE)
_MARKS = ("config.json", "modules.json", "model_index.json", "adapter_config.json")


def looks_like(folder: Path) -> bool:
    """Whether a folder holds files that the Hugging Face libraries write."""
    return any((folder / name).is_file() for name in (*_MARKS, *_WHOLE, *_INDEX))


def library() -> Any:
    """The module ``transformers``.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise MissingDependencyError(
            "transformers", "reading a transformers folder", "transformers"
        ) from None


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Hold back the library's warnings and progress bars; what matters becomes an error here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_json(file: Path, origin: str) -> Any:
    """A JSON file of the folder.

    Raises:
        SourceError: It is missing or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            f"has no {file.name}", where=origin, cure="copy the folder again, with all its files"
        ) from None
    except (OSError, ValueError) as error:
        raise SourceError(
            f"cannot be read as JSON: {error}", where=str(file), cure="copy the file again"
        ) from error


def check_config(folder: Path, origin: str, known: Any) -> dict[str, Any]:
    """Read ``config.json`` and refuse what can never be exported.

    Args:
        folder: The folder.
        origin: The source as the user named it, for errors.
        known: Model types that the installed transformers has code for.

    Raises:
        SourceError: A diffusion pipeline, an adapter, an encoder-decoder, quantized weights, an
            unknown model type, or one whose code is not part of transformers.
    """
    if (folder / "model_index.json").is_file():
        raise SourceError(
            "is a diffusers pipeline: several models, and a loop over them",
            where=origin,
            cure="export one of its models from a callable: path/to/file.py:name",
        )
    if (folder / "adapter_config.json").is_file():
        raise SourceError(
            "holds an adapter, whose base model lies elsewhere",
            where=origin,
            cure="merge it by peft's merge_and_unload() and save the whole model",
        )
    config = read_json(folder / "config.json", origin)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SourceError(
            "config.json names no model_type, by which transformers finds the architecture",
            where=origin,
            cure="take the folder that save_pretrained() of transformers wrote",
        )
    kind = config["model_type"]
    if kind not in known:
        _refuse_unknown(kind, "auto_map" in config, origin)
    if config.get("is_encoder_decoder"):
        raise SourceError(
            f"is an encoder-decoder ({kind}), whose decoder runs in a loop outside the graph",
            where=origin,
            cure="export the encoder and the decoder each from a callable: path/to/file.py:name",
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "an unknown method")
        raise SourceError(
            f"its weights are quantized already, by {method}",
            where=origin,
            cure="take the float checkpoint; edgecompress quantizes it for the target",
        )
    return config


def _refuse_unknown(kind: str, remote: bool, origin: str) -> None:
    if remote:
        raise SourceError(
            f"its architecture {kind!r} is Python code inside the folder, which is not run",
            where=origin,
            cure="where you trust that code, build the module in a callable of your own: "
            "path/to/file.py:name",
        )
    raise SourceError(
        f"transformers {library().__version__} knows no architecture {kind!r}",
        where=origin,
        cure="a newer release may know it: pip install -U transformers",
    )


def check_weights(folder: Path, origin: str) -> list[Path]:
    """The files that hold the weights.

    Raises:
        SourceError: There are none, or parts that an index names are missing.
    """
    for name in _WHOLE:
        if (folder / name).is_file():
            return [folder / name]
    for name in _INDEX:
        if (folder / name).is_file():
            index = read_json(folder / name, origin)
            parts = sorted(set(index.get("weight_map", {}).values()))
            missing = [part for part in parts if not (folder / part).is_file()]
            if missing or not parts:
                raise SourceError(
                    f"{name} names {len(parts)} files of weights, {len(missing)} are missing: "
                    + ", ".join(missing[:3]),
                    where=origin,
                    cure="copy the folder again, with all its files",
                )
            return [folder / part for part in parts]
    raise SourceError(
        f"holds no weights: expected one of {', '.join((*_WHOLE, *_INDEX))}",
        where=origin,
        cure="copy the folder again, with all its files",
    )
