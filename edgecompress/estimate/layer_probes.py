"""Probes of layers with weights: convolutions and matrix products, recurrent ones, transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edgecompress.estimate.networks import Network, Probe

__all__ = ["convolutions", "products", "recurrent", "transformer", "transformers"]

_DENSE = ((16, 32), (16, 12), (24, 40), (32, 16), (32, 48), (64, 8), (64, 28), (128, 14), (256, 7))
_POINTWISE = (
    *((16, 96, 56), (24, 96, 28), (32, 64, 112), (48, 96, 56), (96, 192, 28), (144, 32, 28)),
    *((192, 64, 14), (384, 96, 14), (576, 160, 7), (768, 768, 7), (384, 768, 7), (512, 512, 14)),
)
_DEPTHWISE = ((32, 112, 1), (96, 56, 1), (144, 56, 2), (192, 28, 1), (384, 14, 1), (576, 14, 2))
_SHALLOW = ((16, 32, 1), (32, 32, 1), (24, 224, 2), (32, 224, 2), (16, 240, 2))
_COLUMNS = (
    *((8, 30, 3, 0), (12, 30, 3, 0), (3, 120, 3, 0), (16, 30, 3, 0), (32, 30, 3, 0)),
    *((64, 15, 3, 0), (32, 60, 1, 0), (64, 30, 1, 0), (128, 14, 1, 0)),
    *((16, 120, 3, 1), (32, 60, 3, 1), (64, 30, 3, 1), (128, 10, 3, 1)),
)


def convolutions() -> Iterator[Probe]:
    """In one and two dimensions, float and int8, with weights that are constants and not."""
    for integers in (False, True):
        word = "integer " if integers else ""
        for channels, size in _DENSE:
            for count in (1, 4):
                net = Network((1, channels, size, size), integers)
                y = net.quantize("x") if integers else "x"
                for _ in range(count):
                    y = net.conv(y, channels, 3)
                yield net.done(f"{word}dense {channels} {size} x{count}", y)
        for before, behind, size in _POINTWISE:
            for count in (1, 3):
                net = Network((1, before, size, size), integers)
                y = net.quantize("x") if integers else "x"
                for number in range(count):
                    y = net.conv(y, before if number % 2 else behind, 1)
                yield net.done(f"{word}pointwise {before} {behind} {size} x{count}", y)
        for channels, size, stride in _DEPTHWISE:
            for count in (1, 4):
                net = Network((1, channels, size, size), integers)
                y = net.quantize("x") if integers else "x"
                for number in range(count):
                    step = 1 if number else stride
                    y = net.conv(y, channels, 3, group=channels, stride=step)
                yield net.done(f"{word}depthwise {channels} {size} {stride} x{count}", y)
        for channels, size, stride in _SHALLOW:
            net = Network((1, 3, size, size), integers)
            y = net.quantize("x") if integers else "x"
            yield net.done(
                f"{word}shallow {channels} {size}", net.conv(y, channels, 3, stride=stride)
            )
    for channels, size, taps, group in _COLUMNS:
        net = Network((1, channels, size, size), changing=True)
        y = "x"
        for _ in range(3):
            y = net.conv(y, channels, taps, group=channels if group else 1)
        yield net.done(f"columns {channels} {size} {taps} {group}", y)
    for channels, size, taps in ((64, 3, 3), (128, 3, 3), (128, 1, 3), (64, 64, 5), (256, 2, 1)):
        net = Network((1, channels, size))
        y = net.conv(net.conv("x", channels, taps), channels, taps)
        yield net.done(f"one-dimensional {channels} {size}", y)
    for channels, size in ((16, 120), (32, 60), (64, 30), (8, 30)):
        net = Network((1, channels, size, size))
        y = "x"
        for _ in range(3):
            values = [net.weight(channels) for _ in range(3)]
            positive = net.constant(net.random.random(channels).astype("float32") + 1)
            y = net.op("BatchNormalization", [y, *values, positive])
            y = net.op("Relu", [y])
        yield net.done(f"normalization {channels} {size}", y)


_PRODUCTS = (
    *((1, 512, 512), (1, 1280, 1000), (8, 64, 64), (8, 384, 384), (32, 128, 128)),
    *((32, 384, 384), (32, 384, 1536), (32, 256, 4096), (64, 256, 1024), (128, 384, 384)),
    *((128, 64, 64), (197, 192, 768)),
)
_LARGE = ((32, 384, 1536, 12), (64, 1024, 1024, 6), (16, 256, 1024, 24))
_ACTIVATIONS = ((12, 32, 32), (8, 64, 32), (4, 128, 64), (12, 128, 32))


def products() -> Iterator[Probe]:
    """Of activations with weights and with one another, as attention has them."""
    import numpy as np

    for integers in (False, True):
        word = "integer " if integers else ""
        for rows, depth, width in _PRODUCTS:
            for count in (2, 6):
                net = Network((rows, depth), integers)
                y = net.quantize("x") if integers else "x"
                for number in range(count):
                    y = net.dense(y, depth if number % 2 else width)
                yield net.done(f"{word}product {rows} {depth} {width} x{count}", y)
    for rows, depth, width, count in _LARGE:
        net = Network((rows, depth))
        y = "x"
        for number in range(count):
            y = net.dense(y, depth if number % 2 else width)
        yield net.done(f"large product {rows} {depth} {width}", y)
    for rows, depth, width in _PRODUCTS[2:8]:
        net = Network((rows, depth), integers=True)
        y = "x"
        for number in range(4):
            y = net.dense(net.quantize(y), depth if number % 2 else width, quantized=False)
        yield net.done(f"integer product to float {rows} {depth} {width}", y)
    for heads, length, width in _ACTIVATIONS:
        net = Network((1, heads, length, width))
        turned = net.swap("x", 0, 1, 3, 2)
        y = "x"
        for _ in range(3):
            scores = net.op("MatMul", [y, turned], (1, heads, length, length))
            # Probabilities that are not close to zero: tiny numbers are slow to compute with.
            scores = net.op("Mul", [scores, net.constant(np.float32(0.05))])
            y = net.op("MatMul", [net.op("Softmax", [scores]), "x"], (1, heads, length, width))
        yield net.done(f"attention {heads} {length} {width}", y)


def recurrent() -> Iterator[Probe]:
    """LSTMs and GRUs of one direction."""
    for op, gates in (("LSTM", 4), ("GRU", 3)):
        for length, width, hidden in ((1, 128, 128), (1, 64, 64), (16, 64, 64), (32, 32, 128)):
            net = Network((length, 1, width))
            sides = [net.weight(1, gates * hidden, depth) for depth in (width, hidden)]
            y = net.op(op, ["x", *sides], (length, 1, 1, hidden), hidden_size=hidden)
            yield net.done(f"{op} {length} {width} {hidden}", y)


def transformers() -> Iterator[Probe]:
    """Blocks of BERT, float and with int8 layers."""
    for integers in (False, True):
        for length, width, heads in ((16, 128, 4), (32, 256, 8), (128, 192, 6)):
            for count in (1, 2):
                yield transformer(integers, length, width, heads, count)


def transformer(integers: bool, length: int, width: int, heads: int, blocks: int) -> Probe:
    """Blocks of BERT: attention and a feed-forward part with Gelu, LayerNormalization behind both.

    Integer ones have integer matrix products and all else in float.
    """
    import numpy as np

    net = Network((1, length, width), integers)
    each = width // heads

    def float_op(op: str, inputs: Sequence[str], **attributes: Any) -> str:
        return net.op(op, inputs, quantized=False, **attributes)

    def layer(x: str, columns: int) -> str:
        y = net.dense(net.quantize(x) if integers else x, columns, quantized=False)
        return float_op("Add", [y, net.constant(np.zeros(columns, np.float32))])

    def norm(x: str) -> str:
        values = [net.constant(np.ones(width, np.float32)) for _ in range(2)]
        return float_op("LayerNormalization", [x, *values])

    def split(x: str, *order: int) -> str:
        return net.swap(net.reshape(x, 1, length, heads, each), *order)

    y = "x"
    for _ in range(blocks):
        q, k, v = (split(layer(y, width), 0, 2, *t) for t in ((1, 3), (3, 1), (1, 3)))
        square = (1, heads, length, length)
        scores = net.op("MatMul", [q, k], square, quantized=False)
        scores = float_op("Mul", [scores, net.constant(np.float32(each**-0.5))])
        mixed = net.op(
            "MatMul", [float_op("Softmax", [scores]), v], (1, heads, length, each), quantized=False
        )
        y = norm(
            float_op(
                "Add", [y, layer(net.reshape(net.swap(mixed, 0, 2, 1, 3), 1, length, width), width)]
            )
        )
        wide = layer(y, 4 * width)
        y = norm(float_op("Add", [y, layer(net.gelu(wide), width)]))
    return net.done(f"{'integer ' if integers else ''}transformer {length} {width} x{blocks}", y)
