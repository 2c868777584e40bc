"""Resize, nearest and linear."""

from __future__ import annotations

import onnx_ir as ir

from edgecompress.litert_writer.layouts import LAST
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation

_HALF_PIXEL_VERSION = 3


@op("Resize", "Upsample")
def resize(t: Translation, node: ir.Node) -> None:
    """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR of height and width."""
    x = node.inputs[0]
    before, after = t.shape(x), t.shape(node.outputs[0])
    if len(before) != 4 or before[:2] != after[:2]:
        raise RefusalError("only height and width can be resized")
    mode = node.attributes.get_string("mode", "nearest")
    plain = "asymmetric" if node.op_type == "Upsample" else "half_pixel"
    place = node.attributes.get_string("coordinate_transformation_mode", plain)
    fields = {
        "halfPixelCenters": place in ("half_pixel", "pytorch_half_pixel"),
        "alignCorners": place == "align_corners",
    }
    if place == "pytorch_half_pixel" and 1 in after[2:]:
        raise RefusalError("pytorch_half_pixel to a single row or column")
    if mode == "nearest":
        rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
        if not _floors(before[2:], after[2:], place, rounding):
            raise RefusalError(f"nearest neighbours by {place} and {rounding}")
        fields = {"halfPixelCenters": False, "alignCorners": False}
    elif mode != "linear" or place not in (
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
    ):
        raise RefusalError(f"mode {mode!r} with {place!r}")
    if mode == "linear" and node.attributes.get_int("antialias", 0) == 1:
        raise RefusalError("antialias")
    source = t.read(x, LAST, integers=t.affine(x) is not None)
    inputs = [source, t.integers(after[2:])]
    target = t.moved_output(node, source, LAST)
    linear = mode == "linear"
    code = "RESIZE_BILINEAR" if linear else "RESIZE_NEAREST_NEIGHBOR"
    options = "ResizeBilinearOptions" if linear else "ResizeNearestNeighborOptions"
    version = _HALF_PIXEL_VERSION if fields["halfPixelCenters"] else None
    t.emit(code, inputs, [target], options, version, **fields)


def _floors(before: tuple[int, ...], after: tuple[int, ...], place: str, rounding: str) -> bool:
    """Whether the neighbour is that of TFLite: the place times the ratio, rounded down."""
    if place == "asymmetric" and rounding == "floor":
        return True
    factors = [a / b for a, b in zip(after, before, strict=True)]
    if any(factor != int(factor) for factor in factors) or not rounding.startswith("round"):
        return False
    return place in ("half_pixel", "pytorch_half_pixel") or (
        place == "asymmetric" and rounding == "round_prefer_floor" and max(factors) <= 2
    )
