"""Layers in two or three thinner ones: low-rank factorization without retraining."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field

from edgecompress.factorization.engine import compare_objectives, factorize_layers
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.notes import factorization_notes
from edgecompress.factorization.parts import Layer, Objective
from edgecompress.factorization.ranks import RankPlan, RankSettings, choose_ranks
from edgecompress.factorization.refinement import RefineSettings
from edgecompress.factorization.result import Factorized, FactorizeSettings
from edgecompress.graph_pass import Applied, Context, Needs, Pass, Skip
from edgecompress.model import Model

__all__ = ["Factorize"]


class _NeedsByOptions:
    """Plain SVD of the weights, uniform, is the one way that looks at no data."""

    def __get__(self, made: Factorize | None, cls: type) -> Needs:
        if made is None or made.refine or made.ranks != "uniform":
            return "data"
        return "optional data" if made.objective == "input_agnostic" else "data"


@dataclass(frozen=True, kw_only=True)
class Factorize(Pass):
    """MatMul, Gemm and Conv as products of thinner ones, fitted to what the layers see.

    ::

        x -> MatMul(W) -> y     ->  x -> MatMul(R) -> MatMul(L) -> y
        x -> Conv(3x3) -> y     ->  x -> Conv(3x3, thin) -> Conv(1x1) -> y    or 3x1, 1x3
                                                             or 1x1, 3x3 (thin), 1x1

    Factors come in closed form from second moments of activations (AA-SVD, Sinha and Fleuret 2026,
    arXiv 2604.02119); then each block of the model is refined against the original block's output.
    A layer whose rank would save neither bytes nor multiply-accumulates stays as it is, and says
    so.

    Attributes:
        keep: Share of the layers' parameters, multiply-accumulates or time that is kept.
        budget: What ``keep`` counts: ``parameters``, ``macs``, or ``latency``, which is measured
            layer by layer on the target.
        objective: What the factors keep. W: the weight, W': the factors, X: the layer's input in
            the original model, X': behind what was factorized before it. ``input_agnostic``:
            |W - W'|; ``input_aware``: |WX - W'X|; ``shift_aware``: |WX' - W'X'|; ``anchored``:
            |WX - W'X'|; ``mixed``: between the last two, by the energy that the rank retains.
        ranks: Where the ranks go: ``uniform``, the same share for each layer; ``spectrum``, by what
            each rank is worth to its layer and how much the block matters; ``loss``, by what it is
            worth at the model's outputs (one backward pass); ``zero_sum``, so that the predicted
            changes of the loss cancel.
        floor: Share of the uniform rank that no layer goes below.
        rank: Of a layer, for single nodes: ``nodes = {"layer*" = {rank = 64}}``.
        refine: Train each block, once its layers are factorized, against the original block's
            output.
        refine_steps: Steps of AdamW for each block.
        learning_rate: Peak of its schedule, as a share of the root mean square of each tensor.
        rows: Calibration rows, about; one batch in eight only judges.
        damping: Share of the mean input power with which the weights themselves count, too.
        never_slower: Leave a layer as it is where its factors take longer on the target, measured
            where the target is at hand.
        compare: Other objectives whose errors, without refinement, the report is to show, too.
    """

    name: ClassVar[str] = "factorize"
    needs: ClassVar[Needs] = cast(Any, _NeedsByOptions())
    compresses: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "Conv"})

    keep: Annotated[float, Field(gt=0, lt=1)] = 0.6
    budget: Literal["parameters", "macs", "latency"] = "parameters"
    objective: Objective = "anchored"
    ranks: Literal["uniform", "spectrum", "loss", "zero_sum"] = "loss"
    floor: Annotated[float, Field(ge=0, le=1)] = 0.5
    rank: Annotated[int, Field(ge=1)] | None = None
    refine: bool = True
    refine_steps: Annotated[int, Field(ge=1)] = 200
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    rows: Annotated[int, Field(ge=1)] = 256
    damping: Annotated[float, Field(ge=0, lt=1)] = 0.05
    never_slower: bool = True
    compare: tuple[Objective, ...] = ()

    def run(self, model: Model, context: Context) -> Applied:
        """Factorize every layer that gains by it.

        Raises:
            PassError: No layer can be factorized, activations are not finite, or all calibration
                rows are padding.
        """
        model = model.inlined()
        layers, skipped = find_layers(model, lambda node: self.for_node(node) is not None)
        plan = choose_ranks(model, layers, self._rank_settings(model, layers), context)
        skipped += [_skip(layer, plan.dense) for layer in layers if layer.output in plan.dense]
        chosen = [layer for layer in layers if layer.output in plan.ranks]
        if not chosen:
            return Applied(model=model, skipped=tuple(skipped))
        settings = self._settings(context)
        done = factorize_layers(
            model, model.clone(self.name), chosen, plan.ranks, settings, context
        )
        others = compare_objectives(model, chosen, plan.ranks, settings, self.compare, context)
        return self._applied(done, plan, layers, skipped, others)

    def _rank_settings(self, model: Model, layers: list[Layer]) -> RankSettings:
        return RankSettings(
            keep=self.keep,
            budget=self.budget,
            method=self.ranks,
            floor=self.floor,
            explicit=self._explicit(model, layers),
            never_slower=self.never_slower,
            rows=self.rows,
        )

    def _explicit(self, model: Model, layers: list[Layer]) -> dict[str, int]:
        """Ranks that options of single nodes or operators name, or their own share to keep."""
        nodes = {value.name: node for node in model.ir.graph for value in node.outputs}
        found = {}
        for layer in layers:
            own = self.for_node(nodes[layer.output])
            if own is not None and own.rank is not None:
                found[layer.output] = own.rank
            elif own is not None and own.keep != self.keep:
                share = own.keep * layer.rows * layer.columns / (layer.rows + layer.columns)
                found[layer.output] = int(share)
        return found

    def _settings(self, context: Context) -> FactorizeSettings:
        refinement = RefineSettings(
            steps=self.refine_steps,
            learning_rate=self.learning_rate,
            seed=context.seed,
            device=context.device,
        )
        return FactorizeSettings(
            objective=self.objective,
            damping=self.damping,
            rows=self.rows,
            count="parameters" if self.budget == "parameters" else "macs",
            refinement=refinement if self.refine else None,
        )

    def _applied(
        self,
        done: Factorized,
        plan: RankPlan,
        layers: list[Layer],
        skipped: list[Skip],
        others: Mapping[str, Mapping[str, float]],
    ) -> Applied:
        changed = {change.node for change in done.changed}
        notes = {
            "objective": self.objective,
            "keep": self.keep,
            "budget": self.budget,
            "ranks": self.ranks,
            **factorization_notes(done, layers, plan.seconds, others),
        }
        return Applied(
            model=done.model,
            changed=tuple(done.changed),
            skipped=(*(s for s in skipped if s.node not in changed), *done.skipped),
            notes={"factorization": notes},
        )


def _skip(layer: Layer, reasons: Mapping[str, str]) -> Skip:
    return Skip(layer.node, layer.op, reasons[layer.output])
