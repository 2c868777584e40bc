"""What factors beside rounded weights cost: bytes, multiply-accumulates, and time on the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from edgecompress.constraints import WeightOnlyFormat
from edgecompress.graph_pass import Timer
from edgecompress.model import Model
from edgecompress.numerics.blockwise import BlockGrid, Blocks
from edgecompress.quantization.residual import Residual, put_residual
from edgecompress.quantization.weight_layouts import nodes_for
from edgecompress.quantization.weight_plan import Matrix, Use

__all__ = ["Corrected", "residual_notes", "time_corrections"]

_LAYER = {
    False: """<ir_version: 10, opset_import: ["" : 21]>
        layer (float[1, {0}, {1}] x, float[{1}, {2}] w) => (float[1, {0}, {2}] y)
        {{ y = MatMul(x, w) }}""",
    # Timers feed float32.
    True: """<ir_version: 10, opset_import: ["" : 21]>
        layer (float[1, {0}, {1}] given, float16[{1}, {2}] w) => (float16[1, {0}, {2}] y)
        {{ x = Cast<to = 10>(given)
           y = MatMul(x, w) }}""",
}


@dataclass(frozen=True)
class Corrected:
    """A layer with factors beside it.

    Attributes:
        use: The layer.
        matrix: Its weight.
        rank: Of the factors.
        before: Squared error of its output over the power of that, on what it sees, without them.
        after: With them.
        bytes: That the factors take; 0 where another layer shares them.
        tokens: Places of one row, about; 1 where no rows were looked at.
        half: The factors are float16.
        seconds: Of the layer for so many tokens on the target, without and with them; None where
            that was not measured.
    """

    use: Use
    matrix: Matrix
    rank: int
    before: float
    after: float
    bytes: int
    tokens: int
    half: bool
    seconds: tuple[float, float] | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one token."""
        return self.rank * (self.matrix.rows + self.matrix.columns)

    def as_json(self) -> dict[str, Any]:
        """Plain data for the report."""
        told = {
            "layer": self.use.node,
            "rank": self.rank,
            "bytes": self.bytes,
            "macs": self.macs,
            "error": [self.before, self.after],
        }
        if self.seconds is not None:
            told["seconds"] = list(self.seconds)
        return told


def residual_notes(corrected: Sequence[Corrected]) -> dict[str, Any]:
    """Notes of a pass on all its corrections; empty where there are none.

    ``macs`` are those of one token, ``seconds`` those of all corrected layers without and with
    their factors.
    """
    if not corrected:
        return {}
    pairs = [each.seconds for each in corrected if each.seconds is not None]
    seconds = [sum(pair[side] for pair in pairs) for side in (0, 1)]
    return {
        "residual": {
            "bytes": sum(each.bytes for each in corrected),
            "macs": sum(each.macs for each in corrected),
            "tokens": max(each.tokens for each in corrected),
            "seconds": seconds if len(pairs) == len(corrected) else "not measured",
            "layers": [each.as_json() for each in corrected],
        }
    }


def time_corrections(
    corrected: Sequence[Corrected], form: WeightOnlyFormat, timer: Timer
) -> list[Corrected]:
    """Measure layers with and without their factors, those of the same form once.

    Args:
        corrected: Layers.
        form: Layout of the target.
        timer: Of the target.
    """
    forms = {_form(each): each for each in corrected}
    models = [_one_layer(each, form, rank) for each in forms.values() for rank in (0, each.rank)]
    seconds = list(timer(models))
    found = dict(zip(forms, zip(seconds[::2], seconds[1::2], strict=True), strict=True))
    return [replace(each, seconds=found[_form(each)]) for each in corrected]


def _form(each: Corrected) -> tuple[BlockGrid, int, int, int, int]:
    matrix = each.matrix
    return matrix.grid, matrix.rows, matrix.columns, each.rank, each.tokens


def _one_layer(each: Corrected, form: WeightOnlyFormat, rank: int) -> bytes:
    """A model of a layer alone; its numbers do not matter for its time."""
    rows, columns, grid = each.matrix.rows, each.matrix.columns, each.matrix.grid
    model = ir.from_onnx_text(_LAYER[grid.half].format(each.tokens, columns, rows))
    w = next(value for value in model.graph.inputs if value.name == "w")
    model.graph.inputs.remove(w)
    zeros = np.zeros((columns, rows), np.float16 if grid.half else np.float32)
    w.const_value = ir.tensor(zeros, name="w")
    model.graph.register_initializer(w)
    nodes = nodes_for(form.layout, model)
    use = Use("y", "MatMul", "y", "x", rank)
    matrix = replace(each.matrix, weight="w", transposed=True, products=(use,), lookups=())
    nodes.put(matrix, _blocks(grid, rows, columns))
    if rank:
        stored = torch.float16 if each.half else torch.float32
        left, right = torch.ones(rows, rank, dtype=stored), torch.ones(rank, columns, dtype=stored)
        put_residual(nodes, matrix, Residual(left, right, 0.0, 0.0))
    return Model(model).to_bytes()


def _blocks(grid: BlockGrid, rows: int, columns: int) -> Blocks:
    count = grid.count(columns)
    middle = torch.full((rows, columns), grid.middle, dtype=torch.uint8)
    zeros = torch.full((rows, count), grid.middle, dtype=torch.uint8)
    return Blocks(grid, middle, torch.ones(rows, count), zeros)
