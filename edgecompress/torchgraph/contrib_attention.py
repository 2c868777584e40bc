"""Attention as onnxruntime's optimizer fuses it; q, k and v are [batch, heads, length, size]."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.qlinear import matmul_integer_to_float
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported

_ORT = "com.microsoft"


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _padding_bias(mask: Tensor, lengths: tuple[int, int, int], value: float) -> Tensor:
    """A mask of keys as numbers to add, ``value`` where a key is not attended.

    Args:
        mask: [batch] ends, [2 * batch] ends and starts, or 1 where attended: [batch, keys] or
            [batch, queries, keys].
        lengths: Batch, queries, keys.
        value: A large negative number.
    """
    batch, queries, keys = lengths
    if mask.ndim == 1 and mask.shape[0] in (batch, 2 * batch):
        places = torch.arange(keys, device=mask.device)
        attended = places < mask[:batch].unsqueeze(1)
        if mask.shape[0] == 2 * batch:
            attended = attended & (places >= mask[batch:].unsqueeze(1))
    elif mask.shape in ((batch, keys), (batch, queries, keys)):
        attended = mask > 0
    else:
        raise unsupported(f"a mask of shape {list(mask.shape)}")
    attended = attended.reshape(batch, 1, -1, keys)
    return torch.zeros(attended.shape, device=mask.device).masked_fill(~attended, value)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None,
    mask: Tensor | None,
    mask_value: float,
    bias: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention with masks that are added; [batch, queries, heads * size], and the products."""
    queries, keys = q.shape[2], k.shape[2]
    logits = (q @ k.transpose(2, 3)) * (scale or 1 / math.sqrt(q.shape[3]))
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        added = _padding_bias(mask, (q.shape[0], queries, keys), mask_value)
        logits = logits + added.to(logits.dtype)
    if causal:
        future = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
        future = future.triu(keys - queries + 1)
        logits = logits.masked_fill(future, torch.finfo(logits.dtype).min)
    weights = torch.softmax(logits, -1)
    return (weights @ v).transpose(1, 2).flatten(2), logits


def _attention(
    projected: Tensor,
    sizes: tuple[int, ...] | None,
    heads: int,
    mask: Tensor | None,
    past: Tensor | None,
    bias: Tensor | None,
    *,
    scale: float,
    mask_value: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """From the merged projection [batch, length, q + k + v] to the result and the new past."""
    widths = list(sizes) if sizes else [projected.shape[2] // 3] * 3
    parts = torch.split_with_sizes(projected, widths, 2)
    q, k, v = (split_heads(part, heads) for part in parts)
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    y, _ = attend(q, k, v, scale=scale, mask=mask, mask_value=mask_value, bias=bias, causal=causal)
    present = torch.stack([k, v]) if k.shape == v.shape else k.new_empty(0)
    return y, present


@op("Attention", since=1, domain=_ORT)
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    """Self-attention with the projection inside.

    Args:
        x: [batch, length, hidden].
        weights: [hidden, q + k + v].
        bias: [q + k + v].
        mask_index: [batch], [2 * batch], [batch, keys] or [batch, length, keys].
        past: [2, batch, heads, past, size].
        attention_bias: Added to the products, [batch or 1, heads or 1, length, keys].
        past_sequence_length: Only of a shared buffer.
        do_rotary: Refused, as onnxruntime does on a CPU.
        mask_filter_value: Added where a key is not attended.
        num_heads: Heads.
        past_present_share_buffer: Refused.
        qkv_hidden_sizes: q, k and v; default: equal.
        rotary_embedding_dim: Only of rotary embedding.
        scale: Of the products; 0: 1 / sqrt(size).
        unidirectional: A query attends keys up to its own place.
    """
    if do_rotary or past_present_share_buffer:
        raise unsupported("Attention with rotary embedding or a shared buffer")
    projected = x @ weights
    return _attention(
        projected if bias is None else projected + bias,
        qkv_hidden_sizes,
        num_heads,
        mask_index,
        past,
        attention_bias,
        scale=scale,
        mask_value=mask_filter_value,
        causal=bool(unidirectional),
    )


@op("QAttention", since=1, domain=_ORT)
def qattention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    weight_zero_point: Tensor | None = None,
    past: Tensor | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor]:
    """:func:`attention` with an 8-bit projection."""
    if do_rotary or past_present_share_buffer:
        raise unsupported("QAttention with rotary embedding or a shared buffer")
    projected = matmul_integer_to_float(
        x, weight, x_scale, weight_scale, x_zero_point, weight_zero_point, bias
    )
    return _attention(
        projected,
        None,
        num_heads,
        mask_index,
        past,
        None,
        scale=scale,
        mask_value=mask_filter_value,
        causal=bool(unidirectional),
    )


def _unpacked(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v from whichever of the forms the inputs have."""
    if query.ndim == 5:  # [batch, length, heads, 3, size]
        merged = query.unbind(3)
        if bias is not None:
            shift = bias.reshape(3, heads, -1)
            merged = tuple(part + b for part, b in zip(merged, shift, strict=True))
        q, k, v = (part.transpose(1, 2) for part in merged)
        return q, k, v
    width = query.shape[2]
    shifts = None if bias is None else (bias[:width], bias[width : 2 * width], bias[2 * width :])
    q = split_heads(query if shifts is None else query + shifts[0], heads)
    if key is None:
        raise ModelError("expected a key beside a query that is not packed")
    if key.ndim == 5:  # [batch, length, heads, 2, size]
        if bias is not None:
            raise unsupported("MultiHeadAttention with packed keys and a bias")
        k, v = (part.transpose(1, 2) for part in key.unbind(3))
        return q, k, v
    if value is None:
        raise ModelError("expected a value beside a key that is not packed")
    if key.ndim == 4:  # projected and split already: cross attention
        if shifts is not None and any(bool(s.any()) for s in shifts[1:]):
            raise unsupported("MultiHeadAttention with a bias on keys that are split already")
        return q, key, value
    if shifts is not None:
        key, value = key + shifts[1], value + shifts[2]
    return q, split_heads(key, heads), split_heads(value, heads)


@op("MultiHeadAttention", since=1, domain=_ORT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    n_outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Attention behind projections.

    Args:
        query: [batch, length, hidden], or with key and value [batch, length, heads, 3, size].
        key: [batch, keys, hidden], with the value [batch, keys, heads, 2, size], or split
            already: [batch, heads, keys, size].
        value: As ``key``.
        bias: Of the projections of q, k and v, in one.
        key_padding_mask: [batch], [batch, keys] or [batch, length, keys].
        attention_bias: Added to the products, [batch or 1, heads or 1, length, keys].
        past_key: [batch, heads, past, size].
        past_value: As ``past_key``.
        past_sequence_length: Refused.
        cache_indirection: Refused.
        mask_filter_value: Added where a key is not attended.
        num_heads: Heads.
        scale: Of the products; 0: 1 / sqrt(size).
        unidirectional: A query attends keys up to its own place.
        n_outputs: Outputs wanted: result, keys, values.
    """
    if past_sequence_length is not None or cache_indirection is not None:
        raise unsupported("MultiHeadAttention with a shared buffer or beams")
    if n_outputs > 3:
        raise unsupported("the products of MultiHeadAttention as an output")
    mask = key_padding_mask
    if mask is not None and mask.ndim == 1 and mask.shape[0] != query.shape[0]:
        raise unsupported("MultiHeadAttention with cumulated lengths as a mask")
    q, k, v = _unpacked(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    y, _ = attend(
        q,
        k,
        v,
        scale=scale,
        mask=mask,
        mask_value=mask_filter_value,
        bias=attention_bias,
        causal=bool(unidirectional),
    )
    return y, k, v
