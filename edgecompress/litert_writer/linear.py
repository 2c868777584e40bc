"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.litert_writer.flatbuffer import Affine8, Tensor
from edgecompress.litert_writer.layers import weights_of
from edgecompress.litert_writer.ranges import is_op
from edgecompress.litert_writer.registry import RefusalError, op
from edgecompress.litert_writer.translation import Translation

_PER_CHANNEL_VERSION = 12


@op("Gemm")
def gemm(t: Translation, node: ir.Node) -> None:
    """FULLY_CONNECTED of constant weights."""
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1.0:
        raise RefusalError("a Gemm with transA or alpha; use MatMul and Mul instead")
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = t.array(value)
    if value is not None and (bias is None or bias.size not in (1, t.shape(node.outputs[0])[1])):
        raise RefusalError("its bias is not one constant per column")
    if bias is not None:
        bias = bias * np.float32(node.attributes.get_float("beta", 1.0))
    transposed = bool(node.attributes.get_int("transB", 0))
    _fully_connected(t, node, transposed, bias)


@op("MatMul")
def matmul(t: Translation, node: ir.Node) -> None:
    """FULLY_CONNECTED of a constant matrix, else BATCH_MATMUL."""
    a, b = node.inputs[0], node.inputs[1]
    if len(t.shape(a)) < 2 or len(t.shape(b)) < 2:
        raise RefusalError("a product with a vector; give it a second axis")
    if len(t.shape(b)) == 2 and t.array(b) is not None and t.array(a) is None:
        _fully_connected(t, node, False, None)
        return
    plan = t.plan(node, a, b)
    inputs = [t.read(a, integers=plan.integers), t.read(b, integers=plan.integers)]
    t.emit("BATCH_MATMUL", inputs, [t.output(plan)], "BatchMatMulOptions")


def _fully_connected(
    t: Translation, node: ir.Node, transposed: bool, bias: npt.NDArray[Any] | None
) -> None:
    x = node.inputs[0]
    weights = weights_of(t, node.inputs[1], 0 if transposed else 1)
    last: ir.Node = node
    if bias is None and (found := _added_bias(t, node, weights.floats.shape[-1])) is not None:
        last, bias = found
    plan = t.plan(last, x, fuses=True, integers=weights.held is not None)
    source = t.read(x, integers=plan.integers)
    target = t.output(plan)
    channels = target.shape[-1]
    hybrid = t.dynamic and weights.held is not None and not plan.integers
    if hybrid:
        t.note("{} layers quantize their inputs while they run, row by row")
    filters = weights.tensor(
        t, lambda w: w if transposed else w.T, 0, integers=plan.integers or hybrid
    )
    scales = 1 if weights.held is None else weights.held.scales.size
    per_channel = filters.dtype == "int8" and scales > 1
    affine: Affine8 | None = source.affine
    inputs: list[Tensor | None] = [source, filters, weights.bias(t, bias, channels, affine)]
    t.emit(
        "FULLY_CONNECTED",
        inputs,
        [target],
        "FullyConnectedOptions",
        # Older runtimes would take the first scale for all channels.
        version=_PER_CHANNEL_VERSION if per_channel else None,
        asymmetricQuantizeInputs=hybrid,
        keepNumDims=len(target.shape) > 2,
        fusedActivationFunction=t.fused(plan.activation),
    )


def _added_bias(
    t: Translation, node: ir.Node, channels: int
) -> tuple[ir.Node, npt.NDArray[Any]] | None:
    """The Add behind a product, and what it adds, where that is a constant per column."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or not is_op(uses[0].node, "Add"):
        return None
    add = uses[0].node
    bias = t.array(add.inputs[1 - uses[0].idx])
    if bias is None or bias.shape != (channels,):
        return None
    t.absorb(add)
    return add, bias
