"""Attention with sub-graphs that change the scores or the probabilities (a preview operator)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgecompress.torchgraph.bodies import Body
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import torch_dtype


@op("FlexAttention", since=1, domain="ai.onnx.preview")
def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *outer: Any,
    prob_mod: Body | None = None,
    scale: float | None = None,
    score_mod: Body | None = None,
    softmax_precision: int | None = None,
) -> Tensor:
    """Scaled dot-product attention with grouped heads.

    Args:
        q: [batch, heads, queries, size].
        k: [batch, kv_heads, keys, size].
        v: [batch, kv_heads, keys, v_size].
        outer: Values that the sub-graphs read from outside.
        prob_mod: Sub-graph over the probabilities [batch, heads, queries, keys].
        scale: Default 1 / sqrt(size).
        score_mod: Sub-graph over the scaled products, before the softmax.
        softmax_precision: Element type between the products and the result; default: float32, of
            float64 inputs float64.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if softmax_precision is None:
        precision = torch.promote_types(q.dtype, torch.float32)
    else:
        precision = torch_dtype(softmax_precision)
    factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    scores = (q @ k.transpose(2, 3) * factor).to(precision)
    if score_mod is not None:
        (scores,) = score_mod((scores,), outer)
    probabilities = torch.softmax(scores, -1)
    if prob_mod is not None:
        (probabilities,) = prob_mod((probabilities,), outer)
    return probabilities.to(q.dtype) @ v
