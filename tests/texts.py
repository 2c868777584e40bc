"""A small tokenizer and small text files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.model import Signature, TensorSpec

WORDS = list("abcdefghijklmnopqrstuvwxyz")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNKNOWN, FIRST, LAST = range(4)
BERT = ("input_ids", "attention_mask", "token_type_ids")


def save_tokenizer(folder: Path, *, special: bool = True, **config: Any) -> Path:
    """One token per letter or other word; [CLS] and [SEP] around, where ``special``."""
    folder.mkdir(exist_ok=True)
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", FIRST), ("[SEP]", LAST)],
        )
    # What stands in the file must not leak into rows: they are neither padded nor cut by it.
    tokenizer.enable_padding(length=32, pad_id=PAD)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def ids_of(text: str, special: bool = True) -> list[int]:
    ids = [len(SPECIAL) + WORDS.index(w) if w in WORDS else UNKNOWN for w in text.split()]
    return [FIRST, *ids, LAST] if special else ids


def token_inputs(*names: str, length: int | str = "length", batch: int | str = "N") -> Signature:
    return Signature(tuple(TensorSpec(n, "int64", (batch, length)) for n in names or BERT), ())


def text_rows(
    place: Path, spec: dict[str, Any], signature: Signature | None = None, **options: Any
) -> CalibrationSet:
    """Rows of text with the tokenizer in ``place / "model"``."""
    if not (place / "model").exists():
        save_tokenizer(place / "model")
    options = {"base": place, "folder": place / "model", **options}
    return CalibrationSet.open(DataSpec(**spec), signature or token_inputs(), **options)


def save_lines(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return file
