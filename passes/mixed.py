"""Mixed precision: each layer in the format that costs the model least, within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import onnx_ir as ir
from pydantic import Field

from edgecompress.errors import PassError
from edgecompress.gradients.output_loss import LossKind
from edgecompress.graph_pass import Applied, Context, Pass
from edgecompress.model import Model
from edgecompress.quantization.activation_ranges import ActivationMethod
from edgecompress.quantization.allocation import Allocation, Cost, Limits, allocate
from edgecompress.quantization.mixed import (
    Format,
    MixSettings,
    apply_mixture,
    as_format,
    available_formats,
    choices,
    in_all_formats,
    items_of,
    kept_float,
    overhead_of,
    suits,
    work_of,
)
from edgecompress.quantization.rounding import RoundingMethod
from edgecompress.quantization.sensitivity import Sensitivity, measure_sensitivity
from edgecompress.quantization.static import StaticSettings
from edgecompress.quantization.weight_plan import WeightMethod

__all__ = ["Mixed"]

_WHERE = "pass 'mixed'"
_TRIES = 4
_COST: Mapping[str, Cost] = MappingProxyType({"loss": "loss", "size": "bytes", "latency": "ms"})


@dataclass(frozen=True, kw_only=True)
class Mixed(Pass):
    """Each layer static int8, integer weights alone, or float: what an integer program says.

    ::

        x -> Conv -> Relu -> MatMul -> y
        x -> Q -> DQ -> Conv(DQ(int8)) -> Relu -> Q -> DQ -> MatMulNBits(4 bits) -> y

    The error of each layer in each format is measured on the float stream, and what it costs at
    the outputs is told by gradients, in one walk over the validation rows. The formats are chosen
    so that the sum of these losses is least within the budgets.

    Attributes:
        size_ratio: Size of the file, at most, against the float file.
        size_mb: Size of the file, at most, in 10^6 bytes.
        latency_ratio: Time, at most, against float; estimated from multiply-accumulates.
        keep_float: Share of the layers' multiply-accumulates that may stay in float. Joins, such
            as Add, follow the layers around them.
        max_loss: Sum of the expected losses, at most; in the unit that the notes name.
        minimise: What is to be least within these limits: ``loss``, ``size`` or ``latency``.
        formats: ``w8a8``, ``w8`` and ``w4`` (weights alone). Default: what the target takes, but
            ``w8`` only for tables where it takes ``w8a8``.
        loss: ``kl`` (of logits) or ``squared`` (error against the output's size). Default: by what
            the outputs are.
        loss_rows: Rows that sensitivity is measured on, about.
        method: How activation ranges are chosen, as in ``quantize``.
        rounding: How weights of ``w8a8`` are rounded, as in ``quantize``.
        weight_method: How integer weights alone are found, as in ``quantize_weights``.
        block_size: Weights that share a scale where they are alone.
        bias_correction: As in ``quantize``.
    """

    name: ClassVar[str] = "mixed"
    needs: ClassVar[Literal["nothing", "data"]] = "data"
    compresses: ClassVar[frozenset[str]] = frozenset({"Conv", "Gemm", "MatMul", "Gather"})

    size_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    size_mb: Annotated[float, Field(gt=0)] | None = None
    latency_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    keep_float: Annotated[float, Field(ge=0, le=1)] = 0.1
    max_loss: Annotated[float, Field(ge=0)] | None = None
    minimise: Literal["loss", "size", "latency"] = "loss"
    formats: tuple[Format, ...] | None = None
    loss: LossKind | None = None
    loss_rows: Annotated[int, Field(ge=1)] = 64
    method: ActivationMethod = "mse"
    rounding: RoundingMethod = "nearest"
    weight_method: WeightMethod = "gptq"
    block_size: Annotated[int, Field(ge=16)] = 32
    bias_correction: bool = True

    def run(self, model: Model, context: Context) -> Applied:
        """Measure, choose, and write the mixture.

        Raises:
            PassError: No choice keeps the limits, the target takes none of the formats, or the
                model is quantized already.
            MissingDependencyError: scipy is not installed.
        """
        model = model.inlined()
        formats = available_formats(model, context, self.formats)
        settings = self._settings()

        def allowed(node: ir.Node, format_: Format) -> bool:
            options = self.for_node(node)
            if options is None or options.formats is None:
                return options is not None and suits(node, format_, formats)
            return format_ in options.formats

        variants = in_all_formats(model, context, formats, allowed, settings)
        found = measure_sensitivity(model, variants, context, rows=self.loss_rows, loss=self.loss)
        if not found.nodes:
            skips = {s.node: s for applied in variants.values() for s in applied.skipped}
            return Applied(model=model, skipped=tuple(skips.values()))
        overhead = {name: overhead_of(model, applied) for name, applied in variants.items()}
        return self._mixture(model, context, found, overhead, settings)

    def _mixture(
        self,
        model: Model,
        context: Context,
        found: Sensitivity,
        overhead: Mapping[str, int],
        settings: MixSettings,
    ) -> Applied:
        """Choose and write; once more with less room where the file came out too large."""
        items = choices(found.nodes, overhead)
        whole = sum(node.bytes_float for node in found.nodes)
        size = self._size(model)
        room = None if size is None else size - (model.size_bytes - whole)
        for _ in range(_TRIES):
            chosen = allocate(
                items, self._limits(found, room), minimise=_COST[self.minimise], where=_WHERE
            )
            formats = _by_output(found, chosen)
            applied = apply_mixture(model, context, _lookup(formats), settings)
            over = 0 if size is None else applied.model.size_bytes - size
            if over <= 0:
                return self._applied(applied, found, chosen)
            room = None if room is None else room - over
        raise PassError(
            f"the file stays {over:,} bytes above {size:,} bytes",
            where=_WHERE,
            cure="allow more, or more formats",
        )

    def _settings(self) -> MixSettings:
        static = StaticSettings(
            method=self.method, rounding=self.rounding, bias_correction=self.bias_correction
        )
        return MixSettings(static=static, method=self.weight_method, block_size=self.block_size)

    def _size(self, model: Model) -> int | None:
        """The most bytes that the file may have."""
        asked = [
            None if self.size_ratio is None else int(self.size_ratio * model.size_bytes),
            None if self.size_mb is None else int(self.size_mb * 1e6),
        ]
        return min((size for size in asked if size is not None), default=None)

    def _limits(self, found: Sensitivity, room: int | None) -> Limits:
        """Limits on the candidates; what has no other format than float is none."""
        work = {node.output: work_of(node) for node in found.nodes}
        layers = sum(work[node.output] for node in found.nodes if node.weights)
        return Limits(
            loss=self.max_loss,
            bytes=room,
            ms=None if self.latency_ratio is None else self.latency_ratio * sum(work.values()),
            float_macs=self.keep_float * layers,
        )

    def _applied(self, applied: Applied, found: Sensitivity, chosen: Allocation) -> Applied:
        changes = {change.node for change in applied.changed}
        formats = _by_output(found, chosen)
        written = {
            node.output: formats.get(node.output, "float") if node.node in changes else "float"
            for node in found.nodes
        }
        kept = kept_float(found.nodes, applied.changed)
        names = {skip.node for skip in kept}
        others = [skip for skip in applied.skipped if skip.node not in names]
        return replace(
            applied,
            skipped=(*others, *kept),
            notes={
                "formats": dict(Counter(written.values())),
                "expected_loss": chosen.loss,
                "time": "estimated from multiply-accumulates",
                "sensitivity": found.as_note(written),
            },
        )


def _by_output(found: Sensitivity, chosen: Allocation) -> dict[str, Format]:
    """Format of each node that does not stay float, by the node's output."""
    return {
        node.output: format_
        for item, members in items_of(found.nodes).items()
        for node in members
        if (format_ := as_format(chosen.formats[item])) is not None
    }


def _lookup(formats: Mapping[str, Format]) -> Callable[[ir.Node], Format | None]:
    return lambda node: formats.get(node.outputs[0].name or "") if node.outputs else None
