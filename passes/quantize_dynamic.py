"""Dynamic int8: integer weights, activations quantized while the model runs; no data needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Context, Pass
from edgecompress.model import Model
from edgecompress.quantization.dynamic import quantize_dynamic
from edgecompress.quantization.dynamic_plan import plan_dynamic
from edgecompress.quantized_form import quantized_form

__all__ = ["QuantizeDynamic"]


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Dynamic int8 of matrix products and LSTM: for transformers and recurrent networks.

    ::

        x -> MatMul(w) -> Add(b) -> y
        x -> DynamicQuantizeLinear -> MatMulInteger(w8) -> Cast -> Mul(scales) -> Add(b) -> y

    One DynamicQuantizeLinear serves all layers that read ``x``. Convolutions stay in float, since
    runtimes have no fast kernels for them; embeddings are left to ``quantize_weights``.

    Attributes:
        weight_method: How weight scales are chosen: ``mse`` or ``minmax``.
        per_channel: A weight scale for each output channel.
    """

    name: ClassVar[str] = "quantize_dynamic"
    compresses: ClassVar[frozenset[str]] = frozenset({"Gemm", "MatMul", "LSTM"})

    weight_method: Literal["mse", "minmax"] = "mse"
    per_channel: bool = True

    def run(self, model: Model, context: Context) -> Applied:
        """Quantize every matrix product with a constant weight, and every large LSTM.

        Raises:
            PassError: The target has no kernels for it, the opset is too old, or the model is
                quantized already.
        """
        if not context.constraints.dynamic_int8:
            raise PassError(
                "the target has no integer kernels for activations quantized at run time",
                where="pass 'quantize_dynamic'",
                cure="`edgecompress targets` shows which targets have; leave the pass out",
            )
        if model.opset < 11:
            raise PassError(
                f"needs opset 11 or newer for DynamicQuantizeLinear, the model has {model.opset}",
                where="pass 'quantize_dynamic'",
                cure="put the pass 'cleanup' in front: it converts old opsets",
            )
        edited = model.clone(self.name)
        plan = plan_dynamic(edited, self.for_node)
        if not plan.layers:
            _refuse_quantized(model)
            return Applied(model=model, skipped=tuple(plan.skipped))
        made = quantize_dynamic(edited, plan, context.constraints.int8)
        return Applied(
            model=edited,
            changed=tuple(made.changed),
            skipped=tuple(plan.skipped),
            claimed=tuple(made.claimed),
            notes={
                "format": "uint8 activations at run time, int8 weights"
                + (" per channel" if self.per_channel else " per tensor"),
                "layers": len(plan.layers),
            },
        )


def _refuse_quantized(model: Model) -> None:
    """Say so where there is nothing to do since it was done before."""
    form = quantized_form(model)
    if form is not None and form.kinds:
        raise PassError(
            f"the model is quantized already: {form}",
            where="pass 'quantize_dynamic'",
            cure="start from the float model, or leave the pass out",
        )
