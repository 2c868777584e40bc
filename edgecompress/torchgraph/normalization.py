"""Normalization over batch, layer, group, instance or neighbouring channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, unsupported


@op("BatchNormalization", since=7, statistics=(3, 4))
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
) -> Tensor:
    """Inference with the stored statistics; x [n, c, ...], the others [c].

    Raises:
        ModelError: ``spatial=0``, statistics per pixel, which only opset 7 knows.
    """
    if not spatial:
        raise unsupported("BatchNormalization with spatial=0")
    return _by_statistics(x, scale, bias, mean, var, epsilon)


def _by_statistics(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float
) -> Tensor:
    if not (mean.requires_grad or var.requires_grad):
        return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    # torch's kernel lets no gradient through to the statistics.
    factor = scale * torch.rsqrt(var + epsilon)
    per_channel = [-1, *[1] * (x.ndim - 2)]
    return x * factor.reshape(per_channel) + (bias - mean * factor).reshape(per_channel)


@op("BatchNormalization", since=14, statistics=(3, 4))
def batch_norm_14(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """As :func:`batch_norm`, or with the batch's own statistics, returning the updated ones."""
    if not training_mode:
        return batch_norm(x, scale, bias, mean, var, epsilon=epsilon)
    others = [axis for axis in range(x.ndim) if axis != 1]
    batch_var, batch_mean = torch.var_mean(x, others, correction=0)
    y = _by_statistics(x, scale, bias, batch_mean, batch_var, epsilon)
    return (
        y,
        mean * momentum + batch_mean * (1 - momentum),
        var * momentum + batch_var * (1 - momentum),
    )


@op("InstanceNormalization", since=1)
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Over the spatial axes of each channel of each sample."""
    return functional.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


# onnxruntime writes this operator into files of any opset.
@op("LayerNormalization", since=1)
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Over all axes from ``axis`` on; also the mean and inverse deviation if they are asked for."""
    first = axis_of(axis, x.ndim)
    normalized = x.shape[first:]
    if n_outputs == 1 and scale.shape == normalized and (bias is None or bias.shape == normalized):
        return functional.layer_norm(x, normalized, scale, bias, epsilon)
    axes = list(range(first, x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@op("RMSNormalization", since=23)
def rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Division by the root of the mean square over all axes from ``axis`` on."""
    axes = list(range(axis_of(axis, x.ndim), x.ndim))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale


@op("GroupNormalization", since=18)
def group_norm_18(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Scale and bias per group (corrected to per channel in opset 21)."""
    each = x.shape[1] // num_groups
    return functional.group_norm(
        x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon
    )


@op("GroupNormalization", since=21)
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Over the channels of each group; scale and bias per channel."""
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@op("LpNormalization", since=1)
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Division by the p-norm along an axis; a zero vector stays zero."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@op("MeanVarianceNormalization", since=9)
def mean_variance_normalization(x: Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """Zero mean and unit variance over the axes, with the 1e-9 of the specification."""
    var, mean = torch.var_mean(x, list(axes), correction=0, keepdim=True)
    return (x - mean) / (var.sqrt() + 1e-9)


@op("LRN", since=1)
def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """Division by a power of the square sum over ``size`` neighbouring channels."""
    before = (size - 1) // 2
    squares = x.square().flatten(2) if x.ndim > 2 else x.square().unsqueeze(-1)
    padded = functional.pad(squares, (0, 0, before, size - 1 - before))
    sums = padded.unfold(1, size, 1).sum(-1).reshape(x.shape)
    return x / (bias + alpha / size * sums) ** beta
