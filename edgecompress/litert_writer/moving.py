"""Operators that move values and compute nothing; int8 stays int8 with the same scale."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Tensor
from edgecompress.litert_writer.layouts import (
    LAST,
    PLAIN,
    Layout,
    axis_in,
    free_move,
    permutation,
    to_plain,
)
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation
from edgecompress.litert_writer.windows import pad_tensor


def _source(t: Translation, value: ir.Value | None, layout: Layout) -> Tensor:
    return t.read(value, layout, integers=t.affine(value) is not None)


@op("Identity", "Dropout")
def identity(t: Translation, node: ir.Node) -> None:
    """Nothing: the output is the input."""
    source = node.inputs[0]
    if source is None or t.array(source) is not None:
        t.put(node.outputs[0], t.read(source))
        return
    t.alias(node.outputs[0], source)


@op("Constant")
def constant(t: Translation, node: ir.Node) -> None:
    """A constant that is an output itself; others are initializers by now."""
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is None:
        raise RefusalError("a constant of strings")
    t.put(node.outputs[0], t.file.constant(str(node.outputs[0].name), tensor.numpy()))


@op("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(t: Translation, node: ir.Node) -> None:
    """RESHAPE to the shape that is known."""
    x = node.inputs[0]
    shape = t.shape(x)
    last = t.in_layout(x, LAST) and not t.in_layout(x, PLAIN)
    same_order = last and len(shape) > 2 and free_move(shape)
    source = _source(t, x, LAST if same_order else PLAIN)
    t.reshape(source, t.moved_output(node, source))


@op("Transpose")
def transpose(t: Translation, node: ir.Node) -> None:
    """TRANSPOSE, or nothing where the other layout is what is wanted."""
    x = node.inputs[0]
    rank = len(t.shape(x))
    order = list(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    if rank > 2 and order == permutation(rank) and t.in_layout(x, LAST):
        t.put(node.outputs[0], _source(t, x, LAST))
        return
    if rank > 2 and order == to_plain(rank) and t.in_layout(x, PLAIN):
        t.put(node.outputs[0], _source(t, x, PLAIN), LAST)
        return
    source = _source(t, x, PLAIN)
    target = t.moved_output(node, source)
    t.emit("TRANSPOSE", [source, t.integers(order)], [target], "TransposeOptions")


@op("Concat")
def concat(t: Translation, node: ir.Node) -> None:
    """CONCATENATION; int8 inputs are brought to the scale of the output."""
    rank = len(t.shape(node.outputs[0]))
    layout = t.layout_of(*node.inputs)
    axis = axis_in(node.attributes.get_int("axis", 0), rank, layout)
    plan = t.plan(node, *node.inputs)
    parts = [t.read(v, layout, integers=plan.integers) for v in node.inputs]
    if plan.affine is not None:
        parts = [t.requantized(p, plan.affine, f"{p.index};rescaled") for p in parts]
    t.emit("CONCATENATION", parts, [t.output(plan, layout)], "ConcatenationOptions", axis=axis)


def _bounds(
    t: Translation, node: ir.Node, shape: tuple[int, ...]
) -> dict[int, tuple[int, int, int]]:
    """For each axis that a Slice cuts: first index, index behind the last one, and step."""
    if "starts" in node.attributes:
        starts = list(node.attributes.get_ints("starts", ()))
        ends = list(node.attributes.get_ints("ends", ()))
        axes = list(node.attributes.get_ints("axes", tuple(range(len(starts)))))
        steps = [1] * len(starts)
    else:
        given = [*node.inputs, None, None]
        starts, ends = t.numbers(given[1], "bounds"), t.numbers(given[2], "bounds")
        axes = list(range(len(starts))) if given[3] is None else t.numbers(given[3], "axes")
        steps = [1] * len(starts) if given[4] is None else t.numbers(given[4], "steps")
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, behind, step = slice(start, end, step).indices(shape[axis % len(shape)])
        cuts[axis % len(shape)] = (first, behind, step)
    return cuts


@op("Slice")
def slice_(t: Translation, node: ir.Node) -> None:
    """STRIDED_SLICE with constant bounds."""
    x = node.inputs[0]
    shape = t.shape(x)
    layout = t.layout_of(x)
    source = _source(t, x, layout)
    target = t.moved_output(node, source, layout)
    begin, end, stride = [0] * len(shape), list(source.shape), [1] * len(shape)
    mask = 0
    for axis, (first, behind, step) in _bounds(t, node, shape).items():
        at = axis_in(axis, len(shape), layout)
        begin[at], end[at], stride[at] = first, behind, step
        # Backwards, the place before the first element has no number.
        mask |= (1 << at) if behind < 0 else 0
    inputs = [source, *(t.integers(each) for each in (begin, end, stride))]
    t.emit("STRIDED_SLICE", inputs, [target], "StridedSliceOptions", endMask=mask)


@op("Split")
def split(t: Translation, node: ir.Node) -> None:
    """One SLICE per output."""
    x = node.inputs[0]
    shape = t.shape(x)
    layout = t.layout_of(x)
    source = _source(t, x, layout)
    at = axis_in(node.attributes.get_int("axis", 0), len(shape), layout)
    start = 0
    for value in node.outputs:
        begin = [0] * len(shape)
        begin[at] = start
        plain = t.shape(value)
        size = [plain[axis] for axis in permutation(len(plain))] if layout == LAST else list(plain)
        start += size[at]
        target = t.fresh(str(value.name), size, source.dtype, source.affine)
        t.put(value, target, layout)
        t.emit("SLICE", [source, t.integers(begin), t.integers(size)], [target], "SliceOptions")


@op("Pad")
def pad(t: Translation, node: ir.Node) -> None:
    """PAD, PADV2 or MIRROR_PAD."""
    x = node.inputs[0]
    rank = len(t.shape(x))
    given = [*node.inputs, None, None, None]
    amounts = (
        list(node.attributes.get_ints("pads", ()))
        if "pads" in node.attributes
        else t.numbers(given[1], "pads")
    )
    axes = list(range(rank)) if given[3] is None else t.numbers(given[3], "axes")
    if min(amounts, default=0) < 0:
        raise RefusalError("negative padding; use Slice")
    layout = t.layout_of(x)
    pads = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        pads[axis_in(axis, rank, layout)] = (amounts[place], amounts[place + len(axes)])
    source = _source(t, x, layout)
    mode = node.attributes.get_string("mode", "constant")
    if mode == "constant":
        made = pad_tensor(t, source, pads, _filler(t, node, given[2], source))
        t.put(node.outputs[0], made, layout)
    elif mode == "reflect":
        target = t.moved_output(node, source, layout)
        inputs = [source, t.file.constant("pads", np.array(pads, np.int32))]
        word = t.file.word("MirrorPadMode", "REFLECT")
        t.emit("MIRROR_PAD", inputs, [target], "MirrorPadOptions", mode=word)
    else:
        raise RefusalError(f"padding of mode {mode!r}")


def _filler(t: Translation, node: ir.Node, value: ir.Value | None, source: Tensor) -> float:
    if value is None:
        return float(node.attributes.get_float("value", 0.0))
    array = t.array(value)
    if array is None:
        raise RefusalError("the number that it pads with is computed while the model runs")
    number = float(array.reshape(-1)[0])
    if array.dtype in (np.int8, np.uint8) and source.affine is not None:
        # Padding of the integers themselves.
        step = number - (128 if array.dtype == np.uint8 else 0)
        return (step - source.affine.zero_point) * source.affine.scale
    return number


@op("Gather")
def gather(t: Translation, node: ir.Node) -> None:
    """GATHER; indices must not count from the end."""
    x, indices = node.inputs[0], node.inputs[1]
    shape = t.shape(x)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    table = _source(t, x, PLAIN)
    constant = t.array(indices)
    if constant is None:
        places = t.read(indices)
    else:
        places = t.file.constant("indices", (constant % shape[axis]).astype(np.int32))
    target = t.moved_output(node, table)
    t.emit("GATHER", [table, places], [target], "GatherOptions", axis=axis)


@op("GatherND")
def gather_nd(t: Translation, node: ir.Node) -> None:
    """GATHER_ND with constant indices."""
    if node.attributes.get_int("batch_dims", 0):
        raise RefusalError("a GatherND with batch_dims")
    x, constant = node.inputs[0], t.array(node.inputs[1])
    shape = t.shape(x)
    if constant is None:
        places = t.read(node.inputs[1])
    else:
        places = t.file.constant(
            "indices", (constant % np.array(shape[: constant.shape[-1]])).astype(np.int32)
        )
    table = _source(t, x, PLAIN)
    target = t.moved_output(node, table)
    t.emit("GATHER_ND", [table, places], [target], "GatherNdOptions")


@op("Expand")
def expand(t: Translation, node: ir.Node) -> None:
    """BROADCAST_TO."""
    source = _source(t, node.inputs[0], PLAIN)
    target = t.moved_output(node, source)
    shape = t.integers(target.shape)
    t.emit("BROADCAST_TO", [source, shape], [target], "BroadcastToOptions")


@op("Tile")
def tile(t: Translation, node: ir.Node) -> None:
    """TILE."""
    source = _source(t, node.inputs[0], PLAIN)
    repeats = t.integers(t.numbers(node.inputs[1], "repeats"))
    t.emit("TILE", [source, repeats], [t.moved_output(node, source)], "TileOptions")


@op("DepthToSpace", "SpaceToDepth")
def depth_to_space(t: Translation, node: ir.Node) -> None:
    """DEPTH_TO_SPACE and SPACE_TO_DEPTH, which take depth first."""
    if node.attributes.get_string("mode", "DCR") != "DCR":
        raise RefusalError("only the mode DCR")
    source = _source(t, node.inputs[0], LAST)
    target = t.moved_output(node, source, LAST)
    down = node.op_type == "DepthToSpace"
    code, options = (
        ("DEPTH_TO_SPACE", "DepthToSpaceOptions")
        if down
        else ("SPACE_TO_DEPTH", "SpaceToDepthOptions")
    )
    size = node.attributes.get_int("blocksize", 1)
    t.emit(code, [source], [target], options, blockSize=size)
