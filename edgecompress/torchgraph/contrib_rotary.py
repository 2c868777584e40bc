"""Rotary embedding and grouped attention with a cache, as language models carry them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgecompress.torchgraph.attention import rotary_embedding as rotary_embedding_23
from edgecompress.torchgraph.contrib_attention import split_heads
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported

_ORT = "com.microsoft"


@op("RotaryEmbedding", since=1, domain=_ORT)
def rotary_embedding(
    x: Tensor,
    position_ids: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """As the standard operator, which came later; the inputs stand in another order.

    Args:
        x: [batch, heads, length, size] or [batch, length, heads * size].
        position_ids: [batch, length], or [1]: the place of the first element.
        cos_cache: [places, size / 2].
        sin_cache: As ``cos_cache``.
        interleaved: Pairs are neighbours; otherwise the two halves.
        is_packed_batching: Refused.
        num_heads: Heads, for an input of rank 3 of which only a part is rotated.
        rotary_embedding_dim: Features that are rotated; 0: all.
        scale: Only 1.
    """
    if is_packed_batching or scale != 1.0:
        raise unsupported("RotaryEmbedding with packed batching or a scale")
    length = x.shape[-2]
    if position_ids.numel() == 1 and position_ids.ndim == 1:
        places = torch.arange(length, device=x.device) + position_ids.to(x.device)
        position_ids = places.expand(x.shape[0], length)
    if x.ndim == 3 and not num_heads:
        num_heads = x.shape[2] // (2 * cos_cache.shape[1])
    return rotary_embedding_23(
        x,
        cos_cache,
        sin_cache,
        position_ids.long(),
        interleaved=interleaved,
        num_heads=num_heads,
        rotary_embedding_dim=rotary_embedding_dim,
    )


def _cached(past: Tensor | None, new: Tensor, start: Tensor, room: int) -> Tensor:
    """The cache [batch, heads, room, size] with new entries from ``start`` [batch] on."""
    batch, heads, length, size = new.shape
    have = 0 if past is None else past.shape[2]
    blank = new.new_zeros(batch, heads, max(room - have, 0), size)
    cache = blank if past is None else torch.cat([past, blank], 2)
    places = start.reshape(-1, 1, 1, 1) + torch.arange(length, device=new.device).reshape(-1, 1)
    return cache.scatter(2, places.expand(new.shape), new)


@op("GroupQueryAttention", since=1, domain=_ORT, host=(6,))
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    *,
    do_rotary: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    smooth_softmax: int = 0,
    softcap: float = 0.0,
    n_outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Causal attention of a language model, keys and values shared by groups of heads.

    Where samples are shorter than the longest, results of queries and cached values behind the end
    of a sample are left open by the operator; here the queries attend as all others do.

    Args:
        query: [batch, length, heads * size], or with key and value behind it in the last axis.
        key: [batch, length, kv_heads * size].
        value: As ``key``.
        past_key: [batch, kv_heads, past, size].
        past_value: As ``past_key``.
        seqlens_k: [batch]: keys that are real in the end, minus one.
        total_sequence_length: The largest number of keys.
        cos_cache: [places, size / 2].
        sin_cache: As ``cos_cache``.
        position_ids: Refused: the places follow from ``seqlens_k``.
        attention_bias: Added to the products, [batch or 1, heads or 1, length, keys].
        head_sink: Refused.
        do_rotary: Rotate queries and keys first.
        kv_num_heads: Heads of keys and values.
        local_window_size: Keys that a query attends, itself included; -1: all before it.
        num_heads: Heads of the queries.
        rotary_interleaved: Pairs are neighbours.
        scale: Of the products; 0: 1 / sqrt(size).
        smooth_softmax: Refused.
        softcap: ``c * tanh(products / c)``; 0: none.
        n_outputs: Outputs wanted: result, keys, values.
    """
    if past_key is not None and n_outputs < 3:
        raise unsupported("GroupQueryAttention with a past whose new state is no output")
    if position_ids is not None or head_sink is not None or smooth_softmax or n_outputs > 3:
        raise unsupported(
            "GroupQueryAttention with position_ids, head_sink, smooth_softmax or products"
        )
    if key is None or value is None:
        size = query.shape[2] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split_with_sizes(
            query, [num_heads * size, kv_num_heads * size, kv_num_heads * size], 2
        )
    q, k, v = (
        split_heads(query, num_heads),
        split_heads(key, kv_num_heads),
        split_heads(value, kv_num_heads),
    )
    length, total = q.shape[2], int(total_sequence_length)
    ends = seqlens_k.reshape(-1).long().to(q.device) + 1
    start = torch.zeros_like(ends) if length == total else ends - length
    places = start.unsqueeze(1) + torch.arange(length, device=q.device)
    if do_rotary and cos_cache is not None and sin_cache is not None:
        q, k = (
            rotary_embedding_23(x, cos_cache, sin_cache, places, interleaved=rotary_interleaved)
            for x in (q, k)
        )
    keys, values = (
        _cached(old, new, start, total) for old, new in ((past_key, k), (past_value, v))
    )
    groups = num_heads // kv_num_heads
    wide_k, wide_v = (x[:, :, :total].repeat_interleave(groups, 1) for x in (keys, values))
    logits = (q @ wide_k.transpose(2, 3)) * (scale or 1 / math.sqrt(q.shape[3]))
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if attention_bias is not None:
        logits = logits + attention_bias
    distance = places.unsqueeze(2) - torch.arange(total, device=q.device)
    banned = distance < 0
    if local_window_size >= 0:
        banned = banned | (distance >= local_window_size)
    weights = torch.softmax(logits.masked_fill(banned.unsqueeze(1), -math.inf), -1)
    return (weights @ wide_v).transpose(1, 2).flatten(2), keys, values
