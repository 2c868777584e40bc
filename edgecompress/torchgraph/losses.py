"""Losses of classification, which files that were exported for training end in."""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported


def _reduced(loss: Tensor, weight: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / weight.sum()
    raise unsupported(f"reduction={reduction!r}")


@op("NegativeLogLikelihoodLoss", since=12)
def nll_loss(
    log_probabilities: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``-weight[target] * log_probabilities[target]``; the mean is weighted.

    Written out, as torch's own loss lets no gradient through to the weights of the classes.

    Args:
        log_probabilities: [n, classes, ...].
        target: [n, ...], integers.
        weight: [classes]; default: all ones.
        ignore_index: A target that weighs nothing; it need not be a class.
        reduction: ``none``, ``sum`` or ``mean``.
    """
    index = target.long()
    keep = torch.ones_like(index, dtype=torch.bool)
    if ignore_index is not None:
        keep = index != ignore_index
        index = index.masked_fill(~keep, 0)
    picked = log_probabilities.gather(1, index.unsqueeze(1)).squeeze(1)
    weights = torch.ones_like(picked) if weight is None else weight[index]
    weights = weights * keep
    # A masked element may be -inf, and 0 * inf is not a number.
    loss = -picked.masked_fill(~keep, 0) * weights
    return _reduced(loss, weights, reduction)


@op("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """:func:`nll_loss` of the log-softmax over axis 1, and that log-softmax."""
    logs = torch.log_softmax(scores, 1)
    loss = nll_loss(logs, labels, weights, ignore_index=ignore_index, reduction=reduction)
    return loss, logs
