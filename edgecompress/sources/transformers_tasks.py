"""What a model of transformers does, by its architecture, and its weights read for that."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgecompress.errors import SourceError
from edgecompress.sources.translate import reason

__all__ = ["FEATURES", "Task", "find_task", "read_model", "stored_types"]


@dataclass(frozen=True)
class Task:
    """One of transformers' Auto classes.

    Attributes:
        name: As Hugging Face's pipelines call it.
        auto_class: Name of the Auto class.
        mapping: Name of its table: model type to architectures.
        outputs: What of the result becomes an output of the graph.
    """

    name: str
    auto_class: str
    mapping: str
    outputs: tuple[str, ...] = ("logits",)


FEATURES = Task("feature-extraction", "AutoModel", "MODEL_MAPPING_NAMES", ("last_hidden_state",))
"""The encoder alone; the names of text and image tasks differ in pipelines, not here."""

_TASKS = (
    FEATURES,
    Task(
        "text-classification",
        "AutoModelForSequenceClassification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    ),
    Task(
        "token-classification",
        "AutoModelForTokenClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    ),
    Task(
        "question-answering",
        "AutoModelForQuestionAnswering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        ("start_logits", "end_logits"),
    ),
    Task("fill-mask", "AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    Task("text-generation", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    Task(
        "image-classification",
        "AutoModelForImageClassification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    ),
)


def find_task(config: dict[str, Any], origin: str) -> Task:
    """The task of the architecture that ``config.json`` names.

    Raises:
        SourceError: It names none, or one that does something else.
    """
    architectures = config.get("architectures") or []
    if not architectures:
        raise SourceError(
            "config.json names no architecture, and so not which head the weights belong to",
            where=origin,
            cure='add "architectures": ["BertModel"], or what it is, to config.json',
        )
    tables = importlib.import_module("transformers.models.auto.modeling_auto")
    kind = config["model_type"]
    encoder = getattr(tables, FEATURES.mapping).get(kind)
    for task in _TASKS:
        known = getattr(tables, task.mapping).get(kind, ())
        if architectures[0] in ((known,) if isinstance(known, str) else known):
            return task
    cure = "export it from a callable: path/to/file.py:name"
    if encoder:
        cure = f'for the encoder alone write "architectures": ["{encoder}"]; else {cure}'
    raise SourceError(
        f"expected an architecture for one of {', '.join(task.name for task in _TASKS)}, "
        f"got {architectures[0]}",
        where=origin,
        cure=cure,
    )


def read_model(transformers: Any, folder: Path, task: Task, origin: str) -> torch.nn.Module:
    """The model in float32 and evaluation mode, with the weights of the folder and no others.

    Attention is transformers' "eager" one: plain matrix products and a softmax with an additive
    mask, which runtimes recognise; the graph of "sdpa" guards each softmax by IsNaN and Where.

    Raises:
        SourceError: The weights are broken, pickled code, or lack some of the model.
    """
    try:
        model, info = getattr(transformers, task.auto_class).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as error:
        raise _unreadable(error, folder, origin) from error
    _refuse_missing(info["missing_keys"], task, origin)
    config = model.config.get_text_config()
    if hasattr(config, "use_cache"):
        config.use_cache = False
    found: torch.nn.Module = model.eval()
    return found


def _unreadable(error: BaseException, folder: Path, origin: str) -> SourceError:
    if type(error).__name__ == "SafetensorError":
        return SourceError(
            f"its weights are no safetensors file, or truncated: {reason(error)}",
            where=origin,
            cure="copy the weights again; check their size against the original",
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error).lower():
        return SourceError(
            "its weights need to unpickle more than tensors, which could run any code, and are "
            "refused",
            where=origin,
            cure="save them as safetensors, where you trust the folder",
        )
    return SourceError(
        f"transformers cannot load it: {type(error).__name__}: {reason(error)}",
        where=origin,
        cure=f"make transformers' from_pretrained({folder.name!r}) work first",
    )


def _refuse_missing(missing: Collection[str], task: Task, origin: str) -> None:
    """Transformers fills weights that a folder lacks with random numbers; nobody wants those."""
    # An encoder's own pooler is not among our outputs, and folders often lack its weights.
    lacking = sorted(
        name for name in missing if task is not FEATURES or "pooler" not in name.split(".")
    )
    if lacking:
        raise SourceError(
            f"its weights lack {len(lacking)} tensors that the architecture has: "
            + ", ".join(lacking[:3]),
            where=origin,
            cure="take the fine-tuned checkpoint; or name the architecture that it was saved from "
            "in config.json",
        )


def stored_types(files: list[Path]) -> set[str]:
    """Types of the stored weights, as safetensors writes them: ``F32``, ``BF16``; of its files."""
    safetensors = importlib.import_module("safetensors")
    types: set[str] = set()
    for file in files:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "pt") as held:
                types.update(held.get_slice(name).get_dtype() for name in held.keys())  # noqa: SIM118
    return types
