"""Static int8: which numbers go into a graph with Q/DQ pairs, and their writing.

:func:`quantize_static` is what passes call. Where pairs go is decided by ``qdq_plan``; here ranges
are measured and chosen, weights and biases become integers, and what rounding shifted is put right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir
import torch

from edgecompress.bias_correction import CorrectedLayer, output_shifts
from edgecompress.constraints import Int8Format
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Change, Context, Skip
from edgecompress.model import Model
from edgecompress.numerics.affine import Affine, IntegerRange, quantize
from edgecompress.qdq import QdqWriter
from edgecompress.qdq_plan import Placement, label, place
from edgecompress.qdq_rules import passing_range
from edgecompress.quantization.activation_ranges import (
    ActivationMethod,
    RangeOptions,
    choose_affines,
)
from edgecompress.quantization.float_guard import guard_float_layers
from edgecompress.quantization.rounding import RoundingMethod, round_weights
from edgecompress.quantization.static_tables import EmbeddingBits, TableOptions, quantize_tables
from edgecompress.quantization.static_weights import (
    QuantizedLayer,
    WeightOptions,
    by_weight,
    store_weights,
)
from edgecompress.quantized_form import quantized_form
from edgecompress.sharding import collect_sharded
from edgecompress.statistics import Statistics

__all__ = ["StaticOptions", "StaticSettings", "quantize_static"]


_WIDE_BITS, _WIDE_SINCE = 16, 21
_WIDEST = 1e6
"""No activation of a sound network spans so much; what hides in a mask does."""


class StaticOptions(RangeOptions, TableOptions, WeightOptions, Protocol):
    """What may differ from node to node; the pass ``quantize`` says what each means."""

    @property
    def rounding(self) -> RoundingMethod:
        """How weights are rounded."""

    @property
    def rounding_rows(self) -> int:
        """Calibration rows that rounding looks at, about."""

    @property
    def rounding_iterations(self) -> int | None:
        """Steps of methods that learn; None for their default."""

    @property
    def bias_rows(self) -> int:
        """Calibration rows that shifts are measured on, about."""


@dataclass(frozen=True)
class StaticSettings:
    """Plain options, for passes that have none of their own; see :class:`StaticOptions`."""

    method: ActivationMethod = "mse"
    percentile: float = 99.999
    weight_method: str = "mse"
    per_channel: bool | None = None
    rounding: RoundingMethod = "nearest"
    rounding_rows: int = 64
    rounding_iterations: int | None = None
    bias_correction: bool = True
    bias_rows: int = 64
    embedding_bits: EmbeddingBits = None


def quantize_static(
    model: Model,
    context: Context,
    options_for: Callable[[ir.Node], StaticOptions | None],
    *,
    activation_bits: Literal[8, 16] = 8,
    where: str = "pass 'quantize'",
) -> Applied:
    """Quantize every linear layer and join that the target runs on integers.

    Args:
        model: The float model.
        context: Its constraints name the formats; its calibration rows are needed.
        options_for: Options of a node, or None where it stays float.
        activation_bits: 16 for W8A16, on targets that have kernels for it.
        where: What to call the pass in errors.

    Raises:
        PassError: The target has no integer kernels, the opset is too old, or the model is
            quantized already.
    """
    int8 = _format(model, context, activation_bits, where)
    placement = _place(model, context, int8, options_for)
    if not placement.layers and not placement.joins:
        _refuse_quantized(model, where)
        return Applied(model=model, skipped=tuple(placement.skipped))
    statistics = _measure(model, placement, context)
    unbounded = _unbounded(model, placement, statistics)
    if unbounded:
        placement = _place(
            model, context, int8, lambda node: None if node in unbounded else options_for(node)
        )
        placement.skipped = [_explained(skip, unbounded) for skip in placement.skipped]
        statistics = _measure(model, placement, context)
    affines = choose_affines(model, placement, statistics, int8, context)
    edited = model.clone("quantize")
    layers, changed = _edit(edited, placement, affines, int8, options_for)
    rounded = _round(model, edited, layers, context, options_for)
    _correct_biases(model, edited, layers, context, options_for)
    changed += quantize_tables(model, edited, context, options_for)
    guard_float_layers(edited)
    return Applied(
        model=edited,
        changed=tuple(changed),
        skipped=tuple(placement.skipped),
        claimed=tuple(layer.output for layer in layers),
        notes=_notes(placement, int8) | ({"rounding": rounded} if rounded else {}),
    )


def _format(model: Model, context: Context, bits: int, where: str) -> Int8Format:
    int8 = context.constraints.int8
    if int8 is None:
        raise PassError(
            "the target has no int8 kernels for ONNX Q/DQ graphs",
            where=where,
            cure="`edgecompress targets` shows which targets take int8; leave the pass out",
        )
    if model.opset < 13:
        raise PassError(
            f"needs opset 13 or newer for per-channel scales, the model has {model.opset}",
            where=where,
            cure="put the pass 'cleanup' in front: it converts old opsets",
        )
    if bits == _WIDE_BITS:
        wide = context.constraints.wide_activation
        if wide is None:
            raise PassError(
                "the target has no kernels for 16-bit activations beside 8-bit weights",
                where=f"{where}, option 'activation_bits'",
                cure="leave the option out, or choose a target such as 'qnn-htp'",
            )
        if model.opset < _WIDE_SINCE:
            raise PassError(
                f"needs opset {_WIDE_SINCE} for 16-bit activations, the model has {model.opset}",
                where=f"{where}, option 'activation_bits'",
                cure=f"put the pass 'cleanup' with opset = {_WIDE_SINCE} in front",
            )
        return replace(int8, activation=wide, activation_symmetric=wide == "int16")
    return int8


def _place(
    model: Model,
    context: Context,
    int8: Int8Format,
    options_for: Callable[[ir.Node], StaticOptions | None],
) -> Placement[StaticOptions]:
    return place(
        model,
        options_for,
        context.constraints.int8_ops,
        drop_activations=not int8.activation_symmetric,
        everywhere=context.constraints.int8_everywhere,
        slow_shallow_convs=context.constraints.slow_shallow_convs,
    )


def _measure(model: Model, placement: Placement[StaticOptions], context: Context) -> Statistics:
    assert context.calibration is not None  # run_pass has seen to it
    resources = context.resources
    return collect_sharded(
        model,
        context.calibration,
        placement.measured,
        jobs=resources.jobs,
        engine=resources.engine,
        memory=resources.memory,
        scratch=resources.scratch,
        progress=context.progress,
    )


def _unbounded(
    model: Model, placement: Placement[StaticOptions], statistics: Statistics
) -> frozenset[ir.Node]:
    """Joins around values that hold the "minus infinity" of masks: no grid has room for it."""
    wide = {n for n in placement.measured if statistics[n].high - statistics[n].low > _WIDEST}
    joins = {join.node for join in placement.joins}
    return frozenset(
        node
        for node in model.ir.graph
        if label(node) in joins and wide & {v.name for v in (*node.inputs, *node.outputs) if v}
    )


def _explained(skip: Skip, unbounded: frozenset[ir.Node]) -> Skip:
    if skip.node not in map(label, unbounded):
        return skip
    return replace(skip, reason=f"its values, those of a mask perhaps, pass {_WIDEST:g}")


def _edit(
    model: Model,
    placement: Placement[StaticOptions],
    affines: Mapping[str, Affine],
    int8: Int8Format,
    options_for: Callable[[ir.Node], StaticOptions | None],
) -> tuple[list[QuantizedLayer], list[Change]]:
    graph = model.ir.graph
    nodes = {n.outputs[0].name: n for n in graph}
    order = {label(n): position for position, n in enumerate(graph)}
    writer = QdqWriter(graph)
    layers: list[QuantizedLayer] = []
    changed: list[Change] = []
    for same_weight in by_weight(placement.layers):
        users = [(nodes[layer.output], layer) for layer in same_weight]
        for layer, change in store_weights(writer, users, affines, int8, options_for):
            options = options_for(nodes[layer.source])
            method = "" if options is None else f", {options.method}"
            layers.append(layer)
            changed.append(replace(change, what=f"{change.what}{method}"))
    values = {v.name: v for v in (*graph.inputs, *(o for n in graph for o in n.outputs))}
    for name in (*placement.measured, *placement.shared):
        writer.activation(values[name], affines[name], int8.activation)
    for name in placement.constants:
        _quantize_constant(writer, graph, graph.initializers[name], int8)
    writer.pads_on_integers()
    for layer in layers:
        layer.output = nodes[layer.source].outputs[0].name or ""
    for join in placement.joins:
        changed.append(Change(join.node, join.op, f"{int8.activation} in and out"))
    changed.sort(key=lambda change: order[change.node])
    return layers, changed


def _quantize_constant(
    writer: QdqWriter, graph: ir.Graph, value: ir.Value, int8: Int8Format
) -> None:
    """Store a constant that joins read as integers of the activations' type."""
    assert value.const_value is not None  # the placement holds no others
    array = torch.from_numpy(np.array(value.const_value.numpy()))
    symmetric = int8.activation_symmetric
    integers = IntegerRange.of(int8.activation, symmetric=symmetric)
    low, high = (float(end) for end in torch.aminmax(array))
    affine = Affine.from_range(low, high, integers, symmetric=symmetric)
    scale = torch.tensor(affine.scale)
    whole = quantize(array, scale, affine.zero_point, integers).numpy().astype(int8.activation)
    users = [(use.node, use.idx) for use in value.uses() if use.node.graph is graph]
    writer.weight(value, users, whole, scale.numpy(), None, zero_point=affine.zero_point)


def _round(
    model: Model,
    edited: Model,
    layers: list[QuantizedLayer],
    context: Context,
    options_for: Callable[[ir.Node], StaticOptions | None],
) -> list[dict[str, Any]]:
    """Round weights better than to the nearest, where asked; what became of each layer."""
    assert context.calibration is not None  # run_pass has seen to it
    nodes = {node.outputs[0].name: node for node in model.ir.graph}
    wishes: dict[RoundingMethod, dict[str, StaticOptions]] = {}
    for layer in layers:
        options = options_for(nodes[layer.source])
        if options is not None and options.rounding != "nearest":
            wishes.setdefault(options.rounding, {})[layer.source] = options
    found: list[dict[str, Any]] = []
    for method, asked in wishes.items():
        iterations = [o.rounding_iterations for o in asked.values()]
        notes = round_weights(
            model,
            edited,
            [layer.to_round() for layer in layers if layer.source in asked],
            context.calibration,
            method=method,
            rows=max(o.rounding_rows for o in asked.values()),
            iterations=max((n for n in iterations if n is not None), default=None),
            seed=context.seed,
            device=context.device,
            memory=context.resources.memory,
            scratch=context.resources.scratch,
            progress=context.progress,
        )
        found += [layer.as_json() for layer in notes.layers]
    return found


def _correct_biases(
    model: Model,
    edited: Model,
    layers: list[QuantizedLayer],
    context: Context,
    options_for: Callable[[ir.Node], StaticOptions | None],
) -> None:
    corrected = {layer.source: layer for layer in layers if layer.correct}
    if not corrected:
        return
    assert context.calibration is not None  # run_pass has seen to it
    nodes = {n.outputs[0].name or "": n for n in model.ir.graph}
    wishes = [options_for(nodes[name]) for name in corrected]
    shifts = output_shifts(
        model,
        edited,
        [
            CorrectedLayer(name, layer.output, layer.channel_dim, *passing_range(nodes[name]))
            for name, layer in corrected.items()
        ],
        context.calibration,
        rows=max(w.bias_rows for w in wishes if w is not None),
        device=context.device,
        memory=context.resources.memory,
        scratch=context.resources.scratch,
        progress=context.progress,
    )
    for name, shift in shifts.items():
        layer = corrected[name]
        bias = torch.from_numpy(np.array(edited.initializer(layer.bias)))
        moved = bias.double() + shift.cpu() / layer.bias_steps.double()
        moved = torch.round(moved).clamp(-(2**31), 2**31 - 1)
        edited.set_initializer(layer.bias, moved.to(torch.int32).numpy())


def _notes(placement: Placement[StaticOptions], int8: Int8Format) -> dict[str, Any]:
    return {
        "format": f"{int8.activation} activations, int8 weights"
        + (" per channel" if int8.per_channel else " per tensor"),
        "layers": len(placement.layers),
        "activations": len(placement.measured),
    }


def _refuse_quantized(model: Model, where: str) -> None:
    """Say so where there is nothing to do since it was done before."""
    form = quantized_form(model)
    if form is not None and form.kinds:
        raise PassError(
            f"the model is quantized already: {form}",
            where=where,
            cure="start from the float model, or leave the pass out",
        )
