"""The one writer of QuantizeLinear / DequantizeLinear pairs.

Weights become integers with a DequantizeLinear behind them, biases int32 with the product of both
scales (so that integer kernels can add them to their accumulators), activations a
QuantizeLinear-DequantizeLinear pair that all consumers read through.

::

    x -> Conv -> Relu -> y      becomes
    x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> y
    w (int8) -> DQ ---^

Weights alone are integers in blocks, each with a scale of its own (operator set 21).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.model import Model
from edgecompress.numerics.affine import Affine

__all__ = ["QdqWriter", "quantized_layers"]


class QdqWriter:
    """Inserts pairs into one graph, which it changes in place.

    Args:
        graph: The graph.
        keep: Where new weights are kept, such as :meth:`WeightSpool.keep`. Default: in memory.
    """

    def __init__(
        self,
        graph: ir.Graph,
        keep: Callable[[ir.TensorProtocol], ir.TensorProtocol] = lambda tensor: tensor,
    ) -> None:
        self._graph = graph
        self._keep = keep
        self._taken = {v.name for n in graph.all_nodes() for v in n.outputs}
        self._taken |= {v.name for v in graph.inputs} | set(graph.initializers)
        self._taken |= {n.name for n in graph.all_nodes()}  # onnxruntime wants these unique, too

    def activation(self, value: ir.Value, affine: Affine, dtype: str) -> None:
        """Send all consumers of ``value`` through a Q/DQ pair.

        If ``value`` is a graph output, the pair's output takes over its name and place.
        """
        graph = self._graph
        name = value.name or "value"
        uses = list(value.uses())
        scale = self.initializer(f"{name}_scale", np.array(affine.scale, np.float32))
        zero_point = self.initializer(f"{name}_zero_point", np.array(affine.zero_point, dtype))
        quantize, dequantize = self._pair(value, scale, zero_point, name)
        producer = value.producer()
        if producer is None:
            first = next(iter(graph))
            graph.insert_before(first, [quantize, dequantize])
        else:
            graph.insert_after(producer, [quantize, dequantize])
        for use in uses:
            use.node.replace_input_with(use.idx, dequantize.outputs[0])
        if value.is_graph_output() and producer is not None:
            self._take_over_output(value, dequantize.outputs[0])

    def _pair(
        self, value: ir.Value, scale: ir.Value, zero_point: ir.Value, name: str
    ) -> tuple[ir.Node, ir.Node]:
        quantize = ir.node(
            "QuantizeLinear",
            inputs=[value, scale, zero_point],
            outputs=[self._value(f"{name}_quantized", zero_point.dtype, value.shape)],
            name=self.unique(f"{name}/quantize"),
        )
        dequantize = ir.node(
            "DequantizeLinear",
            inputs=[quantize.outputs[0], scale, zero_point],
            outputs=[self._value(f"{name}_dequantized", value.dtype, value.shape)],
            name=self.unique(f"{name}/dequantize"),
        )
        return quantize, dequantize

    def _take_over_output(self, value: ir.Value, replacement: ir.Value) -> None:
        name = value.name
        position = next(i for i, v in enumerate(self._graph.outputs) if v is value)
        value.name = self.unique(f"{name}_float")
        replacement.name = name
        replacement.type = value.type
        replacement.shape = value.shape
        self._graph.outputs[position] = replacement

    def weight(
        self,
        weight: ir.Value,
        users: Iterable[tuple[ir.Node, int]],
        integers: npt.NDArray[np.integer],
        scales: npt.NDArray[np.float32],
        axis: int | None,
        *,
        zero_point: int = 0,
    ) -> str:
        """Replace a weight or bias by integers and a DequantizeLinear, for the given inputs.

        Args:
            weight: The float initializer; removed from the graph once nobody reads it.
            users: Nodes and input positions that shall read the dequantized weight.
            integers: int8 weights, int32 biases or other constants, of the same shape.
            scales: float32 scalar, or one per channel.
            axis: Channel axis of per-channel scales, else None.
            zero_point: The integer that stands for zero.

        Returns:
            Name of the initializer that holds the integers.
        """
        graph = self._graph
        name = weight.name or "weight"
        targets = list(users)
        stored = self.initializer(f"{name}_quantized", integers)
        # ONNX lets zero points of 0 be left out, but onnxruntime then does not fuse Gemm.
        zeros = np.full_like(scales, zero_point, dtype=integers.dtype)
        inputs = [
            stored,
            self.initializer(f"{name}_scale", scales),
            self.initializer(f"{name}_zero_point", zeros),
        ]
        dequantize = ir.node(
            "DequantizeLinear",
            inputs=inputs,
            attributes={} if axis is None else {"axis": axis},
            outputs=[self._value(f"{name}_dequantized", ir.DataType.FLOAT, weight.shape)],
            name=self.unique(f"{name}/dequantize"),
        )
        graph.insert_before(min((n for n, _ in targets), key=graph.index), dequantize)
        for node, position in targets:
            node.replace_input_with(position, dequantize.outputs[0])
        if not weight.uses() and not weight.is_graph_output() and weight.name:
            del graph.initializers[weight.name]
        return stored.name or ""

    def blocks(
        self,
        name: str,
        integers: npt.NDArray[np.generic],
        scales: npt.NDArray[np.floating],
        zero_points: npt.NDArray[np.generic] | None,
        axis: int,
        block_size: int,
        before: ir.Node,
    ) -> ir.Value:
        """A weight of integers in blocks, and the DequantizeLinear that gives its values.

        Needs operator set 21.

        Args:
            name: Of the float weight; new names start with it.
            integers: Of the weight's shape, also of types below one byte.
            scales: Of that shape, but for ``axis``, which counts blocks.
            zero_points: As the scales, in the type of the integers; None where they are 0.
            axis: Along which neighbours share a scale.
            block_size: How many do; the last block may be short.
            before: The first node that reads the values.

        Returns:
            The values, of the type of the scales.
        """
        inputs = [self.initializer(f"{name}_quantized", integers)]
        inputs.append(self.initializer(f"{name}_scale", scales))
        if zero_points is not None:
            inputs.append(self.initializer(f"{name}_zero_point", zero_points))
        dequantize = ir.node(
            "DequantizeLinear",
            inputs=inputs,
            attributes={"axis": axis, "block_size": block_size},
            outputs=[self._value(f"{name}_dequantized", inputs[1].dtype, ir.Shape(integers.shape))],
            name=self.unique(f"{name}/dequantize"),
        )
        self._graph.insert_before(before, dequantize)
        return dequantize.outputs[0]

    def pads_on_integers(self) -> None:
        """Let Pads between pairs of equal scale pad the integers themselves.

        ::

            Q -> DQ -> Pad -> Q -> DQ      becomes      Q -> Pad (with the zero point) -> DQ

        The numbers are the same; runtimes do not make this step of their own.
        """
        for node in [n for n in self._graph if n.op_type == "Pad"]:
            source = node.inputs[0]
            before = None if source is None else source.producer()
            uses = list(node.outputs[0].uses())
            if before is None or before.op_type != "DequantizeLinear" or len(uses) != 1:
                continue
            after = uses[0].node
            if after.op_type == "QuantizeLinear" and _same_parameters(before, after):
                self._pad_integers(node, before, after)

    def _pad_integers(self, node: ir.Node, before: ir.Node, after: ir.Node) -> None:
        padded, quantized = node.outputs[0], after.outputs[0]
        node.replace_input_with(0, before.inputs[0])
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        node.replace_input_with(2, after.inputs[2])
        quantized.replace_all_uses_with(padded)
        self._graph.remove(after, safe=True)
        padded.type, padded.name = quantized.type, quantized.name
        unused = before.outputs[0]
        if not unused.uses() and not unused.is_graph_output():
            self._graph.remove(before, safe=True)

    def initializer(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """Add an initializer, called ``name`` unless that is taken."""
        unique = self.unique(name)
        tensor = self._keep(ir.tensor(array, name=unique))
        value = ir.Value(
            name=unique,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value

    def _value(self, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> ir.Value:
        kind = None if dtype is None else ir.TensorType(dtype)
        return ir.Value(name=self.unique(name), shape=shape, type=kind)

    def unique(self, name: str) -> str:
        """``name``, with a number behind it where it is taken; taken from now on."""
        candidate, n = name, 1
        while candidate in self._taken:
            n += 1
            candidate = f"{name}_{n}"
        self._taken.add(candidate)
        return candidate


def _same_parameters(before: ir.Node, after: ir.Node) -> bool:
    """Whether a DequantizeLinear and a QuantizeLinear have the same scale and zero point."""
    for mine, theirs in zip(before.inputs[1:], after.inputs[1:], strict=True):
        a = None if mine is None else mine.const_value
        b = None if theirs is None else theirs.const_value
        if a is None or b is None or not np.array_equal(a.numpy(), b.numpy()):
            return False
    return True


def quantized_layers(model: Model) -> list[str]:
    """Outputs of the layers whose weights are stored as integers."""
    return [
        node.outputs[0].name or ""
        for node in model.ir.graph
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        and len(node.inputs) > 1
        and node.inputs[1] is not None
        and (producer := node.inputs[1].producer()) is not None
        and producer.op_type == "DequantizeLinear"
    ]
