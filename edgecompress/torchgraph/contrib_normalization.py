"""Normalizations that onnxruntime has fused with what stands before them."""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.normalization import layer_norm, rms_norm
from edgecompress.torchgraph.quantize import dequantize_linear
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of

_ORT = "com.microsoft"


@op("SimplifiedLayerNormalization", since=1)
@op("SimplifiedLayerNormalization", since=1, domain=_ORT)
def simplified_layer_norm(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNormalization under the name that onnxruntime used before opset 23."""
    y = rms_norm(x, scale, axis=axis, epsilon=epsilon)
    if n_outputs == 1:
        return y
    axes = list(range(axis_of(axis, x.ndim), x.ndim))
    return y, torch.rsqrt(x.float().square().mean(axes, keepdim=True) + epsilon)


def _sum(x: Tensor, skip: Tensor, bias: Tensor | None) -> Tensor:
    return x + skip if bias is None else x + skip + bias


@op("SkipLayerNormalization", since=1, domain=_ORT)
def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """LayerNormalization of a sum, and the sum as the fourth output."""
    total = _sum(x, skip, bias)
    if n_outputs == 1:
        return layer_norm(total, gamma, beta, epsilon=epsilon)
    y, mean, inverse = layer_norm(total, gamma, beta, epsilon=epsilon, n_outputs=3)
    return y, mean, inverse, total


@op("SkipSimplifiedLayerNormalization", since=1, domain=_ORT)
def skip_simplified_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """RMSNormalization of a sum, and the sum as the fourth output."""
    total = _sum(x, skip, bias)
    inverse = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + epsilon)
    return rms_norm(total, gamma, epsilon=epsilon), torch.zeros_like(inverse), inverse, total


@op("EmbedLayerNormalization", since=1, domain=_ORT)
def embed_layer_norm(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNormalization of the sum of embeddings.

    Args:
        input_ids: [batch, length].
        segment_ids: [batch, length].
        word_embedding: [words, hidden].
        position_embedding: [places, hidden].
        segment_embedding: [segments, hidden].
        gamma: [hidden].
        beta: [hidden].
        mask: [batch, length]; 1 where a word is real.
        position_ids: [batch or 1, length]; default: 0, 1, 2 ...
        epsilon: Added to the variance.
        mask_index_type: A hint for shape inference.

    Returns:
        The normalized sum, the number of real words of each sample, the sum.
    """
    batch, length = input_ids.shape
    if position_ids is None:
        positions = position_embedding[:length]
    else:
        positions = position_embedding[position_ids.long()]
    total = word_embedding[input_ids.long()] + positions
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids.long()]
    if mask is None:
        count = torch.zeros(batch, dtype=torch.int32, device=total.device)
    else:
        count = (mask == 1).sum(1, dtype=torch.int32)
    return layer_norm(total, gamma, beta, epsilon=epsilon), count, total  # type: ignore[return-value]


@op("QEmbedLayerNormalization", since=1, domain=_ORT)
def qembed_layer_norm(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None,
    *grids: Tensor | None,
    epsilon: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """:func:`embed_layer_norm` of 8-bit tables; first their scales, then their zero points."""
    tables = (word_embedding, position_embedding, segment_embedding, gamma, beta)
    scales, zero_points = grids[:5], grids[5:] + (None,) * (10 - len(grids))
    word, position, segment, g, b = (
        table if table is None or scale is None else dequantize_linear(table, scale, zero_point)
        for table, scale, zero_point in zip(tables, scales, zero_points, strict=True)
    )
    if word is None or position is None or g is None or b is None:
        raise ModelError("a table of QEmbedLayerNormalization is absent")
    y, count, _ = embed_layer_norm(
        input_ids, segment_ids, word, position, segment, g, b, mask, epsilon=epsilon
    )
    return y, count
