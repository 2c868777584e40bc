"""Tokenizers: text to token ids, as the model's own directory says."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgecompress.errors import DataError, MissingDependencyError

__all__ = ["Encoded", "Text", "Tokenizer", "load_tokenizer", "read_json"]

Text = str | tuple[str, str] | list[str]
"""A text, a pair that is encoded together, or the words of a text."""

_FILES = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")
_UNBOUNDED = 10**9
_CURE = 'name a transformers directory or its tokenizer.json: tokenizer = "..." in [data]'


class Encoded(NamedTuple):
    """One text in tokens.

    Attributes:
        ids: Token ids, special tokens included.
        types: 0 for the first text of a pair, 1 for the second.
        words: Number of the word that a token belongs to, None for special tokens.
        truncated: It was longer than ``max_length``.
    """

    ids: Sequence[int]
    types: Sequence[int]
    words: Sequence[int | None]
    truncated: bool


class Tokenizer(ABC):
    """Encodes texts.

    Attributes:
        limit: The most tokens that the model takes, None where nothing says so.
        pad: The token that fills up sequences of fixed length.
        where: The tokenizer's file or folder.
    """

    limit: int | None
    pad: int
    where: str

    @abstractmethod
    def encode(
        self, texts: Sequence[Text], max_length: int | None, special: bool = True
    ) -> list[Encoded]:
        """Texts in tokens, each cut to ``max_length`` and none padded.

        Args:
            texts: All of one kind.
            max_length: At most so many tokens; None for no limit.
            special: Add special tokens such as [CLS] and [SEP].

        Raises:
            DataError: The tokenizer cannot encode such texts.
        """


class _Fast(Tokenizer):
    """A ``tokenizer.json``, run by the tokenizers library."""

    def __init__(self, backend: Any, where: str, pad: int, limit: int | None) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.where, self.pad, self.limit = where, pad, limit

    def encode(
        self, texts: Sequence[Text], max_length: int | None, special: bool = True
    ) -> list[Encoded]:
        words = bool(texts) and isinstance(texts[0], list)
        pair = bool(texts) and isinstance(texts[0], tuple)
        extra = self._backend.num_special_tokens_to_add(pair) if special else 0
        if max_length is not None and max_length <= extra:
            raise DataError(
                f"max_length is {max_length}, and special tokens alone take {extra}",
                where="data.max_length",
                cure="raise it",
            )
        try:
            if max_length is None:
                self._backend.no_truncation()
            else:
                self._backend.enable_truncation(max_length)
            found = self._backend.encode_batch(
                list(texts), is_pretokenized=words, add_special_tokens=special
            )
        except Exception as error:  # the library raises plain exceptions of its own
            raise _refused(error, self.where) from error
        return [Encoded(e.ids, e.type_ids, e.word_ids, bool(e.overflowing)) for e in found]


class _Slow(Tokenizer):
    """A tokenizer that exists in Python only, run by transformers."""

    def __init__(self, tokenizer: Any, where: str, pad: int, limit: int | None) -> None:
        self._tokenizer = tokenizer
        self.where, self.pad, self.limit = where, pad, limit

    def encode(
        self, texts: Sequence[Text], max_length: int | None, special: bool = True
    ) -> list[Encoded]:
        if texts and isinstance(texts[0], list):
            raise DataError(
                "labels of words need a tokenizer that says which token is part of which word",
                where=self.where,
                cure="convert it to a tokenizer.json: save it by transformers' save_pretrained",
            )
        return [self._one(text, max_length, special) for text in texts]

    def _one(self, text: Text, max_length: int | None, special: bool) -> Encoded:
        pair = text if isinstance(text, tuple) else (text,)
        try:
            whole = self._call(pair, special, truncation=False)
            truncated = max_length is not None and len(whole["input_ids"]) > max_length
            if truncated:
                whole = self._call(pair, special, truncation=True, max_length=max_length)
        except Exception as error:
            raise _refused(error, self.where) from error
        ids = whole["input_ids"]
        return Encoded(ids, whole.get("token_type_ids", [0] * len(ids)), [], truncated)

    def _call(self, pair: Sequence[Any], special: bool, **options: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._tokenizer(
            *pair, add_special_tokens=special, verbose=False, **options
        )
        return found


def _refused(error: Exception, where: str) -> DataError:
    return DataError(
        f"the tokenizer failed: {error}",
        where=where,
        cure="check that transformers can run the tokenizer on these texts",
    )


def load_tokenizer(option: str | None, base: Path, folder: Path | None) -> Tokenizer:
    """The tokenizer that ``data.tokenizer`` names, else the source model's own.

    Args:
        option: A transformers directory, or a ``tokenizer.json``.
        base: Folder that a relative path starts from.
        folder: The directory that the model came from, if it came from one.

    Raises:
        DataError: There is none, or it is broken.
        MissingDependencyError: The tokenizers library is not installed, or transformers is not
            and the directory has no ``tokenizer.json``.
    """
    place = folder if option is None else base / Path(option).expanduser()
    if place is None:
        raise DataError(
            "text needs a tokenizer, and the model brings none", where="data.tokenizer", cure=_CURE
        )
    if not place.exists():
        raise DataError(
            "no such file or folder", where=f"data.tokenizer: {option or place}", cure=_CURE
        )
    home = place if place.is_dir() else place.parent
    limit = min((n for n in map(_limit, {home, folder or home}) if n is not None), default=None)
    file = home / "tokenizer.json" if place.is_dir() else place
    if file.is_file():
        backend = _read(file)
        return _Fast(backend, str(file), _pad_of(backend, home), limit)
    if not any((home / name).is_file() for name in _FILES):
        raise DataError(
            f"no tokenizer: looked for tokenizer.json, {', '.join(_FILES)}",
            where=str(home),
            cure=_CURE,
        )
    return _from_transformers(home, limit)


def _read(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise MissingDependencyError("tokenizers", "reading text", "text") from error
    try:
        return Backend.from_str(file.read_text("utf-8"))
    except Exception as error:  # the library raises plain exceptions of its own
        raise DataError(
            f"is no tokenizer of the tokenizers library: {error}",
            where=str(file),
            cure="copy the file again, or save the tokenizer by transformers' save_pretrained",
        ) from error


def _from_transformers(home: Path, limit: int | None) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        what = "a tokenizer without tokenizer.json"
        raise MissingDependencyError("transformers", what, "transformers") from error
    try:
        found = AutoTokenizer.from_pretrained(str(home), local_files_only=True)
    except Exception as error:  # anything may be wrong with the files of a directory
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"transformers cannot load the tokenizer: {what}", where=str(home)) from (
            error
        )
    pad = found.pad_token_id if found.pad_token_id is not None else found.eos_token_id or 0
    backend = getattr(found, "backend_tokenizer", None)
    if backend is not None:
        return _Fast(backend, str(home), pad, limit)
    return _Slow(found, str(home), pad, limit)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        DataError: The file holds something else.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", where=str(file)) from error
    if not isinstance(found, dict):
        raise DataError("expected a JSON object", where=str(file))
    return found


def _limit(home: Path) -> int | None:
    config = read_json(home / "config.json")
    known = [config.get(key) for key in _LENGTH_KEYS]
    known.append(read_json(home / "tokenizer_config.json").get("model_max_length"))
    return min((n for n in known if isinstance(n, int) and 0 < n < _UNBOUNDED), default=None)


def _pad_of(backend: Any, home: Path) -> int:
    """The id of the padding token; of the end of text where a model has none."""
    if backend.padding is not None:
        return int(backend.padding["pad_id"])
    named = read_json(home / "special_tokens_map.json") | read_json(home / "tokenizer_config.json")
    for key in ("pad_token", "eos_token"):
        token = named.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        found = backend.token_to_id(token) if isinstance(token, str) else None
        if found is not None:
            return int(found)
    return 0
