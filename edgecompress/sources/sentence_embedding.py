"""Folders of sentence-transformers: an encoder, a pooling and what follows, as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgecompress.errors import SourceError
from edgecompress.sources.checkpoint import read
from edgecompress.sources.transformers_folder import read_json

__all__ = ["SentenceEncoder", "encoder_folder", "is_sentence_encoder", "read_head"]

_LIBRARY = "sentence_transformers."
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooling(nn.Module):
    """One vector per row from its tokens; several modes are put side by side.

    The modes are those of sentence-transformers: ``cls`` (the first token), ``lasttoken``,
    ``max``, ``mean``, ``mean_sqrt_len_tokens`` (the sum divided by the root of the length) and
    ``weightedmean`` (token i weighs i).
    """

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool ``tokens [B, T, D]`` where ``mask [B, T]`` is 1; returns ``[B, D * modes]``."""
        pooled = [_POOLINGS[mode](tokens, mask) for mode in self.modes]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)


def _weighted(tokens: torch.Tensor, weights: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    weights = weights.unsqueeze(-1).to(tokens.dtype)
    total = weights.sum(1).clamp(min=1e-9)
    return (tokens * weights).sum(1) / (total if power == 1 else total**power)


def _maximum(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lowest = torch.finfo(tokens.dtype).min
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, lowest).amax(1)


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    place = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    index = place[:, None, None].expand(-1, 1, tokens.shape[-1])
    return tokens.gather(1, index).squeeze(1)


_POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": lambda tokens, mask: tokens[:, 0],
    "lasttoken": _last,
    "max": _maximum,
    "mean": _weighted,
    "mean_sqrt_len_tokens": lambda tokens, mask: _weighted(tokens, mask, 0.5),
    "weightedmean": lambda tokens, mask: _weighted(tokens, mask.cumsum(1) * mask),
}


class Normalize(nn.Module):
    """Divide each row by its Euclidean length."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalize ``rows [B, D]``."""
        return nn.functional.normalize(rows, p=2.0, dim=-1)


class SentenceEncoder(nn.Module):
    """Tokens to one vector per sentence."""

    def __init__(self, encoder: nn.Module, pooling: nn.Module, tail: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.tail = nn.Sequential(*tail)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return ``sentence_embedding [B, D]`` of ids and mask ``[B, T]``."""
        given = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **given
        )
        pooled = self.pooling(result.last_hidden_state, attention_mask)
        return {"sentence_embedding": self.tail(pooled)}


def is_sentence_encoder(folder: Path) -> bool:
    """Whether sentence-transformers wrote the folder."""
    return (folder / "modules.json").is_file()


def encoder_folder(folder: Path, origin: str) -> Path:
    """Where the encoder and its tokenizer lie: mostly the folder itself.

    Raises:
        SourceError: The first module is no transformer.
    """
    modules = _modules(folder, origin)
    if modules[0][0] != "Transformer":
        raise _unknown(modules[0][0], "Transformer as the first module", origin)
    return modules[0][1]


def read_head(folder: Path, origin: str) -> tuple[nn.Module, list[nn.Module]]:
    """The pooling, and the modules behind it, with their weights.

    Raises:
        SourceError: A module of another kind, or one whose code is not sentence-transformers'.
    """
    modules = _modules(folder, origin)[1:]
    if not modules or modules[0][0] != "Pooling":
        got = modules[0][0] if modules else "nothing"
        raise _unknown(got, "Pooling as the second module", origin)
    tail: list[nn.Module] = []
    for kind, place in modules[1:]:
        if kind == "Normalize":
            tail.append(Normalize())
        elif kind == "Dense":
            tail.extend(_dense(place, origin))
        else:
            raise _unknown(kind, "Normalize or Dense behind the pooling", origin)
    return _pooling(modules[0][1], origin), tail


def _modules(folder: Path, origin: str) -> list[tuple[str, Path]]:
    """Kinds and folders of the modules, in order."""
    listed = read_json(folder / "modules.json", origin)
    try:
        entries = [(str(each["type"]), folder / each["path"]) for each in listed]
    except (TypeError, KeyError):
        entries = []
    if not entries:
        raise SourceError("modules.json lists no modules", where=origin, cure="copy it again")
    for kind, _ in entries:
        if not kind.startswith(_LIBRARY):
            raise SourceError(
                f"its module {kind!r} is Python code of somebody else, which is not run",
                where=origin,
                cure="where you trust that code, build the module in a callable of your own: "
                "path/to/file.py:name",
            )
    return [(kind.rpartition(".")[2], place) for kind, place in entries]


def _pooling(place: Path, origin: str) -> Pooling:
    config = read_json(place / "config.json", origin)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY.items() if config.get(key)] or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    unknown = [mode for mode in modes if mode not in _POOLINGS]
    if unknown:
        raise _unknown(unknown[0], f"a pooling of {', '.join(_POOLINGS)}", origin)
    return Pooling(modes)


def _dense(place: Path, origin: str) -> list[nn.Module]:
    config = read_json(place / "config.json", origin)
    inside = config.get("module_input_name", "sentence_embedding")
    if config.get("use_residual") or inside != "sentence_embedding":
        raise _unknown("one with a residual or on tokens", "a plain Dense module", origin)
    files = [place / name for name in ("model.safetensors", "pytorch_model.bin")]
    weights = read(next((file for file in files if file.is_file()), files[0]))
    try:
        linear = _linear(weights)
    except (KeyError, RuntimeError) as error:
        raise SourceError(
            "expected linear.weight and linear.bias in a Dense module", where=str(place)
        ) from error
    return [linear, _activation(config, origin)]


def _linear(weights: Mapping[str, torch.Tensor]) -> nn.Linear:
    outputs, inputs = weights["linear.weight"].shape
    linear = nn.Linear(inputs, outputs, bias="linear.bias" in weights)
    linear.load_state_dict({key.removeprefix("linear."): t for key, t in weights.items()})
    return linear


def _activation(config: Mapping[str, Any], origin: str) -> nn.Module:
    """The module that ``activation_function`` names; only activations of torch itself."""
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    short = name.rpartition(".")[2]
    found = getattr(nn, short, None) if name.startswith("torch.nn.") else None
    if short != "Identity" and getattr(found, "__module__", "") != "torch.nn.modules.activation":
        raise _unknown(name, "an activation of torch.nn", origin)
    made: nn.Module = getattr(nn, short)()
    return made


def _unknown(got: str, expected: str, origin: str) -> SourceError:
    return SourceError(
        f"expected {expected}, got {got}",
        where=origin,
        cure="build the module in a callable of your own: path/to/file.py:name",
    )
