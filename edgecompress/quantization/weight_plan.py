"""Which weights become integers while activations stay float, and why others do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

from edgecompress.constraints import WeightOnlyFormat
from edgecompress.graph_pass import Skip
from edgecompress.model import Model
from edgecompress.numerics.blockwise import BlockGrid
from edgecompress.qdq_plan import label
from edgecompress.quantization.weight_candidates import (
    LOOKUP,
    PRODUCTS,
    in_bodies,
    is_candidate,
    weight_of,
    why_not,
)

__all__ = [
    "HalfTable",
    "Matrix",
    "Use",
    "WeightMethod",
    "WeightPlan",
    "Wanted",
    "plan_weights",
    "stored_twice",
]

WeightMethod = Literal["gptq", "mse", "minmax"]

_KEEPS = "left out by the recipe"
_HALF_BITS = 16


@dataclass(frozen=True)
class Wanted:
    """What the recipe asks for at one node.

    Attributes:
        bits: Of weights that are multiplied by.
        block_size: Weights that share a scale.
        symmetric: Whether zero points are the middle; None: where numbers have 8 bits.
        method: How numbers and scales are found.
        embedding_bits: Of tables that are looked up: 16 for float16, False to leave them; None: as
            the layer that shares the table where both can be one, else 8.
        residual_rank: Of the factors that make up for rounding, where the node multiplies.
    """

    bits: int = 4
    block_size: int = 32
    symmetric: bool | None = None
    method: WeightMethod = "gptq"
    embedding_bits: int | Literal[False] | None = None
    residual_rank: int = 0


@dataclass(frozen=True)
class Use:
    """A node that reads a weight.

    Attributes:
        node: Its name, for people.
        op: Operator.
        output: Name of its output, which identifies it.
        input: Name of the activation, or of the indices.
        residual_rank: Of the factors that make up for rounding; 0 for none.
    """

    node: str
    op: str
    output: str
    input: str
    residual_rank: int = 0


@dataclass(frozen=True)
class Matrix:
    """A weight in one reading and one grid, stored once.

    Attributes:
        weight: Name of the float initializer.
        transposed: It is stored as [inputs, outputs]; the blocks lie along the inputs.
        rows: Outputs, or entries of the table.
        columns: Inputs, or the width of an entry.
        grid: What it becomes.
        method: How, as the recipe asks.
        products: Layers that multiply by it.
        lookups: Nodes that look entries up in it.
    """

    weight: str
    transposed: bool
    rows: int
    columns: int
    grid: BlockGrid
    method: WeightMethod
    products: tuple[Use, ...] = ()
    lookups: tuple[Use, ...] = ()

    @property
    def stored_once(self) -> bool:
        """Whether layers and lookups, where there are both, can read the same bytes."""
        return self.columns % self.grid.size == 0

    @property
    def rounding(self) -> WeightMethod:
        """How numbers are found: what is looked up is wanted as it is, thus to the nearest."""
        return "mse" if self.lookups and self.method == "gptq" else self.method

    @property
    def residual_rank(self) -> int:
        """Of the factors that make up for rounding: the largest that one of the layers asks for."""
        return min(
            max((use.residual_rank for use in self.products), default=0), self.rows, self.columns
        )

    @property
    def needs_rows(self) -> bool:
        """Whether calibration rows decide about its numbers, or about the factors beside them."""
        return self.rounding == "gptq" or (self.method == "gptq" and self.residual_rank > 0)


@dataclass(frozen=True)
class HalfTable:
    """A table that becomes float16."""

    weight: str
    lookups: tuple[Use, ...]


@dataclass
class WeightPlan:
    """What will be done.

    Attributes:
        matrices: Weights that become integers, in graph order.
        halves: Tables that become float16.
        skipped: Candidates left as they are, with reasons.
    """

    matrices: list[Matrix] = field(default_factory=list)
    halves: list[HalfTable] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


def plan_weights(
    model: Model, wanted_for: Callable[[ir.Node], Wanted | None], form: WeightOnlyFormat
) -> WeightPlan:
    """Decide which weights become integers.

    Args:
        model: The float model, without functions of its own.
        wanted_for: What is asked for at a node; None where the recipe leaves it out.
        form: What the target takes.
    """
    plan = WeightPlan()
    matrices: dict[Matrix, Matrix] = {}
    # A table lies as MatMulNBits wants it, but not as a DequantizeLinear before a MatMul does.
    apart = matrices if form.layout == "nbits" else {}
    tables: list[tuple[ir.Node, ir.Value, Wanted]] = []
    for node in model.ir.graph:
        if not is_candidate(node):
            continue
        weight, transposed = weight_of(node)
        reason = why_not(node, weight)
        if reason == "":
            continue
        wanted = wanted_for(node)
        if reason is None and wanted is None:
            reason = _KEEPS
        if reason is not None or weight is None or wanted is None:
            plan.skipped.append(Skip(label(node), node.op_type, reason or _KEEPS))
        elif node.op_type == LOOKUP:
            tables.append((node, weight, wanted))
        else:
            matrix = _matrix(weight, transposed, wanted.bits, wanted, form)
            use = replace(_use(node, 0), residual_rank=wanted.residual_rank)
            _add(matrices, matrix, products=use)
    for node, weight, wanted in tables:
        _plan_table(plan, apart, node, weight, wanted, form)
    plan.matrices = [*matrices.values(), *(apart.values() if apart is not matrices else ())]
    plan.skipped.extend(in_bodies(model.ir.graph))
    return plan


def _use(node: ir.Node, position: int) -> Use:
    read = node.inputs[position]
    name = "" if read is None else read.name or ""
    return Use(label(node), node.op_type, node.outputs[0].name or "", name)


def _matrix(
    weight: ir.Value, transposed: bool, bits: int, wanted: Wanted, form: WeightOnlyFormat
) -> Matrix:
    assert weight.const_value is not None  # :func:`why_not` has seen to it
    first, second = (int(n) for n in weight.const_value.shape.numpy())
    rows, columns = (second, first) if transposed else (first, second)
    enough = [size for size in form.block_sizes if size >= columns]
    grid = BlockGrid(
        bits=bits,
        size=min([wanted.block_size, *enough]),  # a longer block than the row would be filled up
        symmetric=bits == 8 if wanted.symmetric is None else wanted.symmetric,
        half=weight.const_value.dtype == ir.DataType.FLOAT16,
    )
    return Matrix(weight.name or "", transposed, rows, columns, grid, wanted.method)


def _add(
    matrices: dict[Matrix, Matrix],
    matrix: Matrix,
    products: Use | None = None,
    lookups: Use | None = None,
) -> None:
    """Add a use to a matrix, which is new or was found at an earlier node."""
    known = matrices.get(matrix, matrix)
    matrices[matrix] = replace(
        known,
        products=(*known.products, *([products] if products else [])),
        lookups=(*known.lookups, *([lookups] if lookups else [])),
    )


def _plan_table(
    plan: WeightPlan,
    matrices: dict[Matrix, Matrix],
    node: ir.Node,
    weight: ir.Value,
    wanted: Wanted,
    form: WeightOnlyFormat,
) -> None:
    shared = _shared(matrices, weight, form)
    bits = wanted.embedding_bits
    if bits is None and shared is not None:
        bits = shared.grid.bits
    if bits is None:
        bits = next(iter(sorted(form.embedding_bits, reverse=True)), False)
    use = _use(node, 1)
    if form.layout == "qdq" and bits in (4, 8) and _feeds_a_layer(node):
        reason = "a layer reads it directly, which runtimes would not fuse, or fuse wrongly"
        plan.skipped.append(Skip(use.node, use.op, reason))
        return
    if bits is False:
        reason = "embedding_bits is off" if form.embedding_bits else "the target takes float tables"
        plan.skipped.append(Skip(use.node, use.op, reason))
        return
    if bits == _HALF_BITS:
        _add_half(plan, weight, use)
        return
    if shared is not None and shared.grid.bits == bits:
        _add(matrices, shared, lookups=use)
        return
    _add(matrices, _matrix(weight, False, bits, wanted, form), lookups=use)


def _shared(
    matrices: dict[Matrix, Matrix], weight: ir.Value, form: WeightOnlyFormat
) -> Matrix | None:
    """The key of a layer's matrix whose bytes can be looked up in, too."""
    for key in matrices:
        if key.weight == weight.name and not key.transposed:
            return key if key.grid.bits in form.embedding_bits else None
    return None


def _feeds_a_layer(node: ir.Node) -> bool:
    """Whether a DequantizeLinear behind a lookup would stand before a MatMul, as one does already.

    onnxruntime 1.31 takes such a pair for MatMulIntegerToFloat, which then refuses its scales.
    """
    return any(use.node.op_type in PRODUCTS for use in node.outputs[0].uses())


def _add_half(plan: WeightPlan, weight: ir.Value, use: Use) -> None:
    if weight.const_value is not None and weight.const_value.dtype == ir.DataType.FLOAT16:
        plan.skipped.append(Skip(use.node, use.op, "its table is float16 already"))
        return
    for at, table in enumerate(plan.halves):
        if table.weight == weight.name:
            plan.halves[at] = replace(table, lookups=(*table.lookups, use))
            return
    plan.halves.append(HalfTable(weight.name or "", (use,)))


def stored_twice(plan: WeightPlan, model: Model) -> dict[str, str]:
    """Weights that the new model holds in more than one form, and what that costs.

    Args:
        plan: What was done.
        model: The new model.
    """
    forms: dict[str, list[str]] = {}
    for matrix in plan.matrices:
        kind, both = f"{matrix.grid.bits}-bit", matrix.products and matrix.lookups
        twice = both and not matrix.stored_once
        forms.setdefault(matrix.weight, []).extend([kind, kind] if twice else [kind])
    for half in plan.halves:
        forms.setdefault(half.weight, []).append("float16")
    for name, value in model.ir.graph.initializers.items():
        if name in forms and value.const_value is not None:
            forms[name].append(f"float ({value.const_value.nbytes / 1e6:.1f} MB)")
    return {
        f"{name} is stored": f"{len(kinds)} times, as {', '.join(kinds)}, since its readers differ"
        for name, kinds in forms.items()
        if len(kinds) > 1
    }
