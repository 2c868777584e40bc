"""Fourier transforms, the windows before them and the mel scale behind them.

Complex numbers are pairs in the last axis, as ONNX has no complex tensors in these operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, integers, scalar, torch_dtype


def _complex(x: Tensor) -> Tensor:
    """Pairs, or single real numbers, of the last axis as complex or real numbers."""
    if x.shape[-1] == 1:
        return x.squeeze(-1)
    if x.shape[-1] == 2:
        return torch.view_as_complex(x.contiguous())
    raise ModelError(f"expected 1 or 2 numbers in the last axis, got {list(x.shape)}")


def _transform(x: Tensor, length: int | None, axis: int, inverse: bool, onesided: bool) -> Tensor:
    along = axis_of(axis, x.ndim)
    dtype = x.dtype
    # In float64: sums that cancel leave noise of the size of the largest frequency.
    signal = _complex(x.double())
    if inverse and onesided:
        size = 2 * (x.shape[along] - 1) if length is None else length
        real: Tensor = torch.fft.irfft(signal, size, along)
        return real.unsqueeze(-1).to(dtype)
    if inverse:
        result = torch.fft.ifft(signal, length, along)
    else:
        result = torch.fft.fft(signal, length, along)
    if onesided:
        result = result.narrow(along, 0, result.shape[along] // 2 + 1)
    return torch.view_as_real(result.resolve_conj()).to(dtype)


def _number(tensor: Tensor | None) -> int | None:
    return None if tensor is None else integers(tensor.reshape(-1))[0]


@op("DFT", since=17, host=(1,))
def dft_17(
    x: Tensor,
    dft_length: Tensor | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """Discrete Fourier transform along one axis, x [..., 1 or 2]."""
    return _transform(x, _number(dft_length), axis, bool(inverse), bool(onesided))


@op("DFT", since=20, host=(1, 2))
def dft(
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    """As :func:`dft_17`, the axis being an input."""
    along = _number(axis)
    return _transform(
        x, _number(dft_length), -2 if along is None else along, bool(inverse), bool(onesided)
    )


@op("STFT", since=17, host=(1, 3))
def stft(
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    """Fourier transforms of windowed frames; signal [batch, length, 1 or 2] ->
    [batch, frames, bins, 2].
    """  # noqa: D205
    length = _number(frame_length)
    if length is None:
        length = signal.shape[1] if window is None else window.shape[0]
    step = _number(frame_step) or 1
    frames = signal.unfold(1, length, step).transpose(2, 3)
    if window is not None:
        frames = frames * window.reshape(-1, 1)
    return _transform(frames, None, 2, False, bool(onesided))


def _cosines(*factors: float) -> Callable[..., Tensor]:
    """A window that is a sum of cosines of rising frequency, with alternating signs."""

    def run(size: Tensor, *, periodic: int = 1, output_datatype: int = 1) -> Tensor:
        count = integers(size)[0]
        turn = torch.arange(count, dtype=torch.float64) * (
            2 * math.pi / max(count if periodic else count - 1, 1)
        )
        values = sum((-1) ** k * a * torch.cos(k * turn) for k, a in enumerate(factors))
        return torch.as_tensor(values).to(torch_dtype(output_datatype))

    return run


op("HannWindow", since=17, host=(0,))(_cosines(0.5, 0.5))
op("HammingWindow", since=17, host=(0,))(_cosines(25 / 46, 21 / 46))
op("BlackmanWindow", since=17, host=(0,))(_cosines(0.42, 0.5, 0.08))


@op("MelWeightMatrix", since=17, host=(0, 1, 2, 3, 4))
def mel_weight_matrix(
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    lower_edge_hertz: Tensor,
    upper_edge_hertz: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """Triangles of height 1 over bins of a spectrum, equally wide on the mel scale:
    [dft_length / 2 + 1, num_mel_bins].
    """  # noqa: D205
    count, length = int(scalar(num_mel_bins)), int(scalar(dft_length))
    low, high = (
        2595 * math.log10(1 + scalar(edge) / 700) for edge in (lower_edge_hertz, upper_edge_hertz)
    )
    mels = np.arange(count + 2) * ((high - low) / (count + 2)) + low
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = ((length + 1) * hertz // scalar(sample_rate)).astype(np.int64)
    weights = np.zeros((length // 2 + 1, count))
    for i, (left, centre, right) in enumerate(zip(edges[:-2], edges[1:-1], edges[2:], strict=True)):
        if left == centre:
            weights[centre, i] = 1
        else:
            weights[left : centre + 1, i] = np.arange(centre - left + 1) / (centre - left)
        if right > centre:
            weights[centre:right, i] = 1 - np.arange(right - centre) / (right - centre)
    return torch.from_numpy(weights).to(torch_dtype(output_datatype))
