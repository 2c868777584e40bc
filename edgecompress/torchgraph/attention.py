"""Attention and rotary position embedding as single operators (opset 23 and later)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import torch_dtype


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[batch, length, heads * size] -> [batch, heads, length, size]."""
    if x.ndim == 4:
        return x
    if count is None:
        raise ModelError("inputs of rank 3 need q_num_heads and kv_num_heads")
    batch, length, width = x.shape
    return x.reshape(batch, length, count, width // count).transpose(1, 2)


def _mask_bias(mask: Tensor, dtype: torch.dtype, length: int) -> Tensor:
    """A mask as numbers to be added; keys behind a mask that is too short are not attended."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
    missing = length - mask.shape[-1]
    return functional.pad(mask, (0, missing), value=-math.inf) if missing > 0 else mask


def _distance(queries: int, keys: int, offset: Tensor | int, device: torch.device) -> Tensor:
    """Absolute place of each query minus that of each key: [..., queries, keys]."""
    rows = torch.arange(queries, device=device).unsqueeze(1)
    columns = torch.arange(keys, device=device)
    if isinstance(offset, Tensor):
        return rows + offset.reshape(-1, 1, 1, 1).to(device) - columns
    return rows + offset - columns


@op("Attention", since=23)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Scaled dot-product attention with grouped heads, cache, mask, soft cap and window.

    Args:
        q: [batch, heads, queries, size] or [batch, queries, heads * size]; k and v alike.
        k: Keys.
        v: Values.
        attn_mask: Booleans (True attends) or numbers to add; broadcast to
            [batch, heads, queries, keys].
        past_key: [batch, heads, past, size], put before ``k``.
        past_value: As ``past_key``, for the values.
        nonpad_kv_seqlen: [batch], keys that are real where the cache has a fixed length.
        is_causal: A query attends keys up to its own place.
        kv_num_heads: Heads of k and v, for inputs of rank 3.
        left_window_size: Keys further to the left are not attended; -1: no limit.
        q_num_heads: Heads of q, for inputs of rank 3.
        qk_matmul_output_mode: What the fourth output shows: 0 the products, 1 behind the soft cap,
            2 behind the mask, 3 behind the softmax.
        right_window_size: As ``left_window_size``.
        scale: Default 1 / sqrt(size).
        softcap: ``c * tanh(products / c)``; 0: none.
        softmax_precision: Element type of the softmax.
        n_outputs: Outputs wanted: result, keys, values, products.
    """
    rank = q.ndim
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if past_key is not None and past_value is not None:
        k = torch.cat([past_key, k], 2)
        v = torch.cat([past_value, v], 2)
    keys, values = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    bias = None if attn_mask is None else _mask_bias(attn_mask, q.dtype, k.shape[2])
    allowed = _allowed(
        (q.shape[2], k.shape[2]),
        q.device,
        0 if past_key is None else past_key.shape[2],
        nonpad_kv_seqlen,
        (left_window_size, right_window_size),
        bool(is_causal),
    )
    if allowed is not None:
        banned = torch.zeros_like(allowed, dtype=q.dtype).masked_fill(~allowed, -math.inf)
        bias = banned if bias is None else bias + banned
    root = math.sqrt(1 / math.sqrt(q.shape[3]) if scale is None else scale)
    products = (q * root) @ (k * root).transpose(2, 3)
    stages = [products]
    if softcap:
        products = softcap * torch.tanh(products / softcap)
    stages.append(products)
    logits = products if bias is None else products + bias
    stages.append(logits)
    weights = _softmax(logits, bias, softmax_precision).to(q.dtype)
    stages.append(weights)
    y = weights @ v
    if rank == 3:
        y = y.transpose(1, 2).flatten(2)
    return y if n_outputs == 1 else (y, keys, values, stages[qk_matmul_output_mode])


def _allowed(
    lengths: tuple[int, int],
    device: torch.device,
    past: int,
    real_keys: Tensor | None,
    window: tuple[int, int],
    causal: bool,
) -> Tensor | None:
    """Which key each query may attend by place alone; None: all of them."""
    queries, keys = lengths
    rules: list[Tensor] = []
    if causal or max(window) >= 0:
        offset = past if real_keys is None else real_keys - queries
        distance = _distance(queries, keys, offset, device)
        if causal:
            rules.append(distance >= 0)
        if window[0] >= 0:
            rules.append(distance <= window[0])
        if window[1] >= 0:
            rules.append(-distance <= window[1])
    if real_keys is not None:
        places = torch.arange(keys, device=device)
        rules.append(places < real_keys.to(device).reshape(-1, 1, 1, 1))
    if not rules:
        return None
    allowed = rules[0]
    for rule in rules[1:]:
        allowed = allowed & rule
    return allowed


def _softmax(logits: Tensor, bias: Tensor | None, precision: int | None) -> Tensor:
    """Softmax over keys; a query that may attend no key gets zeros instead of NaN."""
    if precision is not None:
        logits = logits.to(torch_dtype(precision))
    if bias is None:
        return torch.softmax(logits, -1)
    nothing = torch.isneginf(bias).all(-1, keepdim=True)
    # Logits of such a row are replaced before the softmax: its gradient would be NaN as well.
    weights = torch.softmax(logits.masked_fill(nothing, 0), -1)
    return weights.masked_fill(nothing, 0)


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of features by an angle that depends on the place.

    Args:
        x: [batch, heads, length, size] or [batch, length, heads * size].
        cos_cache: [places, size / 2], or [batch, length, size / 2] without ``position_ids``.
        sin_cache: As ``cos_cache``.
        position_ids: [batch, length].
        interleaved: Pairs are neighbours; otherwise the two halves.
        num_heads: Heads, for an input of rank 3.
        rotary_embedding_dim: Features that are rotated; 0: all.
    """
    whole = _heads(x, num_heads or None)
    size = rotary_embedding_dim or whole.shape[3]
    turned, rest = whole[..., :size], whole[..., size:]
    if position_ids is not None:
        cos_cache, sin_cache = cos_cache[position_ids], sin_cache[position_ids]
    cos, sin = cos_cache.unsqueeze(1), sin_cache.unsqueeze(1)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    if interleaved:
        turned = torch.stack([real, imaginary], -1).flatten(3)
    else:
        turned = torch.cat([real, imaginary], -1)
    y = torch.cat([turned, rest], -1)
    return y if x.ndim == 4 else y.transpose(1, 2).flatten(2)
