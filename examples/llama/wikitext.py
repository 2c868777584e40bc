"""Rows for a small language model: WikiText-2 in windows of 256 tokens.

The model of the recipe beside was trained on the first 95 % of the text. So those calibrate, and
only the rest, which it has never seen, is fit to judge it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
_TOKENS = 256
_CALIBRATION_ROWS = 128


def rows(split: str) -> dict[str, npt.NDArray[np.int64]]:
    """Token ids and masks, ``[rows, 256]``.

    Args:
        split: ``calibration`` or ``validation``.
    """
    from tokenizers import Tokenizer

    text = (_DATA / "wikitext2_valid.txt").read_text(encoding="utf-8")
    seen = len(text) * 95 // 100
    tokenizer = Tokenizer.from_file(str(_DATA / "llama10m" / "tokenizer.json"))
    part = text[:seen] if split == "calibration" else text[seen:]
    tokens = np.array(tokenizer.encode(part, add_special_tokens=False).ids)
    whole = tokens[: len(tokens) // _TOKENS * _TOKENS].reshape(-1, _TOKENS)
    if split == "calibration":
        whole = np.random.default_rng(0).permutation(whole)[:_CALIBRATION_ROWS]
    return {"input_ids": whole, "attention_mask": np.ones_like(whole)}
