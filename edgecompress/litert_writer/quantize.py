"""QuantizeLinear and DequantizeLinear that no other operator took in."""

from __future__ import annotations

import onnx_ir as ir

from edgecompress.litert_writer.layouts import LAST, PLAIN
from edgecompress.litert_writer.ranges import affine_of, array_of
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation

_ONE_SCALE = (
    "only int8 and uint8 with one constant scale are written; quantize activations to 8 bits "
    "with a scale per tensor"
)


@op("QuantizeLinear")
def quantize(t: Translation, node: ir.Node) -> None:
    """QUANTIZE, from float or from another scale; nothing where the scale is the same."""
    affine = affine_of(node)
    if affine is None:
        raise RefusalError(_ONE_SCALE)
    x, value = node.inputs[0], node.outputs[0]
    layout = LAST if t.in_layout(x, LAST) and not t.in_layout(x, PLAIN) else PLAIN
    held = t.affine(x)
    source = t.read(x, layout, integers=held is not None)
    if held == affine:
        t.put(value, source, layout)
        return
    target = t.fresh(str(value.name), source.shape, "int8", affine)
    t.emit("QUANTIZE", [source], [target], "QuantizeOptions")
    t.put(value, target, layout)


@op("DequantizeLinear")
def dequantize(t: Translation, node: ir.Node) -> None:
    """Nothing: its integers are read by those who can, and DEQUANTIZE stands before others."""
    x = node.inputs[0]
    if array_of(x) is not None:
        if node.attributes.get_int("block_size", 0):
            raise RefusalError("weights with a scale per block; TFLite has scales per channel")
        return
    affine = affine_of(node)
    if affine is None:
        raise RefusalError(_ONE_SCALE)
    assert x is not None
    if t.affine(x) != affine:
        raise RefusalError("its scale differs from that of the values it is given")
    t.alias(node.outputs[0], x)
