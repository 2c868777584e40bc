"""Dynamic int8: integer weights, activations quantized while the model runs.

::

    x -> MatMul(w) -> y                         becomes

    x -> DynamicQuantizeLinear -> x8 (uint8), s, z
    MatMulInteger(x8, w8, z) -> Cast to float -> Mul(s * ws) -> y

That is the shape that onnxruntime turns into one kernel (DynamicQuantizeMatMul, or
MatMulIntegerToFloat where several layers read ``x8``), with the bias of an Add behind it. LSTM
becomes onnxruntime's own DynamicQuantizeLSTM. No data are needed, and no operator set but 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.constraints import Int8Format
from edgecompress.graph_pass import Change
from edgecompress.model import Model
from edgecompress.numerics.affine import IntegerRange, quantize, weight_scales
from edgecompress.qdq_plan import label
from edgecompress.quantization.dynamic_plan import DynamicLayer, DynamicOptions, DynamicPlan
from edgecompress.quantization.editing import Editor, bias_of

__all__ = ["Dynamic", "quantize_dynamic"]

_ORT = "com.microsoft"


@dataclass
class Dynamic:
    """What became of a model.

    Attributes:
        changed: One for each layer, in the order of the plan.
        claimed: Outputs of the integer nodes of the main graph.
    """

    changed: list[Change] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)


def quantize_dynamic(model: Model, plan: DynamicPlan, int8: Int8Format | None) -> Dynamic:
    """Quantize the planned layers, in place.

    Args:
        model: The model that ``plan`` was made for.
        plan: Its layers.
        int8: Integer formats of the target: how many bits its kernels let weights have.
    """
    writer = _Writer(model, 8 if int8 is None else int8.weight_bits)
    for layer in plan.layers:
        writer.take(layer)
    writer.drop_unused()
    return writer.result


@dataclass(frozen=True)
class _Weight:
    """An integer weight and its scales, float32 [channels], or [] for all of them."""

    integers: ir.Value
    scales: ir.Value


class _Writer:
    def __init__(self, model: Model, bits: int) -> None:
        self.result = Dynamic()
        self._model = model
        self._editor = Editor(model.ir.graph)
        self._integers = IntegerRange.of("int8", bits, symmetric=True)
        self._inputs: dict[tuple[int, int], ir.Node] = {}
        self._weights: dict[tuple[object, ...], _Weight] = {}
        self._floats: dict[int, ir.Value] = {}

    def take(self, layer: DynamicLayer) -> None:
        node = layer.node
        what = f"uint8 at run time x int8{' per channel' if layer.options.per_channel else ''}"
        made = len(self._weights)
        write = self._lstm if node.op_type == "LSTM" else self._product
        name, operator = label(node), node.op_type
        kernel = write(node, layer.options)
        new = list(self._weights.values())[made:]
        after = sum(_bytes(w.integers) + _bytes(w.scales) for w in new)
        before = 4 * sum(_elements(w.integers) for w in new)
        self.result.changed.append(Change(name, operator, what, before, after))
        if not layer.nested:
            self.result.claimed.append(kernel.outputs[0].name or "")

    def drop_unused(self) -> None:
        """Remove float weights that nobody reads any more; one that is an output stays."""
        for weight in self._floats.values():
            graph = weight.graph
            if isinstance(graph, ir.Graph) and not weight.uses() and not weight.is_graph_output():
                graph.initializers.pop(weight.name or "", None)

    def _product(self, node: ir.Node, options: DynamicOptions) -> ir.Node:
        x, weight, graph = _input(node, 0), _input(node, 1), _graph(node)
        stored = self._product_weight(node, weight, options)
        quantized, scale, zero_point = self._quantized(graph, x, node).outputs
        out = node.outputs[0]
        name = out.name or "product"
        product = self._editor.node(
            "MatMulInteger",
            [quantized, stored.integers, zero_point],
            {f"{name}_integer": ir.DataType.INT32},
            shape=out.shape,
        )
        real = self._editor.node(
            "Cast",
            [product.outputs[0]],
            {f"{name}_unscaled": ir.DataType.FLOAT},
            attributes={"to": ir.DataType.FLOAT.value},
            shape=out.shape,
        )
        scales = self._editor.node(
            "Mul", [scale, stored.scales], {f"{name}_scales": ir.DataType.FLOAT}
        )
        scaled = self._editor.node(
            "Mul",
            [real.outputs[0], scales.outputs[0]],
            {f"{name}_scaled": ir.DataType.FLOAT},
            shape=out.shape,
        )
        made = [product, real, scales, scaled, *self._biased(node, scaled)]
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], made, [out], [made[-1].outputs[0]]
        )
        return product

    def _biased(self, node: ir.Node, scaled: ir.Node) -> list[ir.Node]:
        """The Add of a Gemm's bias."""
        bias = bias_of(node) if node.op_type == "Gemm" else None
        if bias is None:
            return []
        beta = _attribute(node, "beta", 1.0)
        if beta != 1.0:
            array = (_array_of(bias).astype(np.float64) * beta).astype(np.float32)
            self._floats.setdefault(id(bias), bias)
            bias = self._editor.initializer(_home(bias, node), f"{bias.name}_scaled", array)
        name = f"{node.outputs[0].name}_biased"
        return [
            self._editor.node(
                "Add",
                [scaled.outputs[0], bias],
                {name: ir.DataType.FLOAT},
                shape=scaled.outputs[0].shape,
            )
        ]

    def _product_weight(self, node: ir.Node, weight: ir.Value, options: DynamicOptions) -> _Weight:
        """[inputs, channels] integers of a weight; stored once for all layers that read it so."""
        alpha, transposed = 1.0, False
        if node.op_type == "Gemm":
            alpha, transposed = _attribute(node, "alpha", 1.0), bool(_attribute(node, "transB", 0))
        key = (id(weight), transposed, alpha, options.weight_method, options.per_channel)
        if key not in self._weights:
            rows = (_tensor(weight) if transposed else _tensor(weight).T).contiguous()
            integers, scales = self._rounded(rows, options)
            self._weights[key] = self._store(node, weight, integers.T, scales * alpha)
        return self._weights[key]

    def _lstm(self, node: ir.Node, options: DynamicOptions) -> ir.Node:
        stored = [self._recurrent(node, _input(node, place), options) for place in (1, 2)]
        zeros = [
            self._editor.initializer(
                _home(weight.scales, node),
                f"{weight.integers.name}_zero_point",
                np.zeros(_array_of(weight.scales).shape, np.int8),
            )
            for weight in stored
        ]
        inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
        inputs[1:3] = [weight.integers for weight in stored]
        inputs += [stored[0].scales, zeros[0], stored[1].scales, zeros[1]]
        names = {out.name or "": out.dtype for out in node.outputs}
        made = ir.node(
            "DynamicQuantizeLSTM",
            inputs=inputs,
            attributes={k: a for k, a in node.attributes.items() if k != "layout"},
            outputs=[ir.Value(name=name) for name in names],
            domain=_ORT,
            name=node.name,
        )
        ir.convenience.replace_nodes_and_values(
            _graph(node), node, [node], [made], list(node.outputs), list(made.outputs)
        )
        self._model.ir.opset_imports.setdefault(_ORT, 1)
        return made

    def _recurrent(self, node: ir.Node, weight: ir.Value, options: DynamicOptions) -> _Weight:
        """[directions, inputs, 4 * hidden] integers of [directions, 4 * hidden, inputs]."""
        key = (id(weight), "LSTM", options.weight_method, options.per_channel)
        if key not in self._weights:
            found = [self._rounded(rows, options) for rows in _tensor(weight)]
            integers = torch.stack([whole.T for whole, _ in found])
            scales = torch.stack([scale for _, scale in found])
            self._weights[key] = self._store(node, weight, integers, scales)
        return self._weights[key]

    def _rounded(self, rows: Tensor, options: DynamicOptions) -> tuple[Tensor, Tensor]:
        """Integers of [channels, elements], and float32 scales: [channels], or [] for all."""
        grouped = rows if options.per_channel else rows.reshape(1, -1)
        scales = weight_scales(grouped, self._integers, method=options.weight_method)
        integers = quantize(rows, scales[:, None], 0, self._integers).to(torch.int8)
        return integers, scales if options.per_channel else scales[0]

    def _store(self, node: ir.Node, weight: ir.Value, integers: Tensor, scales: Tensor) -> _Weight:
        home = _home(weight, node)
        self._floats.setdefault(id(weight), weight)
        return _Weight(
            self._editor.initializer(home, f"{weight.name}_quantized", _array(integers)),
            self._editor.initializer(home, f"{weight.name}_scale", _array(scales)),
        )

    def _quantized(self, graph: ir.Graph, x: ir.Value, before: ir.Node) -> ir.Node:
        """The DynamicQuantizeLinear of ``x`` in ``graph``: one for all layers there."""
        key = (id(graph), id(x))
        if key not in self._inputs:
            made = self._editor.node(
                "DynamicQuantizeLinear",
                [x],
                {
                    f"{x.name}_quantized": ir.DataType.UINT8,
                    f"{x.name}_scale": ir.DataType.FLOAT,
                    f"{x.name}_zero_point": ir.DataType.UINT8,
                },
                shape=x.shape,
            )
            graph.insert_before(before, made)
            self._inputs[key] = made
        return self._inputs[key]


def _input(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None  # the plan has seen to it
    return value


def _graph(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # functions are not planned for
    return graph


def _home(value: ir.Value, node: ir.Node) -> ir.Graph:
    """The graph whose initializer a value is: there it can be seen by all who read it."""
    return value.graph if isinstance(value.graph, ir.Graph) else _graph(node)


def _tensor(weight: ir.Value) -> Tensor:
    return torch.from_numpy(np.array(_array_of(weight)))


def _array_of(value: ir.Value) -> npt.NDArray[np.generic]:
    assert value.const_value is not None  # the plan has seen to it
    array: npt.NDArray[np.generic] = value.const_value.numpy()
    return array


def _array(tensor: Tensor) -> npt.NDArray[np.generic]:
    array: npt.NDArray[np.generic] = tensor.contiguous().numpy()
    return array


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _elements(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.size
