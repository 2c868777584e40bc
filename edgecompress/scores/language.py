"""Perplexity of causal language models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import DataError
from edgecompress.scores.base import Arrays, Batch, Predict, Score

__all__ = ["Perplexity"]

Array = npt.NDArray[Any]

_LOOKS_AHEAD = 0.2


class Perplexity(Score):
    """exp of the mean negative log-likelihood of each real token but the first of a row."""

    def __init__(self) -> None:
        self.loss, self.tokens = 0.0, 0

    def prepare(self, predict: Predict, batch: Batch) -> None:
        """Refuse a model whose logits depend on later tokens.

        Tokens of the second half of a row are exchanged: the logits before them must stay, apart
        from small errors such as those of scales that are taken over all positions. (They change
        by 0.5 to 1.5 of their norm in a BERT, by nothing in a Llama.)

        Raises:
            DataError: They change.
        """
        name, ids = _token_ids(batch)
        last = ids.shape[1] if batch.mask is None else int(batch.mask[0].sum())
        if last < 2:
            return
        half, first, changed = last // 2, ids[0, 0], ids.copy()
        other = next(token for token in (ids.min(), ids.max(), 0, 1) if token != first)
        later = ids[0, half:last]
        changed[0, half:last] = np.where(later == first, other, first)
        output, before = _logits(predict(batch.inputs), ids)
        after = _logits(predict({**batch.inputs, name: changed}), ids)[1]
        a, b = (x[0, half - 1].astype(np.float64) for x in (before, after))
        if np.linalg.norm(a - b) > _LOOKS_AHEAD * np.linalg.norm(a - a.mean()):
            raise DataError(
                f"the output {output!r} at a token depends on later tokens: this is no causal "
                "language model",
                where="metric",
                cure="judge masked language models by 'agreement', 'cosine' or 'sqnr'",
            )

    def add(self, outputs: Arrays, reference: Arrays, batch: Batch) -> None:
        """Take in one batch."""
        _, ids = _token_ids(batch)
        _, logits = _logits(outputs, ids)
        real = np.ones(ids.shape, bool) if batch.mask is None else batch.mask
        for row, tokens, counted in zip(logits, ids, real, strict=True):
            counted = counted[1:]
            loss = _losses(row[:-1][counted], tokens[1:][counted])
            self.loss += float(loss.sum())
            self.tokens += len(loss)

    def value(self) -> float:
        """The metric over all batches."""
        if not self.tokens:
            raise DataError("perplexity needs rows of two tokens at least", where="data")
        with np.errstate(over="ignore"):
            value = float(np.exp(self.loss / self.tokens))
        return float("inf") if np.isnan(value) else value


def _losses(logits: Array, tokens: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    if not shifted.size:
        return np.zeros(0)
    shifted -= shifted.max(axis=1, keepdims=True)
    target = np.take_along_axis(shifted, tokens[:, None].astype(np.int64), axis=1)[:, 0]
    losses: npt.NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1)) - target
    return losses


def _token_ids(batch: Batch) -> tuple[str, Array]:
    tables = {n: a for n, a in batch.inputs.items() if a.ndim == 2 and a.dtype.kind in "iu"}
    name = "input_ids" if "input_ids" in tables or len(tables) != 1 else next(iter(tables))
    if name not in tables:
        raise DataError(
            f"perplexity needs token ids, the model takes: {', '.join(batch.inputs)}",
            where="metric",
            cure="call the input of token ids 'input_ids'",
        )
    return name, tables[name]


def _logits(outputs: Arrays, ids: Array) -> tuple[str, Array]:
    for name, output in outputs.items():
        if output.ndim == 3 and output.shape[:2] == ids.shape and output.dtype.kind == "f":
            return name, output
    listed = ", ".join(f"{name} {list(output.shape)}" for name, output in outputs.items())
    raise DataError(
        f"perplexity needs logits [rows, length, vocabulary], the model's outputs are: {listed}",
        where="metric.output",
        cure="export the model as a causal language model, with all logits",
    )
