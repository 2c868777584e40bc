"""Equalization: channels are scaled between layers so that one int8 grid fits all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from edgecompress.constraints import Int8Format
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Change, Context, Pass, Skip
from edgecompress.model import Model
from edgecompress.qdq_plan import label
from edgecompress.quantization.cross_layer import equalize_chains
from edgecompress.quantization.equalization import Group, find_groups, fold
from edgecompress.quantization.linear_channels import LAYERS
from edgecompress.quantization.products import insert_products, remove_product, unclip
from edgecompress.quantization.smoothing import ALPHAS, Choice, search_alphas
from edgecompress.quantized_form import quantized_form

__all__ = ["Equalize"]

_WORTH_A_PRODUCT = 0.8
"""An explicit product costs time: it stays where the error falls below this share."""


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Scale channels between layers, for ``quantize`` behind it; the float function stays.

    ::

        LayerNormalization(gamma, beta) -> MatMul(W)
        LayerNormalization(gamma / s, beta / s) -> MatMul(s W)

    The factors are powers of two, so not a bit of the float function changes but where float32
    itself is denormal. They go into what lies in front (a layer, the factors of a normalization,
    any product with a constant for each channel), never through a residual Add.

    Attributes:
        method: ``smooth`` is SmoothQuant: outliers of activations go into the weights, as strongly
            as measured best. ``cross_layer`` evens out the weights of neighbouring layers, for
            targets with one scale for each weight. ``auto``: what suits the target.
        alpha: Strength of ``smooth``, 0 to 1; ``search`` tries eleven. Either is used only where
            it lowers the measured error of the layers' int8 outputs.
        allow_mul: Insert a Mul where there is nothing in front that could take the factors and the
            error falls by a fifth at least.
        relu6: ``relu`` turns Clip from 0 between layers into Relu first, since scales cannot pass
            a Clip; this does change the function. ``keep`` leaves them, and the layers behind.
        rows: Calibration rows that errors are measured on, about.
    """

    name: ClassVar[str] = "equalize"
    needs: ClassVar[Literal["nothing", "data"]] = "data"
    must_change: ClassVar[bool] = False

    method: Literal["auto", "smooth", "cross_layer"] = "auto"
    alpha: Annotated[float, Field(ge=0, le=1)] | Literal["search"] = "search"
    allow_mul: bool = False
    relu6: Literal["keep", "relu"] = "keep"
    rows: Annotated[int, Field(ge=1)] = 128

    def run(self, model: Model, context: Context) -> Applied:
        """Scale every group of layers that gains by it.

        Raises:
            PassError: The target has no integer kernels, or the model is quantized already.
            DataError: An activation is NaN or infinite.
        """
        int8 = context.constraints.int8
        if int8 is None:
            raise PassError(
                "the target has no int8 kernels, and equalization serves nothing else",
                where="pass 'equalize'",
                cure="`edgecompress targets` shows which targets take int8; leave the pass out",
            )
        _refuse_quantized(model)
        return _Run(self, model.clone(self.name), context, int8).applied(model)


class _Run:
    """One run of the pass: the clone, and what was done to it."""

    def __init__(self, step: Equalize, model: Model, context: Context, int8: Int8Format) -> None:
        self._step = step
        self._model = model
        self._graph = model.ir.graph
        self._context = context
        self._int8 = int8
        self._changed: list[tuple[ir.Node, str]] = []
        self._skipped: dict[ir.Node, str] = {}

    def applied(self, before: Model) -> Applied:
        """Do it, and tell."""
        step = self._step
        if step.relu6 == "relu":
            nodes = [node for node in self._graph if self._allowed(node)]
            self._changed += [(n, "Clip became Relu") for n in unclip(self._model, nodes)]
        smooth = step.method == "smooth" or (step.method == "auto" and self._int8.per_channel)
        notes = self._smooth() if smooth else self._cross_layer()
        self._skip_nested()
        order = {node: place for place, node in enumerate(self._graph)}
        changed = sorted(self._changed, key=lambda item: order[item[0]])
        skipped = sorted(self._skipped.items(), key=lambda item: order.get(item[0], len(order)))
        return Applied(
            model=self._model if changed else before,
            changed=tuple(Change(label(node), node.op_type, what) for node, what in changed),
            skipped=tuple(Skip(label(node), node.op_type, why) for node, why in skipped),
            notes=notes if changed else {},
        )

    def _smooth(self) -> dict[str, Any]:
        groups = find_groups(self._model, self._allowed)
        products: list[ir.Node] = []
        if self._step.allow_mul:
            layers = [node for node in groups.reasons if self._allowed(node)]
            products = insert_products(self._graph, layers)
            groups = find_groups(self._model, self._allowed)
        wanted = [
            group for group in groups.found if self._int8.per_channel or not group.source.is_layer
        ]
        resources = self._context.resources
        assert self._context.calibration is not None  # run_pass has seen to it
        choices = search_alphas(
            self._model,
            wanted,
            self._context.calibration,
            self._int8,
            alphas=ALPHAS if self._step.alpha == "search" else (self._step.alpha,),
            rows=self._step.rows,
            device=self._context.device,
            memory=resources.memory,
            scratch=resources.scratch,
            progress=self._context.progress,
        )
        self._skipped.update(groups.reasons)
        for group in set(groups.found) - set(wanted):
            self._skip(group, "it would cost the layer in front, whose weight has one scale")
        done = 0
        for choice in choices:
            done += self._take(choice, choice.group.source.node in products)
        return {"groups": len(choices), "equalized": done}

    def _take(self, choice: Choice, is_product: bool) -> bool:
        worth = _WORTH_A_PRODUCT if is_product else 1.0
        group = choice.group
        if choice.alpha is None or choice.after > worth * choice.before:
            if is_product:
                remove_product(self._graph, group.source.node)
            self._skip(group, "scales do not lower the error of its int8 output enough")
            return False
        fold(self._graph, group, choice.scales.numpy())
        what = f"equalized, alpha {choice.alpha:g}"
        if is_product:
            self._changed.append((group.source.node, "inserted"))
        self._changed += [(layer.node, what) for layer in group.layers]
        return True

    def _cross_layer(self) -> dict[str, Any]:
        groups = find_groups(self._model, self._allowed)
        resources = self._context.resources
        assert self._context.calibration is not None  # run_pass has seen to it
        chains = equalize_chains(
            self._model,
            [group for group in groups.found if group.source.is_layer],
            self._context.calibration,
            self._int8,
            rows=self._step.rows,
            device=self._context.device,
            memory=resources.memory,
            scratch=resources.scratch,
            progress=self._context.progress,
        )
        self._skipped.update(groups.reasons)
        for group in groups.found:
            if not group.source.is_layer:
                self._skip(group, "no layer is in front of it")
        for chain in chains:
            better = chain.after < chain.before
            for group, scales in zip(chain.groups, chain.scales, strict=True):
                if not better:
                    self._skip(group, "scales do not lower the error of its int8 output enough")
                    continue
                fold(self._graph, group, scales.numpy())
                what = f"equalized with {label(group.source.node)!r}"
                self._changed += [(layer.node, what) for layer in group.layers]
        return {"chains": len(chains), "equalized": sum(c.after < c.before for c in chains)}

    def _allowed(self, node: ir.Node) -> bool:
        return self._step.for_node(node) is not None

    def _skip(self, group: Group, reason: str) -> None:
        self._skipped.update(dict.fromkeys((layer.node for layer in group.layers), reason))

    def _skip_nested(self) -> None:
        top = set(self._graph)
        nested: Iterable[ir.Node] = (n for n in self._graph.all_nodes() if n not in top)
        for node in nested:
            if node.op_type in LAYERS:
                self._skipped[node] = "it lies inside a subgraph (If, Loop or Scan)"


def _refuse_quantized(model: Model) -> None:
    form = quantized_form(model)
    if form is not None:
        raise PassError(
            f"the model is quantized already: {form}",
            where="pass 'equalize'",
            cure="start from the float model, or leave the pass out",
        )
