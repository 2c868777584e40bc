"""A folder of transformers or sentence-transformers, read from disk and exported.

Nothing is downloaded and no code of the folder is run. Graph inputs are ``input_ids``,
``attention_mask`` and, where the model tells segments apart, ``token_type_ids``, with the symbolic
axes ``batch`` and ``sequence``; or ``pixel_values`` of a fixed size. Outputs are ``logits``,
``start_logits`` and ``end_logits``, ``last_hidden_state`` or ``sentence_embedding``.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgecompress.data.preprocess import PreprocessSpec
from edgecompress.errors import SourceError
from edgecompress.progress import Progress
from edgecompress.sources.loaded import Loaded
from edgecompress.sources.sentence_embedding import (
    SentenceEncoder,
    encoder_folder,
    is_sentence_encoder,
    read_head,
)
from edgecompress.sources.torch import export_module
from edgecompress.sources.transformers_folder import (
    check_config,
    check_weights,
    library,
    quietly,
)
from edgecompress.sources.transformers_images import read_preprocess
from edgecompress.sources.transformers_tasks import (
    FEATURES,
    Task,
    find_task,
    read_model,
    stored_types,
)
from edgecompress.sources.translate import BATCH, How

__all__ = ["export_folder"]

_SEQUENCE = "sequence"
_ROWS, _LENGTH = 2, 8
_DEFAULT_IMAGE = 224
_FLOAT32 = {"F32", "I64", "BOOL"}


class Headed(torch.nn.Module):
    """A model of transformers with tensors in and the named tensors out."""

    def __init__(self, model: torch.nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Call the model with the inputs that are given."""
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "pixel_values": pixel_values,
        }
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        result = self.model(**given, return_dict=True)
        return {name: result[name] for name in self.outputs}


def export_folder(
    folder: Path, *, origin: str, opset: int, dynamic_batch: bool, progress: Progress
) -> Loaded:
    """Read a folder and export its model, checked against torch on several sizes and a mask.

    Weights stored in half precision are read as float32.

    Args:
        folder: A folder that ``save_pretrained`` or sentence-transformers wrote.
        origin: The source as the user named it.
        opset: ONNX operator set.
        dynamic_batch: Export with a symbolic batch size; else it is 1. Sequences stay symbolic.
        progress: Called as work goes on.

    Raises:
        SourceError: The folder is incomplete, broken, or of a kind that is not supported.
        MissingDependencyError: Transformers is not installed.
        ExportMismatchError: The exported graph computes something else.
    """
    transformers = library()
    sentences = is_sentence_encoder(folder)
    place = encoder_folder(folder, origin) if sentences else folder
    config = check_config(place, origin, transformers.CONFIG_MAPPING)
    files = check_weights(place, origin)
    task = FEATURES if sentences else find_task(config, origin)
    progress("read weights", 0, 1)
    with quietly(transformers):
        model = read_model(transformers, place, task, origin)
        module: torch.nn.Module = Headed(model, task.outputs)
        if sentences:
            module = SentenceEncoder(model, *read_head(folder, origin))
        preprocess, notes = None, _stored(files)
        images = getattr(model, "main_input_name", "") == "pixel_values"
        if images:
            preprocess, differences = read_preprocess(transformers, place, origin)
            notes += differences
    progress("read weights", 1, 1)
    how = How(origin, opset, progress, kind="transformers", share_weights=True)
    rows = _ROWS if dynamic_batch else 1
    if images:
        examples = _images(model, preprocess, rows)
    else:
        examples, how = _texts(model, rows, how)
    loaded = export_module(module.eval(), examples, how=how, dynamic_batch=dynamic_batch)
    return replace(
        loaded,
        folder=place,
        task="sentence-similarity" if sentences else _task_name(task, images),
        preprocess=preprocess,
        notes=tuple(notes),
    )


def _task_name(task: Task, images: bool) -> str:
    return "image-feature-extraction" if images and task is FEATURES else task.name


def _stored(files: list[Path]) -> list[str]:
    other = sorted(stored_types(files) - _FLOAT32)
    return [f"weights stored as {', '.join(other)} were read as float32"] if other else []


def _images(model: Any, preprocess: PreprocessSpec | None, rows: int) -> dict[str, torch.Tensor]:
    """Random images of the size that the preprocessor makes, or that the model was built for."""
    size = getattr(model.config, "image_size", None) or _DEFAULT_IMAGE
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    if preprocess is not None:
        fixed = preprocess.center_crop or preprocess.resize
        if preprocess.center_crop is not None or isinstance(preprocess.resize, tuple):
            height, width = fixed if isinstance(fixed, tuple) else (fixed, fixed)
    shape = (rows, getattr(model.config, "num_channels", 3), height, width)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def _texts(model: Any, rows: int, how: How) -> tuple[dict[str, torch.Tensor], How]:
    """Random tokens with padding behind some of them; other batches and lengths to compare on."""
    known = inspect.signature(model.forward).parameters
    if model.main_input_name != "input_ids" or "input_ids" not in known:
        raise SourceError(
            f"expected a model of text or images, got one that takes {model.main_input_name}",
            where=how.origin,
            cure="export it from a callable: path/to/file.py:name",
        )
    config = model.config.get_text_config()
    names = ["input_ids"]
    if "attention_mask" in known:
        names.append("attention_mask")
    if "token_type_ids" in known and getattr(config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    words = model.get_input_embeddings().num_embeddings
    positions = getattr(config, "max_position_embeddings", None) or 4 * _LENGTH
    length = max(4, min(_LENGTH, positions // 4))
    generator = torch.Generator().manual_seed(0)

    def tokens(rows: int, length: int, shortest: int) -> dict[str, torch.Tensor]:
        ends = torch.linspace(shortest, length, rows).long()
        ids = torch.randint(words, (rows, length), generator=generator)
        mask = (torch.arange(length) < ends[:, None]).long()
        types = (torch.arange(length) >= length // 2).long().repeat(rows, 1)
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: made[name] for name in names}

    checks = [tokens(1, length // 2 + 1, length // 2 + 1)]
    if rows > 1:
        checks.append(tokens(rows + 1, 2 * length - 1, length // 2))
    axes = {name: {0: BATCH, 1: _SEQUENCE} for name in names}
    return tokens(rows, length, length - 2), replace(how, axes=axes, checks=checks)
