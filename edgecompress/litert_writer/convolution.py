"""Convolutions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Tensor
from edgecompress.litert_writer.layers import Weights, weights_of
from edgecompress.litert_writer.layouts import LAST
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Plan, Translation
from edgecompress.litert_writer.windows import Window, padded, window_of


@op("Conv")
def conv(t: Translation, node: ir.Node) -> None:
    """CONV_2D, or DEPTHWISE_CONV_2D where each group has one input channel."""
    x, out = node.inputs[0], t.shape(node.outputs[0])
    shape = t.shape(x)
    weights = weights_of(t, node.inputs[1], 0)
    groups = node.attributes.get_int("group", 1)
    if groups > 1 and weights.floats.shape[1] != 1:
        t.note("{} grouped convolutions need a runtime with kernels for groups")
    bias = _bias(t, node)
    window = window_of(node, weights.floats.shape[2:], shape[2:], out[2:])
    plan = t.plan(node, x, fuses=True, integers=weights.held is not None)
    source = _two_axes(t, t.read(x, LAST, integers=plan.integers))
    if window.padding and not window.same:
        source = padded(t, source, window, 0)
    target, real = _target(t, plan)
    depthwise = groups > 1 and weights.floats.shape[1] == 1
    _emit(t, source, target, weights, bias, window, plan, depthwise)
    if real is not target:
        t.reshape(target, real)


def _bias(t: Translation, node: ir.Node) -> np.ndarray | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = t.array(value)
    if value is not None and bias is None:
        raise RefusalError("its bias is computed while the model runs; only constants are written")
    return bias


def _two_axes(t: Translation, source: Tensor) -> Tensor:
    """An input of one spatial axis as a picture of height 1."""
    if len(source.shape) != 3:
        return source
    n, length, channels = source.shape
    flat = t.fresh(f"{source.index};2d", (n, 1, length, channels), source.dtype, source.affine)
    t.reshape(source, flat)
    return flat


def _target(t: Translation, plan: Plan) -> tuple[Tensor, Tensor]:
    """What the kernel writes, and the node's own output."""
    real = t.output(plan, LAST)
    if len(real.shape) != 3:
        return real, real
    n, length, channels = real.shape
    flat = t.fresh(f"{real.index};2d", (n, 1, length, channels), real.dtype, real.affine)
    return flat, real


def _emit(
    t: Translation,
    source: Tensor,
    target: Tensor,
    weights: Weights,
    bias: np.ndarray | None,
    window: Window,
    plan: Plan,
    depthwise: bool,
) -> None:
    channels = weights.floats.shape[0]

    def arrange(array: np.ndarray) -> np.ndarray:
        """``[O, I, H, W]`` to ``[O, H, W, I]``; depthwise to ``[1, H, W, O]``."""
        full = array[:, :, None, :] if array.ndim == 3 else array
        return full.transpose(1, 2, 3, 0) if depthwise else full.transpose(0, 2, 3, 1)

    filters = weights.tensor(t, arrange, 3 if depthwise else 0, integers=plan.integers)
    fields = {
        "padding": t.file.word("Padding", "SAME" if window.same else "VALID"),
        "fusedActivationFunction": t.fused(plan.activation),
        **window.options,
        **window.dilation_options,
    }
    inputs = [source, filters, weights.bias(t, bias, channels, source.affine)]
    if depthwise:
        fields["depthMultiplier"] = channels // source.shape[3]
        # Dilation came with the second version, int8 with the third.
        version = 2 if window.dilations != (1, 1) and not plan.integers else None
        t.emit("DEPTHWISE_CONV_2D", inputs, [target], "DepthwiseConv2DOptions", version, **fields)
    else:
        t.emit("CONV_2D", inputs, [target], "Conv2DOptions", **fields)


@op("ConvTranspose")
def conv_transpose(t: Translation, node: ir.Node) -> None:
    """TRANSPOSE_CONV in float, without padding or with all of it cut off evenly."""
    x, out = node.inputs[0], t.shape(node.outputs[0])
    shape = t.shape(x)
    weights = weights_of(t, node.inputs[1], 1)
    dilated = any(d != 1 for d in node.attributes.get_ints("dilations", (1, 1)))
    if len(shape) != 4 or dilated or node.attributes.get_int("group", 1) != 1:
        raise RefusalError("only transposed convolutions of 2 axes, without groups or dilations")
    bias = _bias(t, node)
    kernel = weights.floats.shape[2:]
    strides = node.attributes.get_ints("strides", (1, 1))
    pads = tuple(node.attributes.get_ints("pads", (0, 0, 0, 0)))[:2]
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise RefusalError("auto_pad of a transposed convolution is not written; use pads")
    plan = t.plan(node, x, integers=False)
    full = [(i - 1) * s + k for i, s, k in zip(shape[2:], strides, kernel, strict=True)]
    grown = [max(f, p + o) for f, p, o in zip(full, pads, out[2:], strict=True)]
    if grown != full:
        raise RefusalError("its output_padding reaches beyond what its kernel writes")
    target = t.output(plan, LAST)
    whole = (out[0], *full, out[1])
    wide = target if whole == target.shape else t.fresh(f"{target.index};whole", whole, "float32")
    filters = weights.tensor(t, lambda w: w.transpose(1, 2, 3, 0), 0, integers=False)
    inputs = [t.integers(whole), filters, t.read(x, LAST), weights.bias(t, bias, out[1], None)]
    t.emit(
        "TRANSPOSE_CONV",
        inputs,
        [wide],
        "TransposeConvOptions",
        padding=t.file.word("Padding", "VALID"),
        strideH=strides[0],
        strideW=strides[1],
    )
    if wide is not target:
        begin, size = t.integers((0, *pads, 0)), t.integers(target.shape)
        t.emit("SLICE", [wide, begin, size], [target], "SliceOptions")
