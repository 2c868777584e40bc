"""Embedding tables beside static int8 layers: looked up, not multiplied by, and large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import onnx_ir as ir

from edgecompress.errors import PassError
from edgecompress.graph_pass import Change, Context
from edgecompress.model import Model
from edgecompress.quantization.weight_only import WeightRun, quantize_weights
from edgecompress.quantization.weight_plan import Wanted, plan_weights

__all__ = ["EmbeddingBits", "TableOptions", "quantize_tables"]

EmbeddingBits = Literal[4, 8, 16] | Literal[False] | None


_HALF_BITS = 16


class TableOptions(Protocol):
    """What becomes of a table."""

    @property
    def embedding_bits(self) -> EmbeddingBits:
        """Its width; None for 8 where the target takes that."""


def quantize_tables(
    model: Model,
    edited: Model,
    context: Context,
    options_for: Callable[[ir.Node], TableOptions | None],
) -> list[Change]:
    """Store the tables that Gather looks up in as integers, in place.

    Args:
        model: The float model.
        edited: The same with its layers quantized.
        context: Its constraints name what the target takes.
        options_for: Options of a node, or None where it is left out.

    Raises:
        PassError: The target does not take tables of the width that the options name.
    """
    form = context.constraints.weight_only
    if form is None:
        return []
    largest = max(form.block_sizes)

    def wanted(node: ir.Node) -> Wanted | None:
        options = options_for(node) if node.op_type == "Gather" else None
        if options is None or options.embedding_bits is False:
            return None
        bits = options.embedding_bits
        if bits is not None and bits != _HALF_BITS and bits not in form.embedding_bits:
            listed = ", ".join(map(str, form.embedding_bits)) or "none"
            raise PassError(
                f"the target takes embedding_bits of {listed}, got {bits}",
                where="option 'embedding_bits'",
                cure="choose one of these, 16 or false; `edgecompress targets` shows formats",
            )
        table = node.inputs[0]
        width = 0 if table is None or table.shape is None else table.shape[-1]
        fits = [size for size in form.block_sizes if isinstance(width, int) and width % size == 0]
        return Wanted(
            block_size=max(fits, default=largest),
            method="mse",
            embedding_bits=options.embedding_bits,
        )

    plan = plan_weights(edited, wanted, form)
    if not plan.matrices and not plan.halves:
        return []
    run = WeightRun(scratch=context.resources.scratch, progress=context.progress)
    return quantize_weights(model, edited, plan, form, run).changed
