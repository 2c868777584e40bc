"""Attention with a state of fixed size, and the causal convolution before it (opset 27)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported


@op("CausalConvWithState", since=27)
def causal_conv_with_state(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over the past, and the last inputs as the next state.

    Args:
        x: [batch, channels, length].
        weight: [channels, 1, k].
        bias: [channels].
        past_state: [batch, channels, k - 1]; default: zeros.
        activation: ``none``, ``silu`` or ``swish``.
    """
    if activation not in ("none", "silu", "swish"):
        raise unsupported(f"activation={activation!r}")
    keep = weight.shape[2] - 1
    past = x.new_zeros(*x.shape[:2], keep) if past_state is None else past_state
    whole = torch.cat([past, x], 2)
    y = functional.conv1d(whole, weight, bias, groups=x.shape[1])
    present = whole.narrow(2, whole.shape[2] - keep, keep)
    return (y if activation == "none" else functional.silu(y)), present


@op("LinearAttention", since=27)
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """Token by token: the state takes up key and value, the query reads it.

    Args:
        query: [batch, length, q_heads * d_k].
        key: [batch, length, kv_heads * d_k].
        value: [batch, length, kv_heads * d_v].
        past_state: [batch, kv_heads, d_k, d_v]; default: zeros.
        decay: Logarithm of what the state keeps, per head or per key feature.
        beta: Rate of the update, [batch, length, kv_heads or 1].
        chunk_size: A hint for parallel kernels.
        kv_num_heads: Heads of key and value.
        q_num_heads: Heads of the query.
        scale: Factor of the result; 0: 1 / sqrt(d_k).
        update_rule: ``linear``, ``gated``, ``delta`` or ``gated_delta``.
    """
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise unsupported(f"update_rule={update_rule!r}")
    gated, delta = update_rule.startswith("gated"), update_rule.endswith("delta")
    if (gated and decay is None) or (delta and beta is None):
        raise ModelError(f"update_rule={update_rule!r} needs {'decay' if gated else 'beta'}")
    batch, length, _ = query.shape
    dtype = query.dtype
    # The state gathers rounding errors over the whole sequence.
    wide = torch.promote_types(dtype, torch.float32)
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    q = query.reshape(batch, length, q_num_heads, -1)
    k = key.reshape(batch, length, kv_num_heads, -1)
    v = value.reshape(batch, length, kv_num_heads, -1)
    state = k.new_zeros(batch, kv_num_heads, k.shape[3], v.shape[3])
    state = state if past_state is None else past_state.to(wide)
    keep = (
        None if decay is None else decay.reshape(batch, length, kv_num_heads, -1, 1).to(wide).exp()
    )
    rate = None if beta is None else beta.to(wide).unsqueeze(-1)
    groups = q_num_heads // kv_num_heads
    factor = scale or 1 / math.sqrt(q.shape[3])
    results = []
    for t in range(length):
        if gated and keep is not None:
            state = state * keep[:, t]
        change = v[:, t]
        if delta and rate is not None:
            change = (change - torch.einsum("bhkv,bhk->bhv", state, k[:, t])) * rate[:, t]
        state = state + k[:, t].unsqueeze(3) * change.unsqueeze(2)
        seen = state.repeat_interleave(groups, 1) if groups > 1 else state
        results.append(torch.einsum("bhkv,bhk->bhv", seen, q[:, t]) * factor)
    return torch.stack(results, 1).flatten(2).to(dtype), state.to(dtype)
