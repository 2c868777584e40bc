"""Tables whose rows are integers in blocks, looked up and scaled by operators that TFLite has.

::

    i -> GatherBlockQuantized(T, scales, zero points) -> y

becomes

    i -> Gather(T)      -> Cast -> Reshape -> Sub -> Mul -> Reshape -> y
    i -> Gather(scales) -> Reshape -----------------^
    i -> Gather(zero points) -> Cast -> Reshape ---^
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.litert_writer.ranges import array_of

__all__ = ["split_block_gathers"]

_FLOAT = ir.DataType.FLOAT


def split_block_gathers(model: ir.Model) -> None:
    """Replace them, in place, where they look up rows of whole blocks; others stay."""
    for node in [n for n in model.graph if n.op_type == "GatherBlockQuantized"]:
        table, scales = array_of(node.inputs[0]), array_of(node.inputs[2])
        if table is None or scales is None or scales.dtype != np.float32 or table.ndim != 2:
            continue
        zeros = array_of(node.inputs[3]) if len(node.inputs) > 3 else None
        bits = node.attributes.get_int("bits", 4)
        whole = _unpacked(table, bits)
        if whole.shape[1] % scales.shape[1] or node.attributes.get_int("gather_axis", 0):
            continue
        # Unsigned numbers without a zero point stand around the middle.
        middle = 1 << (bits - 1) if table.dtype == np.uint8 else 0
        offsets = np.full(scales.shape, middle) if zeros is None else _unpacked(zeros, bits)
        shift = 128 if table.dtype == np.uint8 and bits == 8 else 0
        _Split(model, node).build(
            (whole - shift).astype(np.int8),
            scales,
            (offsets[:, : scales.shape[1]] - shift).astype(np.float32),
        )


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Small integers, ``8 // bits`` of them in a byte, the first one lowest."""
    if bits == 8 or packed.dtype not in (np.uint8, np.int8):
        return packed.astype(np.int64)
    parts = [(packed.astype(np.int64) >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(packed.shape[0], -1)


class _Split:
    """The nodes that stand for one look-up."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.graph = model.graph
        self.node = node
        self.name = node.outputs[0].name or "lookup"

    def build(self, table: np.ndarray, scales: np.ndarray, offsets: np.ndarray) -> None:
        """Write them, and remove the look-up."""
        blocks = scales.shape[1]
        rows = self.node.inputs[1]
        rank = 0 if rows is None or rows.shape is None else len(rows.shape)
        wide = [0] * rank + [blocks, table.shape[1] // blocks]
        # A 0 in the shape of a Reshape keeps the dimension of the input.
        values = self.reshaped(self.cast(self.looked_up("table", table, rows)), wide)
        if offsets.any():
            constant = offsets.flat[0] if (offsets == offsets.flat[0]).all() else None
            taken = (
                self.constant("offset", np.array(constant, np.float32))
                if constant is not None
                else self.reshaped(
                    self.looked_up("offsets", offsets, rows), [0] * rank + [blocks, 1]
                )
            )
            values = self.made("Sub", [values, taken])
        factors = self.reshaped(self.looked_up("scales", scales, rows), [0] * rank + [blocks, 1])
        product = self.made("Mul", [values, factors])
        result = self.reshaped(product, [0] * rank + [table.shape[1]])
        old = self.node.outputs[0]
        name, shape = old.name, old.shape
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        self.graph.remove(self.node, safe=True)
        result.name, result.shape = name, shape

    def looked_up(self, what: str, table: np.ndarray, rows: ir.Value | None) -> ir.Value:
        return self.made("Gather", [self.constant(what, table), rows])

    def cast(self, value: ir.Value) -> ir.Value:
        return self.made("Cast", [value], to=int(_FLOAT))

    def reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        return self.made("Reshape", [value, self.constant("shape", np.array(shape, np.int64))])

    def constant(self, what: str, array: np.ndarray) -> ir.Value:
        name = f"{self.name};{what}{len(self.graph.initializers)}"
        tensor = ir.tensor(array, name=name)
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def made(self, op: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        node = ir.node(op, inputs=inputs, attributes=attributes)
        node.outputs[0].name = f"{self.name};{op}{len(self.graph)}"
        self.graph.insert_before(self.node, node)
        return node.outputs[0]
