"""Nodes that read weights of a few bits, in the two layouts that runtimes take.

::

    x -> MatMul(W) -> y        becomes, as "nbits" (com.microsoft),
    x -> MatMulNBits(B, scales, zero points) -> y
    i -> Gather(T) -> y        becomes
    i -> GatherBlockQuantized(T, scales, zero points) -> y

    x -> MatMul(W) -> y        becomes, as "qdq" (operator set 21),
    x -> MatMul(DequantizeLinear(W, scales, zero points)) -> y
    i -> Gather(T) -> y        becomes
    i -> Gather(T), Gather(scales), Gather(zero points) -> DequantizeLinear -> y

A DequantizeLinear of a whole table before its Gather would be as short, but onnxruntime computes
the whole table again at each run: milliseconds instead of microseconds. (Behind the Gather, 4-bit
tables lie in bytes, since Gather takes no smaller type.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgecompress.numerics.blockwise import Blocks
from edgecompress.quantization.packing import (
    nbits_weight,
    nbits_zero_points,
    pack_halves,
    table,
)
from edgecompress.quantization.weight_nodes import Keep, WeightNodes
from edgecompress.quantization.weight_plan import Matrix

__all__ = ["NbitsNodes", "QdqNodes", "nodes_for"]

_ORT = "com.microsoft"
_INT8_ACTIVATIONS = 4
"""``accuracy_level`` of the kernels that round activations to 8 bits, block by block: three times
as fast as others for single rows, and the only fast ones for 8-bit weights."""


class NbitsNodes(WeightNodes):
    """MatMulNBits and GatherBlockQuantized."""

    def put(self, matrix: Matrix, blocks: Blocks) -> int:
        """Let all users of a matrix read it as integers; returns its bytes."""
        self.opsets[_ORT] = max(self.opsets.get(_ORT, 1), 1)
        name, zeros = matrix.weight, nbits_zero_points(blocks)
        shared = [self.scales(matrix, blocks.scales.numpy())]
        if zeros is not None:
            shared.append(self.writer.initializer(f"{name}_zero_point", zeros))
        stored = list(shared)
        packed: ir.Value | None = None
        if matrix.products:
            packed = self.writer.initializer(f"{name}_packed", nbits_weight(blocks))
            stored.append(packed)
            for use in matrix.products:
                self._multiply(self.node(use.output), matrix, [packed, *shared])
        if matrix.lookups:
            # MatMulNBits fills up short blocks, GatherBlockQuantized does not.
            if packed is None or not matrix.stored_once:
                packed = self.writer.initializer(f"{name}_table", table(blocks))
                stored.append(packed)
            for use in matrix.lookups:
                self._look_up(self.node(use.output), matrix, [packed, *shared])
        self.drop(self.graph.initializers[name])
        return sum(v.const_value.nbytes for v in stored if v.const_value is not None)

    def _multiply(self, old: ir.Node, matrix: Matrix, inputs: Sequence[ir.Value]) -> None:
        read: list[ir.Value | None] = [old.inputs[0], *inputs]
        bias = old.inputs[2] if len(old.inputs) > 2 else None
        if bias is not None:
            if _is_vector(bias, matrix.rows):
                read = [*read, *[None] * (5 - len(read)), bias]
            else:
                old = self._split_gemm(old, bias)
        attributes = {
            "K": matrix.columns,
            "N": matrix.rows,
            "bits": matrix.grid.bits,
            "block_size": matrix.grid.size,
            "accuracy_level": _INT8_ACTIVATIONS,
        }
        self.replace(old, "MatMulNBits", read, attributes, _ORT)

    def _split_gemm(self, gemm: ir.Node, bias: ir.Value) -> ir.Node:
        """A Gemm whose bias is no vector of constants: an Add behind a product."""
        product = self.before(gemm, "MatMul", gemm.inputs[:2], gemm.outputs[0].dtype)
        self.replace(gemm, "Add", [product, bias], {})
        node = product.producer()
        assert node is not None
        return node

    def _look_up(self, old: ir.Node, matrix: Matrix, inputs: Sequence[ir.Value]) -> None:
        packed = inputs[0]
        width = [] if packed.shape is None else list(packed.shape.numpy())
        if len(width) > 2:
            # MatMulNBits reads the same bytes, in three axes. They lie in the file once.
            shape = np.array([width[0], width[1] * width[2]])
            to = self.writer.initializer(f"{matrix.weight}_shape", shape)
            packed = self.before(old, "Reshape", [packed, to], ir.DataType.UINT8)
        attributes = {
            "bits": matrix.grid.bits,
            "block_size": matrix.grid.size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        read = [packed, old.inputs[1], *inputs[1:]]
        self.replace(old, "GatherBlockQuantized", read, attributes, _ORT)

    def take_biases(self) -> dict[str, str]:
        """Let each MatMulNBits add the bias of the Add behind it, and behind its correction.

        Returns:
            Outputs of products that are gone -> those of the sums that stand for them.
        """
        taken: dict[str, str] = {}
        for node in [n for n in self.graph if n.op_type == "MatMulNBits"]:
            total = self.sums.get(node.outputs[0].name or "")
            value = (total or node).outputs[0]
            uses = list(value.uses())
            add = uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
            has_bias = len(node.inputs) > 5
            if add is None or has_bias or add.op_type != "Add" or add.graph is not self.graph:
                continue
            bias = add.inputs[1 - uses[0].idx]
            if bias is None or not _is_vector(bias, node.attributes.get_int("N", 0)):
                continue
            if total is not None and bias.producer() is not None:
                continue  # it may stand behind the product
            read = [*node.inputs, *[None] * (5 - len(node.inputs)), bias]
            attributes = {name: each.value for name, each in node.attributes.items()}
            if total is not None:
                self.replace(node, "MatMulNBits", read, attributes, _ORT)
                self.replace(add, "Add", total.inputs, {})
                self.graph.remove(total, safe=True)
                continue
            taken[value.name or ""] = add.outputs[0].name or ""
            made = self.replace(add, "MatMulNBits", read, attributes, _ORT)
            name = node.name
            self.graph.remove(node, safe=True)
            made.name = name
        return taken


class QdqNodes(WeightNodes):
    """Standard operators: DequantizeLinear in blocks."""

    def put(self, matrix: Matrix, blocks: Blocks) -> int:
        """Let all users of a matrix read it as integers; returns its bytes."""
        weight = self.graph.initializers[matrix.weight]
        count = self._multiply(matrix, blocks) if matrix.products else 0
        if matrix.lookups:
            count += self._look_up(matrix, blocks)
        self.drop(weight)
        return count

    def _multiply(self, matrix: Matrix, blocks: Blocks) -> int:
        grid = blocks.grid
        kind = ir.DataType[f"{'INT' if grid.symmetric else 'UINT'}{grid.bits}"].numpy()
        numbers = blocks.integers.numpy().T.astype(np.int16) - grid.symmetric * grid.middle
        scales = np.ascontiguousarray(blocks.scales.numpy().T)
        zeros = None if grid.symmetric else blocks.zero_points.numpy().T.astype(kind)
        users = [self.node(use.output) for use in matrix.products]
        values = self.writer.blocks(
            matrix.weight,
            numbers.astype(kind),
            scales.astype(np.float16 if grid.half else np.float32),
            zeros,
            axis=0,
            block_size=grid.size,
            before=min(users, key=self.graph.index),
        )
        for node in users:
            node.replace_input_with(1, values)
            node.attributes.pop("transB", None)
        return _bytes_before(values)

    def _look_up(self, matrix: Matrix, blocks: Blocks) -> int:
        grid, name = blocks.grid, matrix.weight
        halves = grid.bits == 4
        packed = pack_halves(blocks.integers) if halves else table(blocks)
        stored = [
            self.writer.initializer(f"{name}_packed", packed),
            self.scales(matrix, blocks.scales.numpy()),
            self.writer.initializer(f"{name}_zero_point", blocks.zero_points.numpy()),
        ]
        for use in matrix.lookups:
            node = self.node(use.output)
            taken = [self._gather(node, value) for value in stored]
            if halves:
                taken[0] = self._unpacked(node, taken[0])
            attributes = {"axis": -1, "block_size": grid.size}
            self.replace(node, "DequantizeLinear", taken, attributes)
        return sum(v.const_value.nbytes for v in stored if v.const_value is not None)

    def _gather(self, node: ir.Node, value: ir.Value) -> ir.Value:
        return self.before(node, "Gather", [value, node.inputs[1]], value.dtype)

    def _unpacked(self, node: ir.Node, packed: ir.Value) -> ir.Value:
        bits = [
            self.writer.initializer(f"{node.outputs[0].name}_{what}", np.array(number, np.uint8))
            for what, number in (("mask", 15), ("shift", 4))
        ]
        low = self.before(node, "BitwiseAnd", [packed, bits[0]], ir.DataType.UINT8)
        right = {"direction": "RIGHT"}
        high = self.before(node, "BitShift", [packed, bits[1]], ir.DataType.UINT8, right)
        return self.before(node, "Concat", [low, high], ir.DataType.UINT8, {"axis": -1})


def nodes_for(
    layout: Literal["nbits", "qdq"], model: ir.Model, keep: Keep = lambda tensor: tensor
) -> WeightNodes:
    """What puts weights into a graph in a layout.

    Args:
        layout: See :class:`~edgecompress.constraints.WeightOnlyFormat`.
        model: Changed in place.
        keep: Where new weights are kept. Default: in memory.
    """
    return (NbitsNodes if layout == "nbits" else QdqNodes)(model, keep)


def _is_vector(value: ir.Value, length: int) -> bool:
    tensor = value.const_value
    return tensor is not None and list(tensor.shape.numpy()) == [length]


def _bytes_before(values: ir.Value) -> int:
    """Bytes of the constants that the producer of a value reads."""
    node = values.producer()
    tensors = [] if node is None else [v.const_value for v in node.inputs if v is not None]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
