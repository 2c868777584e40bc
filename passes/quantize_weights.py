"""Integer weights of 4 or 8 bits beside float activations, and compressed embedding tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, cast

import onnx_ir as ir
from pydantic import Field

from edgecompress.constraints import WeightOnlyFormat
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Context, Pass
from edgecompress.model import Model
from edgecompress.qdq_plan import label
from edgecompress.quantization.residual_cost import residual_notes
from edgecompress.quantization.weight_only import WeightRun, WeightsDone, quantize_weights
from edgecompress.quantization.weight_plan import (
    HalfTable,
    Wanted,
    WeightMethod,
    WeightPlan,
    plan_weights,
    stored_twice,
)
from edgecompress.quantized_form import quantized_form

__all__ = ["QuantizeWeights"]

_BLOCKS_SINCE = 21


class _NeedsByMethod:
    """Only GPTQ looks at data; what a class needs is what its default method needs."""

    def __get__(self, made: QuantizeWeights | None, cls: type) -> Literal["nothing", "data"]:
        return "data" if made is None or "gptq" in made.methods() else "nothing"


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Weights of MatMul, Gemm and embeddings as integers of 4 or 8 bits, in blocks.

    ::

        x -> MatMul(W) -> Add(b) -> y    ->  x -> MatMulNBits(W4, scales, zero points, b) -> y
        i -> Gather(table) -> y          ->  i -> GatherBlockQuantized(table4, scales) -> y

    The target says whether these are onnxruntime's own operators, or a DequantizeLinear in blocks
    of the standard (operator set 21), which runtimes fuse. Activations stay float, so no ranges are
    needed, and files become a quarter to an eighth. Models whose time goes into reading weights
    (language models, token by token) become faster, too.

    Attributes:
        bits: Of weights that are multiplied by.
        block_size: Weights that share a scale: fewer are more accurate, more are smaller and
            faster.
        method: ``gptq`` (each rounding error is made up for by the weights that are still free, on
            calibration rows), ``mse`` (least squared error of the weights, no data) or ``minmax``.
        symmetric: No zero points. Default: with 8 bits.
        embedding_bits: Of tables that are looked up: 4, 8, 16 (float16), or false to leave them as
            they are. Default: 8, or what the layer has that shares the table.
        residual_rank: Of two thin factors beside each layer that give back what rounding took from
            it (W = Q(W) + L R); 0 for none. With ``gptq`` they are the best on calibration rows,
            else the best for inputs that are all alike. They cost time at each run, so small ranks
            are for few sensitive layers: ``nodes`` names them.
        rows: Calibration rows that GPTQ looks at, about.
        damping: Share of the mean input power that is added to that of all inputs, for GPTQ and for
            the factors.
    """

    name: ClassVar[str] = "quantize_weights"
    needs: ClassVar[Literal["nothing", "data"]] = cast(Any, _NeedsByMethod())
    compresses: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Gather"})

    bits: Literal[4, 8] = 4
    block_size: Annotated[int, Field(ge=16)] = 32
    method: WeightMethod = "gptq"
    symmetric: bool | None = None
    embedding_bits: Literal[4, 8, 16] | Literal[False] | None = None
    residual_rank: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=1)] = 128
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01

    def run(self, model: Model, context: Context) -> Applied:
        """Quantize every constant weight that the target's kernels take.

        Raises:
            PassError: The target takes no integer weights, or not of these bits or blocks; the
                operator set is too old; or the model is quantized already.
        """
        form = self._form(context)
        model = model.inlined()
        if form.layout == "qdq" and model.opset < _BLOCKS_SINCE:
            raise PassError(
                f"needs operator set {_BLOCKS_SINCE} for scales in blocks, the model has "
                f"{model.opset}",
                where="pass 'quantize_weights'",
                cure=f"put the pass 'cleanup' with opset = {_BLOCKS_SINCE} in front",
            )
        plan = plan_weights(model, partial(self._wanted, form), form)
        if not plan.matrices and not plan.halves:
            _refuse_quantized(model)
            return Applied(model=model, skipped=tuple(plan.skipped))
        done = quantize_weights(model, model.clone(self.name), plan, form, self._resources(context))
        return _applied(model, plan, done, form)

    def methods(self) -> set[str]:
        """All methods that the options name."""
        scopes = (scope for level in (self.ops, self.nodes) for scope in level.values())
        named = {s["method"] for s in scopes if isinstance(s, Mapping) and "method" in s}
        return {self.method, *named}

    def _form(self, context: Context) -> WeightOnlyFormat:
        form = context.constraints.weight_only
        if form is None:
            raise PassError(
                "the target takes no integer weights beside float activations",
                where="pass 'quantize_weights'",
                cure="leave the pass out, or use 'quantize'; `edgecompress targets` shows formats",
            )
        return form

    def _wanted(self, form: WeightOnlyFormat, node: ir.Node) -> Wanted | None:
        chosen = self.for_node(node)
        if chosen is None:
            return None
        _check("bits", chosen.bits, form.bits)
        _check("block_size", chosen.block_size, form.block_sizes)
        if chosen.embedding_bits not in (None, False, 16):
            _check("embedding_bits", chosen.embedding_bits, form.embedding_bits)
        return Wanted(
            bits=chosen.bits,
            block_size=chosen.block_size,
            symmetric=chosen.symmetric,
            method=chosen.method,
            embedding_bits=chosen.embedding_bits,
            residual_rank=chosen.residual_rank,
        )

    def _resources(self, context: Context) -> WeightRun:
        return WeightRun(
            data=context.calibration,
            rows=self.rows,
            damping=self.damping,
            device=context.device,
            memory=context.resources.memory,
            scratch=context.resources.scratch,
            progress=context.progress,
            half=context.constraints.half is not None,
            timer=context.timer,
        )


def _check(option: str, asked: int | None, taken: Sequence[int]) -> None:
    if asked not in taken:
        listed = ", ".join(map(str, taken)) or "none"
        raise PassError(
            f"the target takes {option} of {listed}, got {asked}",
            where=f"pass 'quantize_weights', option {option!r}",
            cure="choose one of these; `edgecompress targets` shows formats",
        )


def _applied(model: Model, plan: WeightPlan, done: WeightsDone, form: WeightOnlyFormat) -> Applied:
    order = {label(node): place for place, node in enumerate(model.ir.graph)}
    done.changed.sort(key=lambda change: order.get(change.node, 0))
    return Applied(
        model=done.model,
        changed=tuple(done.changed),
        skipped=tuple(plan.skipped),
        claimed=tuple(done.products),
        notes={
            "layout": form.layout,
            "layers": len(done.products),
            "tables": sum(len(m.lookups) for m in plan.matrices) + sum(map(_lookups, plan.halves)),
            **stored_twice(plan, done.model),
            **residual_notes(done.corrected),
        },
    )


def _lookups(table: HalfTable) -> int:
    return len(table.lookups)


def _refuse_quantized(model: Model) -> None:
    """Say so where there is nothing to do since it was done before."""
    found = quantized_form(model)
    if found is not None and found.kinds:
        raise PassError(
            f"the model is quantized already: {found}",
            where="pass 'quantize_weights'",
            cure="start from the float model, or leave the pass out",
        )
