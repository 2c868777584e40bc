"""onnxruntime's operators on weights of 2, 4 or 8 bits, packed into bytes block by block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, unsupported

_ORT = "com.microsoft"


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] -> unsigned numbers [..., n * 8 / bits], the lowest bits first."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    numbers = torch.bitwise_right_shift(packed.unsqueeze(-1), shifts)
    return torch.bitwise_and(numbers, 2**bits - 1).flatten(-2)


def _zero_points(zero_points: Tensor | None, rows: int, blocks: int, bits: int) -> Tensor | float:
    """Of each block, [rows, blocks, 1]; packed in bytes, or numbers of the type of the scales."""
    if zero_points is None:
        return float(2 ** (bits - 1))
    if zero_points.dtype == torch.uint8:
        zero_points = _unpack(zero_points.reshape(rows, -1), bits)[:, :blocks]
    return zero_points.reshape(rows, blocks, 1)


@op("MatMulNBits", since=1, domain=_ORT)
def matmul_nbits(
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    group_index: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,  # noqa: N803  (the operator's name)
    N: int,  # noqa: N803
    accuracy_level: int = 0,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    """Product with a weight of few bits; differentiable in scales and float zero points.

    Args:
        a: [..., K].
        b: uint8 [N, K / block_size, block_size * bits / 8].
        scales: [N, K / block_size], any shape.
        zero_points: uint8, packed as ``b`` along the blocks, or of the type of the scales.
        group_index: Refused.
        bias: [N].
        K: Input features.
        N: Output features.
        accuracy_level: What onnxruntime may round ``a`` to; here it is not rounded.
        bits: 2, 4 or 8.
        block_size: Input features that share a scale.
        weight_prepacked: Layout of an execution provider; only 0.

    Raises:
        ModelError: Another number of bits, a group index or a prepacked weight.
    """
    if bits not in (2, 4, 8):
        raise unsupported(f"MatMulNBits with bits={bits}")
    if weight_prepacked:
        raise unsupported("MatMulNBits with a prepacked weight")
    if group_index is not None and group_index.numel():
        raise unsupported("MatMulNBits with g_idx")
    blocks = -(-K // block_size)
    numbers = _unpack(b.reshape(N, blocks, -1), bits).to(a.dtype)
    zero = _zero_points(zero_points, N, blocks, bits)
    if isinstance(zero, Tensor):
        zero = zero.to(a.dtype)
    weight = (numbers - zero) * scales.reshape(N, blocks, 1)
    return functional.linear(a, weight.reshape(N, -1)[:, :K], bias)


@op("GatherBlockQuantized", since=1, domain=_ORT)
def gather_block_quantized(
    data: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """Rows of an embedding whose weights have few bits, as real numbers.

    Args:
        data: uint8, packed along the last axis.
        indices: Rows.
        scales: As ``data`` unpacked, the last axis divided by ``block_size``.
        zero_points: uint8, packed as ``data``; default: half of the range.
        bits: 4 or 8.
        block_size: Elements that share a scale.
        gather_axis: 0.
        quantize_axis: The last.

    Raises:
        ModelError: Other axes, other types than uint8.
    """
    last = data.ndim - 1
    if axis_of(gather_axis, data.ndim) != 0 or axis_of(quantize_axis, data.ndim) != last:
        raise unsupported("GatherBlockQuantized along other axes than the first and the last")
    if data.dtype != torch.uint8:
        raise unsupported(f"GatherBlockQuantized of {data.dtype}")
    rows = indices.long()
    numbers = _unpack(data[rows], bits).to(scales.dtype)
    width = numbers.shape[-1]

    def spread(blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(block_size, -1)[..., :width]

    if zero_points is None:
        numbers = numbers - 2 ** (bits - 1)
    else:
        zero = _unpack(zero_points[rows], bits)[..., : scales.shape[-1]]
        numbers = numbers - spread(zero.to(scales.dtype))
    return numbers * spread(scales[rows])
