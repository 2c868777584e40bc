"""Probes that are whole networks, where kernels are slower than among a few of their kind.

There each finds that others have pushed its weights, code and activations out of the caches.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgecompress.estimate.layer_probes import transformer
from edgecompress.estimate.networks import Network, Probe

__all__ = ["networks"]

_SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 3, (768, 2))
_INVERTED = ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (80, 2), (80, 1), (112, 1), (160, 2))
_RESIDUAL = ((24, 1), (24, 1), (48, 2), (48, 1), (96, 2), (96, 1))


def networks() -> Iterator[Probe]:
    """Classifiers of images of three families and encoders, float and int8."""
    for integers in (False, True):
        for size in (96, 192):
            yield _separable(integers, size)
            yield _inverted(integers, size)
        yield _residual(integers, 40)
        yield transformer(integers, 48, 320, 5, 4)


def _start(integers: bool, size: int, channels: int, stride: int) -> tuple[Network, str]:
    net = Network((1, 3, size, size), integers)
    y = net.quantize("x") if integers else "x"
    return net, net.conv(y, channels, 3, stride=stride)


def _done(net: Network, y: str, name: str) -> Probe:
    channels = net.shapes[y][1]
    y = net.op("GlobalAveragePool", [y], (1, channels, 1, 1))
    y = net.dense(net.reshape(y, 1, channels), 1000)
    return net.done(f"{'integer ' if net.integers else ''}{name}", y)


def _separable(integers: bool, size: int) -> Probe:
    """Depthwise and pointwise layers in turn (Howard et al., 2017)."""
    net, y = _start(integers, size, 32, 2)
    for channels, stride in _SEPARABLE:
        y = net.conv(y, net.shapes[y][1], 3, stride=stride, group=net.shapes[y][1])
        y = net.conv(y, channels, 1)
    return _done(net, y, f"separable network {size}")


def _inverted(integers: bool, size: int) -> Probe:
    """Narrow residuals with wide depthwise layers between (Sandler et al., 2018)."""
    net, y = _start(integers, size, 16, 2)
    for channels, stride in _INVERTED:
        before, wide = y, 6 * net.shapes[y][1]
        y = net.conv(y, wide, 1)
        y = net.conv(y, wide, 3, stride=stride, group=wide)
        y = net.conv(y, channels, 1)
        if net.shapes[y] == net.shapes[before]:
            y = net.op("Add", [y, before])
    return _done(net, y, f"inverted network {size}")


def _residual(integers: bool, size: int) -> Probe:
    """Pairs of dense layers with a way around them (He et al., 2016)."""
    net, y = _start(integers, size, 24, 1)
    for channels, stride in _RESIDUAL:
        around = y if stride == 1 else net.conv(y, channels, 1, stride=stride)
        y = net.conv(net.conv(y, channels, 3, stride=stride), channels, 3)
        y = net.op("Add", [y, around])
    return _done(net, y, f"residual network {size}")
