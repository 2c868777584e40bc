"""Resize and Upsample: one separable interpolation, axis by axis.

Along an axis, each output element is a weighted sum of a few input elements (taps). Index and
weight of the taps depend on lengths and scale only; they are computed once on the host and kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of, integers, unsupported

Places = npt.NDArray[np.float64]


class _Axis(NamedTuple):
    """All that decides the taps along one axis."""

    length: int
    scale: float
    out: int
    mode: str
    coordinates: str
    nearest: str
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    roi: tuple[float, float] = (0.0, 1.0)


class _Taps(NamedTuple):
    """``source`` and ``weight`` [taps, out]; ``outside`` [out]: positions to be extrapolated."""

    source: Tensor
    weight: Tensor
    outside: Tensor | None


def _coordinates(a: _Axis) -> Places:
    """Place of each output element among the input elements.

    In float32, as onnxruntime: nearest rounds ties, and where a tie is depends on the rounding.
    """
    place = np.arange(a.out, dtype=np.float32)
    half, scale = np.float32(0.5), np.float32(a.scale)
    exact = a.scale * a.length
    centred = (place + half) / scale - half
    match a.coordinates:
        case "half_pixel":
            found = centred
        case "half_pixel_symmetric":
            found = np.float32(a.length / 2 * (1 - a.out / exact)) + centred
        case "pytorch_half_pixel":
            found = centred if a.out > 1 else np.array([-0.5], np.float32)
        case "align_corners":
            if not math.isclose(exact, a.out, rel_tol=1e-5):
                raise unsupported(
                    f"align_corners from {a.length} to {exact:g} elements: where the length is "
                    "not whole, the specification and onnxruntime differ"
                )
            found = place * np.float32((a.length - 1) / max(a.out - 1, 1))
        case "asymmetric":
            found = place / scale
        case "tf_half_pixel_for_nn":
            found = (place + half) / scale
        case "tf_crop_and_resize":
            found = _cropped(a, place)
        case _:
            raise unsupported(f"coordinate_transformation_mode={a.coordinates!r}")
    return found.astype(np.float64)


def _cropped(a: _Axis, place: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    first, last = np.float32(a.roi[0]), np.float32(a.roi[1])
    reach = np.float32(a.length - 1)
    if a.out == 1:
        return np.array([(first + last) / 2 * reach], np.float32)
    return first * reach + place * ((last - first) * reach / np.float32(a.out - 1))


def _nearest(place: Places, how: str) -> Places:
    match how:
        case "round_prefer_floor":
            return np.ceil(place - 0.5)
        case "round_prefer_ceil":
            return np.floor(place + 0.5)
        case "floor":
            return np.floor(place)
        case "ceil":
            return np.ceil(place)
    raise unsupported(f"nearest_mode={how!r}")


def _kernel(distance: Places, a: _Axis) -> Places:
    """Weight of an input element at a distance from the output element's place."""
    d = np.abs(distance)
    if a.mode == "linear":
        tent: Places = np.maximum(1 - d, 0)
        return tent
    c = a.cubic
    near: Places = ((c + 2) * d - (c + 3)) * d * d + 1
    far: Places = ((c * d - 5 * c) * d + 8 * c) * d - 4 * c
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def _taps(a: _Axis) -> _Taps:
    place = _coordinates(a)
    outside = None
    if a.coordinates == "tf_crop_and_resize":
        outside = torch.from_numpy((place < 0) | (place > a.length - 1))
    if a.mode == "nearest":
        index = _nearest(place, a.nearest)[None]
        weight = np.ones_like(index)
    elif a.mode in ("linear", "cubic"):
        shrink = min(a.scale, 1.0) if a.antialias else 1.0
        reach = (1 if a.mode == "linear" else 2) / shrink
        first = math.floor(-reach) + 1
        offsets = np.arange(first, 2 - first, dtype=np.float64)[:, None]
        index = np.floor(place)[None] + offsets
        weight = _kernel((index - place) * shrink, a)
        if a.exclude_outside:
            weight = np.where((index < 0) | (index >= a.length), 0.0, weight)
        weight = weight / weight.sum(0)
    else:
        raise unsupported(f"mode={a.mode!r}")
    clipped = np.clip(index, 0, a.length - 1).astype(np.int64)
    return _Taps(torch.from_numpy(clipped), torch.from_numpy(weight), outside)


def _along(x: Tensor, axis: int, taps: _Taps, extrapolation: float) -> Tensor:
    index = taps.source.to(x.device)
    if len(index) == 1:
        y = x.index_select(axis, index[0])
    else:
        shape = [-1 if i == axis else 1 for i in range(x.ndim)]
        weight = taps.weight.to(x.device, x.dtype)
        y = x.index_select(axis, index[0]) * weight[0].reshape(shape)
        for i, w in zip(index[1:], weight[1:], strict=True):
            y = y + x.index_select(axis, i) * w.reshape(shape)
    if taps.outside is None:
        return y
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    return y.masked_fill(taps.outside.to(x.device).reshape(shape), extrapolation)


def _by_torch(x: Tensor, axes: Sequence[int], settings: Sequence[_Axis]) -> Tensor | None:
    """Torch's own bilinear kernel, where it means the same."""
    if x.ndim != 4 or list(axes) != [2, 3]:
        return None
    for a in settings:
        exact = math.isclose(a.scale * a.length, a.out, rel_tol=1e-6)
        same = a.mode == "linear" and exact and a.out > 1
        if not same or a.antialias or a.exclude_outside:
            return None
        if a.coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            return None
    corners = settings[0].coordinates == "align_corners"
    sizes = [a.out for a in settings]
    return functional.interpolate(x, sizes, mode="bilinear", align_corners=corners)


def _interpolate(
    x: Tensor, axes: Sequence[int], settings: Sequence[_Axis], extrapolation: float = 0.0
) -> Tensor:
    moving = [
        (axis, a)
        for axis, a in zip(axes, settings, strict=True)
        if a.scale != 1 or a.out != a.length or a.coordinates == "tf_crop_and_resize"
    ]
    if not x.is_floating_point() and any(a.mode != "nearest" for _, a in moving):
        y = _interpolate(x.float(), axes, settings, extrapolation)
        info = torch.iinfo(x.dtype)
        return y.round().clamp(info.min, info.max).to(x.dtype)
    fast = _by_torch(x, [axis for axis, _ in moving], [a for _, a in moving])
    if fast is not None:
        return fast
    for axis, a in moving:
        x = _along(x, axis, _taps(a), extrapolation)
    return x


def _given(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.numel() > 0


def _scales_and_outputs(
    lengths: Sequence[int], scales: Tensor | None, sizes: Tensor | None, policy: str
) -> tuple[list[float], list[int]]:
    if scales is not None and scales.numel():
        factors = [float(s) for s in scales.tolist()]
        # In float32, as onnxruntime: 10 * 0.7 is 7 there, and just less than 7 in float64.
        whole = np.floor(np.array(factors, np.float32) * np.array(lengths, np.float32))
        return factors, [int(n) for n in whole]
    if sizes is None or not sizes.numel():
        raise ModelError("expected scales or sizes, got neither")
    outputs = integers(sizes)
    factors = [out / n for out, n in zip(outputs, lengths, strict=True)]
    if policy == "stretch":
        return factors, outputs
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(factors), [math.floor(n * factor + 0.5) for n in lengths]


@op("Resize", since=11, host=(1, 2, 3))
def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Change the length of some axes, by factors or to sizes."""
    named = [axis_of(axis, x.ndim) for axis in (range(x.ndim) if axes is None else axes)]
    lengths = [x.shape[axis] for axis in named]
    factors, outputs = _scales_and_outputs(lengths, scales, sizes, keep_aspect_ratio_policy)
    crop = roi.tolist() if roi is not None and _given(roi) else []
    settings = [
        _Axis(
            length=lengths[i],
            scale=factors[i],
            out=outputs[i],
            mode=mode,
            coordinates=coordinate_transformation_mode,
            nearest=nearest_mode,
            cubic=cubic_coeff_a,
            exclude_outside=bool(exclude_outside),
            antialias=bool(antialias),
            roi=(crop[i], crop[i + len(named)]) if crop else (0.0, 1.0),
        )
        for i in range(len(named))
    ]
    return _interpolate(x, named, settings, extrapolation_value)


def _legacy(x: Tensor, factors: Sequence[float], mode: str) -> Tensor:
    """The rule of Upsample and Resize-10: no offset; nearest rounds up where an axis shrinks."""
    _, outputs = _scales_and_outputs(x.shape, torch.tensor(factors), None, "stretch")
    settings = [
        _Axis(
            length=length,
            scale=factor,
            out=out,
            mode="linear" if mode == "bilinear" else mode,
            coordinates="asymmetric",
            nearest="ceil" if factor < 1 else "floor",
        )
        for length, factor, out in zip(x.shape, factors, outputs, strict=True)
    ]
    return _interpolate(x, range(x.ndim), settings)


@op("Resize", since=10, host=(1,))
def resize_10(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """Change the length of all axes by factors, without an offset of half a pixel."""
    return _legacy(x, scales.tolist(), mode)


@op("Upsample", since=7)
def upsample_attribute(x: Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> Tensor:
    """Upsample before opset 9: the factors are an attribute."""
    return _legacy(x, scales, mode)


@op("Upsample", since=9, host=(1,))
def upsample(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    """The older name of :func:`resize_10`."""
    return _legacy(x, scales.tolist(), mode)
