"""Operators of which ONNX's node tests show few forms, each against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_torchgraph_contrib import Inputs, compare, integers, rand


def same(op_type: str, inputs: Inputs, outputs: int = 1, opset: int = 21, **options: Any) -> None:
    compare(op_type, inputs, outputs, domain="", version=opset, rtol=1e-4, atol=1e-5, **options)


_BOXES = np.array(
    [[0, 0, 8, 6], [2.2, 1.4, 5.3, 7.9], [3, 3, 3, 3], [-2, 4, 20, 5], [7, 6, 1, 2]], np.float32
)


@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("form", [10, "half_pixel", "output_half_pixel"])
def test_roi_align(ratio: int, mode: str, form: Any) -> None:
    inputs = [rand(2, 3, 8, 9), _BOXES, np.array([0, 1, 1, 0, 1])]
    options = {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "mode": mode}
    if form == 10:
        same("RoiAlign", inputs, opset=10, spatial_scale=0.5, **options)
    else:
        same("RoiAlign", inputs, coordinate_transformation_mode=form, **options)


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize("shape", [[1, 1], [2, 3]])
def test_max_roi_pool(scale: float, shape: list[int]) -> None:
    regions = np.concatenate([[[0], [1], [1], [0], [0]], _BOXES], 1).astype(np.float32)
    same("MaxRoiPool", [rand(2, 3, 8, 9), regions], pooled_shape=shape, spatial_scale=scale)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    options: dict[str, Any] = {"padding_mode": padding, "align_corners": corners}
    same("GridSample", [rand(2, 3, 5, 6), rand(2, 4, 7, 2, seed=1)], mode=mode, **options)
    old = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    flat = [rand(2, 3, 5, 6), rand(2, 4, 7, 2, seed=1)]
    same("GridSample", flat, opset=16, mode=old, **options)
    if mode != "cubic":
        deep = [rand(1, 2, 3, 4, 5), rand(1, 2, 3, 4, 3, seed=1)]
        same("GridSample", deep, mode=mode, **options)


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("masked", [True, False])
def test_deformed_convolution(groups: tuple[int, int], masked: bool) -> None:
    group, offset_group = groups
    x, weight = rand(2, 4, 7, 8), rand(6, 4 // group, 3, 2, seed=1)
    size = (2, offset_group * 6, 4, 7)
    offset = rand(size[0], 2 * size[1], *size[2:], seed=2)
    inputs: Inputs = [x, weight, offset, rand(6, seed=3)]
    if masked:
        inputs.append(rand(*size, seed=4))
    options: dict[str, Any] = {"strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 1]}
    same("DeformConv", inputs, opset=19, group=group, offset_group=offset_group, **options)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore", [None, 2, -5])
@pytest.mark.parametrize("weighted", [True, False])
def test_losses(reduction: str, ignore: int | None, weighted: bool) -> None:
    labels = integers(0, 4, (3, 5), "int64")
    options: dict[str, Any] = {"reduction": reduction}
    if ignore is not None:
        labels[0, :2] = ignore
        options["ignore_index"] = ignore
    inputs: Inputs = [rand(3, 4, 5), labels]
    if weighted:
        inputs.append(np.abs(rand(4, seed=1)))
    same("NegativeLogLikelihoodLoss", inputs, opset=13, **options)
    same("SoftmaxCrossEntropyLoss", inputs, 2, opset=13, **options)


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("length", [None, 4, 9])
def test_transforms(inverse: int, width: int, length: int | None) -> None:
    size = None if length is None else np.array(length)
    x = rand(2, 6, 5, width)
    same("DFT", [x, size, np.array(2)], inverse=inverse)
    same("DFT", [x, size], opset=17, axis=1, inverse=inverse)
    if width == 1 and not inverse:
        same("DFT", [x, size, np.array(-2)], onesided=1)


@pytest.mark.parametrize("onesided", [0, 1])
def test_short_time_transforms(onesided: int) -> None:
    signal, step = rand(2, 32, 1), np.array(5)
    same("STFT", [signal, step, np.abs(rand(8, seed=1))], onesided=onesided)
    same("STFT", [signal, step, None, np.array(8)], onesided=onesided)


@pytest.mark.parametrize("name", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(name: str, periodic: int) -> None:
    same(name, [np.array(9)], periodic=periodic)
    same(name, [np.array(9)], periodic=periodic, output_datatype=11)


@pytest.mark.parametrize("edges", [(0.0, 4000.0), (200.0, 7000.0), (0.0, 400.0)])
def test_mel_weights(edges: tuple[float, float]) -> None:
    low, high = (np.array(edge, np.float32) for edge in edges)
    same("MelWeightMatrix", [np.array(8), np.array(64), np.array(16000), low, high])


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("ordered", [0, 1])
def test_unique(axis: int | None, ordered: int) -> None:
    x = integers(0, 3, (5, 4), "float32")
    x[3], x[:, 2] = x[1], x[:, 0]
    options = {} if axis is None else {"axis": axis}
    same("Unique", [x], 4, sorted=ordered, **options)


def test_pieces_of_images() -> None:
    crop = [rand(5, 6, 7), np.array([8, 3])]
    same("CenterCropPad", crop, opset=18, axes=[-1, 0])
    sizes = [np.array([6, 7]), np.array([2, 3])]
    columns = {"strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    same("Col2Im", [rand(2, 18, 20), *sizes], opset=18, **columns)
    places = np.array([[[[5, 7], [13, 15]]]])
    same("MaxUnpool", [rand(1, 1, 2, 2), places], opset=11, kernel_shape=[2, 2], strides=[2, 2])
    theta = rand(2, 2, 3)
    for corners in (0, 1):
        same("AffineGrid", [theta, np.array([2, 3, 4, 5])], align_corners=corners)
