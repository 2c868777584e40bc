"""Why onnxruntime does not fuse or take a node, and which change of the model mends that.

onnxruntime's CPU provider does not say why it fused nothing, so the reasons are read off the graph
around the node, by the rules of its Q/DQ fusions (``qdq_transformer`` in its sources); each is held
to the real optimizer by tests. Other providers do say, or log, why they left a node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["CPU", "integer_break", "provider_break"]

CPU = "CPUExecutionProvider"

_MOVING = frozenset(
    {
        *("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace"),
        *("Gather", "Slice", "Expand", "Tile", "Resize", "Split"),
    }
)
_COMPUTING = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool"),
        *("Sigmoid", "LeakyRelu", "Softmax", "Where"),
    }
)
_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
# Vanish into the kernel before them or the quantizer behind them.
_TRANSPARENT = frozenset({"Relu", "Clip"})
# On the CPU their products may leave as floats: MatMulIntegerToFloat, QGemm.
_FLOAT_OUTPUT = frozenset({"MatMul", "Gemm"})
_SIGNED = frozenset({ir.DataType.INT8})
_WIDE = frozenset({ir.DataType.INT16, ir.DataType.UINT16})

_ERF = "write it as x * Sigmoid(1.702 x), whose steps have integer kernels, or give it no Q/DQ"
_OTHER_FORM = {
    "Gelu": _ERF,
    "FastGelu": _ERF,
    "BiasGelu": _ERF,
    "QuickGelu": "write it as Mul and Sigmoid, which have integer kernels",
    "Erf": f"if it is part of a Gelu, {_ERF}",
    "HardSwish": "write it as x * Clip(x / 6 + 1/2, 0, 1), with Q/DQ around each step",
    "HardSigmoid": "write it as Clip(alpha x + beta, 0, 1)",
    "Tanh": "write it as 2 Sigmoid(2 x) - 1, which has an integer kernel; or give it no Q/DQ",
    "Sub": "fold the sign into the layer that makes the second input, and add",
    "Div": "multiply by the reciprocal where the divisor is a constant",
    "ReduceMean": "use GlobalAveragePool where it takes the mean over space",
    "GlobalMaxPool": "use MaxPool with the size of the input as its kernel",
    "ConvTranspose": "use Resize (nearest) and Conv, or leave it in float",
    "Pad": "pad by the pads attribute of the convolution or pool behind it",
    "SpaceToDepth": "write it as Reshape, Transpose, Reshape, with one scale throughout",
    "LayerNormalization": "leave it in float, without Q/DQ of its own",
}
_NO_KERNEL = "leave it in float, without Q/DQ of its own, or use another operator there"


def integer_break(
    node: ir.Node, kernel: str, provider: str = CPU, *, signed: bool = True
) -> tuple[str, str] | None:
    """Why a node behind integers runs in float, and what mends it.

    None where the node is not meant to run on integers: nothing quantized goes in.

    Args:
        node: The node, in the model's own graph.
        kernel: What the runtime made of it.
        provider: What runs it; the rules of the CPU provider's kernels are looked at for that only.
        signed: Whether signed activations are fused.
    """
    if not any(_dequantized(v) for v in _data(node)):
        return None
    what = f"runs as {kernel} in float"
    own_rules = _cpu_reasons(node, signed) if provider == CPU else ()
    floats_leave = provider == CPU and node.op_type in _FLOAT_OUTPUT
    for reason, mend in (*own_rules, *_reasons(node, floats_leave)):
        return f"{what}: {reason}", mend
    return f"{what}; the runtime does not tell why", ""


def _cpu_reasons(node: ir.Node, signed: bool) -> Iterator[tuple[str, str]]:
    op = node.op_type
    if op in _TRANSPARENT:
        yield (
            f"{op} has no integer kernel, and Q/DQ keep it from the layer before it",
            "drop the Q/DQ pair between it and the layer before it",
        )
    elif op not in _MOVING | _COMPUTING:
        yield (
            f"the CPU provider has no integer kernel for {op}",
            _OTHER_FORM.get(op, _NO_KERNEL),
        )
    if op == "Resize" and (mode := node.attributes.get_string("mode", "nearest")) != "nearest":
        yield f"only mode nearest moves integers, this is {mode}", "resize by nearest neighbours"
    activations = _activation_types(node)
    if any(kind in _WIDE for kind in activations):
        yield (
            "the CPU provider has no kernels for 16-bit activations",
            "take 8-bit activations for this target",
        )
    if not signed and any(kind in _SIGNED for kind in activations) and _shared(node):
        yield (
            "on x86 a signed activation is fused only where one node reads it",
            "quantize activations to uint8 for x86, or set session.qdqisint8allowed = 1",
        )


def _reasons(node: ir.Node, floats_leave: bool) -> Iterator[tuple[str, str]]:
    op = node.op_type
    for value in _data(node):
        # A float weight is rounded by onnxruntime itself.
        if _dequantized(value) is None and not value.is_initializer():
            yield f"its input {value.name!r} is float", f"quantize {_origin(value)}, too"
    yield from _output_reasons(node, floats_leave)
    activations = _activation_types(node)
    behind = {_stored_by(q) for q in _quantizers(_last(node))}
    if activations and behind and behind != set(activations):
        yield "its inputs and its output have different integer types", "give all of them one type"
    if op in _MOVING and not _one_scale(node):
        yield (
            "the scales before and behind it differ",
            "give both Q/DQ pairs one scale and zero point: the operator only moves numbers",
        )


def _activation_types(node: ir.Node) -> list[ir.DataType | None]:
    found = (_dequantized(v) for v in _data(node))
    return [_stored(d) for d in found if d is not None and not _is_weight(d)]


def _output_reasons(node: ir.Node, floats_leave: bool) -> Iterator[tuple[str, str]]:
    end = _last(node).outputs[0]
    readers = [use.node for use in end.uses()]
    others = [reader for reader in readers if reader.op_type != "QuantizeLinear"]
    if not readers and end.is_graph_output():
        if not floats_leave:
            yield "its output leaves the model without Q/DQ", "quantize the output, too"
    elif others and len(others) < len(readers) + end.is_graph_output():
        names = ", ".join(sorted({other.op_type for other in others})) or "the model's output"
        yield f"{names} reads its float output", "let all of them read through one Q/DQ pair"
    elif others and not floats_leave:
        yield (
            f"{others[0].op_type} stands between it and the next QuantizeLinear",
            f"put a Q/DQ pair in front of {others[0].op_type}",
        )
    if end is not node.outputs[0] and not others:
        yield (
            "the QuantizeLinear behind it has a wider range than the activation lets through",
            "take the activation's limits as the range of that QuantizeLinear",
        )


def _data(node: ir.Node) -> list[ir.Value]:
    """Inputs whose values are computed with or moved; not biases, indices, shapes."""
    if node.op_type in _MOVING:
        places: tuple[int, ...] = (0,)
    elif node.op_type in _LAYERS:
        places = (0, 1)
    elif node.op_type == "Where":
        places = (1, 2)
    elif node.op_type in ("Add", "Mul", "Sub", "Div", "Concat", "MatMul"):
        places = tuple(range(len(node.inputs)))
    else:
        places = (0,)
    return [v for i in places if i < len(node.inputs) and (v := node.inputs[i]) is not None]


def _dequantized(value: ir.Value | None) -> ir.Node | None:
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _stored(dequantize: ir.Node) -> ir.DataType | None:
    source = dequantize.inputs[0]
    if source is not None and source.dtype is not None:
        return source.dtype
    zero = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    return None if zero is None else zero.dtype


def _stored_by(quantize: ir.Node) -> ir.DataType | None:
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return zero.dtype
    return quantize.outputs[0].dtype


def _is_weight(dequantize: ir.Node) -> bool:
    source = dequantize.inputs[0]
    return source is not None and source.is_initializer()


def _quantizers(node: ir.Node) -> list[ir.Node]:
    uses = [use.node for value in node.outputs for use in value.uses()]
    return [reader for reader in uses if reader.op_type == "QuantizeLinear"]


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _origin(value: ir.Value) -> str:
    producer = value.producer()
    return f"the input {value.name!r}" if producer is None else f"the output of {producer.op_type}"


def _shared(node: ir.Node) -> bool:
    """Whether several nodes read an activation before or behind the node."""
    before = [d for v in _data(node) if (d := _dequantized(v)) is not None and not _is_weight(d)]
    behind = [use.node for q in _quantizers(_last(node)) for use in q.outputs[0].uses()]
    return any(len(list(d.outputs[0].uses())) > 1 for d in (*before, *behind))


def _last(node: ir.Node) -> ir.Node:
    """The node, or the last of the activations behind it that vanish into it."""
    while (only := _only_reader(node.outputs[0])) is not None and only.op_type in _TRANSPARENT:
        node = only
    return node


def _one_scale(node: ir.Node) -> bool:
    before = _dequantized(node.inputs[0])
    return before is not None and all(
        all(
            (a := _numbers(before, i)) is not None
            and (b := _numbers(after, i)) is not None
            and np.array_equal(a, b)
            for i in range(1, min(len(before.inputs), len(after.inputs)))
        )
        for after in _quantizers(node)
    )


def _numbers(node: ir.Node, place: int) -> npt.NDArray[np.generic] | None:
    value = node.inputs[place]
    return None if value is None or value.const_value is None else value.const_value.numpy()


# What a provider logs or what was said in its documentation, and the change that helps.
_SAID = (
    (
        re.compile(r"cannot get shape|dynamic shape", re.IGNORECASE),
        "fix all dimensions of the inputs: this provider takes no symbolic ones",
    ),
    (
        re.compile(r"consume a graph input|outputs? (?:a )?graph output", re.IGNORECASE),
        "none needed: the CPU converts inputs and outputs; integer inputs of the model save that",
    ),
    (
        re.compile(r"standalone DQ op with per-channel", re.IGNORECASE),
        "quantize the node that reads it (inputs and output), or keep its weight float",
    ),
    (
        re.compile(r"int64|INT_64", re.IGNORECASE),
        "take int32 instead of int64 indices and shapes, or fold them into constants",
    ),
    (
        re.compile(r"^GatherBlockQuantized", re.IGNORECASE),
        "leave tables that are looked up in float, or in 8 bits behind a DequantizeLinear",
    ),
    (
        re.compile(r"quantiz(?:ation|ed)\b", re.IGNORECASE),
        "put Q/DQ pairs around it with a scheme that the provider takes",
    ),
)
_OPERATOR = re.compile(r"operators? of type .* not supported|unsupported op", re.IGNORECASE)
_SPLITS = {
    "Erf": "write Gelu by its tanh form, or as one Gelu node (opset 20), which it takes",
    "LayerNormalization": "take the operator of opset 17, or split it into means and products",
    "Gather": "take int32 indices",
    "If": "choose the branch when the model is exported",
    "Loop": "unroll it when the model is exported",
    "Scan": "unroll it when the model is exported",
    "Range": "fix the shapes, so that it becomes a constant",
    "Shape": "fix the shapes, so that it becomes a constant",
    "NonMaxSuppression": "end the model before it, and select boxes in the application",
    "NonZero": "its output has no fixed shape: end the model before it",
}
_TAKES_NO_QDQ = {
    "CoreMLExecutionProvider": "give this target the float model",
    "CUDAExecutionProvider": "give this target the float or float16 model; TensorRT takes Q/DQ",
    "DmlExecutionProvider": "give this target the float16 model where Q/DQ stays on the CPU",
}
_FIXED_SHAPES = frozenset({"QNN", "QNNExecutionProvider", "NnapiExecutionProvider"})


def provider_break(
    node: ir.Node, accelerator: str, runs_on: str, said: str | None
) -> tuple[str, str]:
    """Why a node runs elsewhere than on the accelerator, and what mends it, empty if unknown.

    Args:
        node: The node, in the model's own graph.
        accelerator: The provider that is wanted.
        runs_on: The provider that took it.
        said: What the accelerator said of it, or None.
    """
    if said:
        return f"runs on {runs_on}: {said}", _mend_of(node, said)
    where = f"runs on {runs_on}: {accelerator} did not take it"
    if accelerator in _FIXED_SHAPES and _is_dynamic(node):
        return f"{where}, and its shape is not fixed", _SAID[0][1]
    if accelerator in _TAKES_NO_QDQ and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return f"{where}; it takes no {node.op_type}", _TAKES_NO_QDQ[accelerator]
    if accelerator == "XnnpackExecutionProvider" and _unsigned(node):
        return (
            f"{where}; its integer kernels are for signed activations",
            "quantize activations to int8 with zero point 0",
        )
    return where, _SPLITS.get(node.op_type, "")


def _mend_of(node: ir.Node, said: str) -> str:
    if _OPERATOR.search(said):
        return _SPLITS.get(node.op_type, "use operators that the provider takes")
    return next((mend for pattern, mend in _SAID if pattern.search(said)), "")


def _is_dynamic(node: ir.Node) -> bool:
    values = (*node.inputs, *node.outputs)
    return any(v is not None and v.shape is not None and v.shape.is_dynamic() for v in values)


def _unsigned(node: ir.Node) -> bool:
    kinds = {_stored(d) for v in node.inputs if (d := _dequantized(v)) is not None}
    return ir.DataType.UINT8 in kinds or _stored_type(node) == ir.DataType.UINT8


def _stored_type(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "QuantizeLinear":
        return _stored_by(node)
    return _stored(node) if node.op_type == "DequantizeLinear" else None
