"""Mixed precision: the whole model in each format, what each node costs in each, and the mixture.

Formats are ``w8a8`` (static Q/DQ), ``w8`` and ``w4`` (integer weights in blocks, float
activations) and ``float``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import onnx_ir as ir

from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Change, Context, Skip
from edgecompress.model import Model
from edgecompress.qdq_plan import label
from edgecompress.quantization.allocation import Choice
from edgecompress.quantization.float_guard import guard_float_layers
from edgecompress.quantization.sensitivity import NodeSensitivity
from edgecompress.quantization.static import StaticSettings, quantize_static
from edgecompress.quantization.weight_only import WeightRun, quantize_weights
from edgecompress.quantization.weight_plan import Wanted, WeightMethod, plan_weights
from edgecompress.quantized_form import quantized_form

__all__ = [
    "FORMATS",
    "Format",
    "MixSettings",
    "apply_mixture",
    "as_format",
    "available_formats",
    "choices",
    "in_all_formats",
    "items_of",
    "kept_float",
    "overhead_of",
    "suits",
    "work_of",
]

Format = Literal["w8a8", "w8", "w4"]
FORMATS: tuple[Format, ...] = ("w8a8", "w8", "w4")

_BITS = {"w8": 8, "w4": 4}
# Time against float where nobody has measured it: what int8 kernels reach in whole models with
# VNNI, and what kernels for integer weights reach, which widen them as they go.
_TIME = {"float": 1.0, "w8a8": 0.4, "w8": 0.8, "w4": 0.8}
# A join reads and writes memory; so many multiply-accumulates take as long as one element.
_MACS_PER_ELEMENT = 8.0
_WHERE = "pass 'mixed'"


@dataclass(frozen=True)
class MixSettings:
    """How nodes are written in their formats.

    Attributes:
        static: Options of ``w8a8``.
        method: How integer weights of ``w8`` and ``w4`` are found.
        block_size: Weights of ``w8`` and ``w4`` that share a scale.
        rows: Calibration rows for ``gptq``.
    """

    static: StaticSettings = field(default_factory=StaticSettings)
    method: WeightMethod = "gptq"
    block_size: int = 32
    rows: int = 128


def available_formats(
    model: Model, context: Context, asked: Sequence[Format] | None
) -> tuple[Format, ...]:
    """The formats that the target takes, of those asked for or of all.

    Raises:
        PassError: One that is asked for cannot be had, or there is none.
    """
    constraints, form = context.constraints, context.constraints.weight_only
    refused: dict[Format, str] = {}
    if constraints.int8 is None:
        refused["w8a8"] = "the target has no int8 kernels for ONNX Q/DQ graphs"
    elif model.opset < 13:
        refused["w8a8"] = f"it needs operator set 13, the model has {model.opset}"
    for name, bits in _BITS.items():
        format_: Format = "w8" if name == "w8" else "w4"
        if form is None or bits not in form.bits:
            refused[format_] = f"the target takes no weights of {bits} bits beside float"
        elif form.layout == "qdq" and model.opset < 21:
            refused[format_] = f"it needs operator set 21, the model has {model.opset}"
    for format_ in asked or ():
        if format_ in refused:
            raise PassError(
                f"the format {format_!r} cannot be had: {refused[format_]}",
                where=_WHERE,
                cure="leave it out of formats, name another target, or put 'cleanup' in front",
            )
    found = tuple(f for f in FORMATS if f in (asked or FORMATS) and f not in refused)
    if not found:
        raise PassError(
            f"the target takes none of the formats: {'; '.join(refused.values())}",
            where=_WHERE,
            cure="`edgecompress targets` shows which targets take which",
        )
    return found


def suits(node: ir.Node, format_: Format, formats: Sequence[Format]) -> bool:
    """Whether a node may have a format where nobody says so.

    Weights of 8 bits beside float activations are for tables only where the target runs ``w8a8``:
    for layers they are as large and slower.
    """
    return format_ != "w8" or "w8a8" not in formats or node.op_type == "Gather"


def in_all_formats(
    model: Model,
    context: Context,
    formats: Sequence[Format],
    allowed: Callable[[ir.Node, Format], bool],
    settings: MixSettings,
) -> dict[str, Applied]:
    """The whole model in each format alone, as the sensitivity of its nodes is taken from.

    Weights are rounded to the nearest, and biases are not corrected: that depends on what other
    layers do.

    Args:
        model: The float model, without functions.
        context: Data and constraints.
        formats: Which.
        allowed: Whether a node may have a format.
        settings: How they are written.

    Raises:
        PassError: The model is quantized already.
    """
    _refuse_quantized(model)
    static = replace(settings.static, bias_correction=False, rounding="nearest")
    quick = replace(settings, static=static, method="mse")
    return {f: apply_mixture(model, context, partial(_only, f, allowed), quick) for f in formats}


def _only(
    format_: Format, allowed: Callable[[ir.Node, Format], bool], node: ir.Node
) -> Format | None:
    return format_ if allowed(node, format_) else None


def apply_mixture(
    model: Model,
    context: Context,
    format_of: Callable[[ir.Node], Format | None],
    settings: MixSettings,
) -> Applied:
    """Write each node in its format: first all ``w8a8``, then integer weights beside them.

    Args:
        model: The float model, without functions.
        context: Data and constraints.
        format_of: The format of a node; None for float.
        settings: How they are written.
    """
    # By name, too: a pair behind a graph output takes the name of the value.
    formats = {
        key: format_of(n) for n in model.ir.graph if n.outputs for key in (_first(n), n.name)
    }
    found = Applied(model=model)
    static = replace(settings.static, embedding_bits=False)  # tables have w8 and w4
    if "w8a8" in formats.values():
        found = quantize_static(
            model,
            context,
            lambda node: static if formats.get(_first(node)) == "w8a8" else None,
            where=_WHERE,
        )
        if found.changed:
            guard_float_layers(found.model)
    if not _BITS.keys() & set(formats.values()):
        return found
    return _with_integer_weights(found, context, formats, settings)


def _with_integer_weights(
    before: Applied,
    context: Context,
    formats: Mapping[str | None, Format | None],
    settings: MixSettings,
) -> Applied:
    form = context.constraints.weight_only
    assert form is not None  # :func:`available_formats` has seen to it
    model = before.model

    def wanted(node: ir.Node) -> Wanted | None:
        bits = _BITS.get(formats.get(_first(node)) or formats.get(node.name or None) or "")
        if bits is None:
            return None
        tables: int | Literal[False] = bits if bits in form.embedding_bits else False
        return Wanted(bits, settings.block_size, None, settings.method, tables)

    plan = plan_weights(model, wanted, form)
    if not plan.matrices and not plan.halves:
        return before
    resources = context.resources
    run = WeightRun(
        data=context.calibration,
        rows=settings.rows,
        device=context.device,
        memory=resources.memory,
        scratch=resources.scratch,
        progress=context.progress,
    )
    done = quantize_weights(model, model.clone("mixed"), plan, form, run)
    order = {label(node): place for place, node in enumerate(model.ir.graph)}
    changed = sorted([*before.changed, *done.changed], key=lambda c: order.get(c.node, 0))
    nodes = {change.node for change in changed}
    skipped = [s for s in (*before.skipped, *plan.skipped) if s.node not in nodes]
    return Applied(
        model=done.model,
        changed=tuple(changed),
        skipped=tuple({skip.node: skip for skip in skipped}.values()),
        claimed=(*before.claimed, *done.products),
    )


def choices(
    nodes: Sequence[NodeSensitivity],
    overhead: Mapping[str, int] | None = None,
    times: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, list[Choice]]:
    """What can be chosen: an item for each node, or for all nodes that share a weight.

    The first choice of each is float, but for joins: they follow their layers.

    Args:
        nodes: Their sensitivity; each item bears the output of its first node.
        overhead: Format -> bytes that a node in it takes in the file beside its weights.
        times: Node's output -> format (and ``float``) -> time in one inference. What is not there
            is estimated from multiply-accumulates, in no unit that could be told beside measured
            ones: give all times or none.
    """
    return {
        item: [
            _choice(members, format_, overhead or {}, times or {})
            for format_ in ("float", *FORMATS)
            if (format_ == "float" and _may_stay(members))
            or all(format_ in n.formats for n in members)
        ]
        for item, members in items_of(nodes).items()
    }


def _may_stay(members: Sequence[NodeSensitivity]) -> bool:
    """Whether float is a choice: for a join it is none, since its layers quantize what it reads."""
    return any(node.weights for node in members)


def items_of(nodes: Sequence[NodeSensitivity]) -> dict[str, list[NodeSensitivity]]:
    """Nodes by what is chosen for them together, under the output of the first."""
    items: dict[str, list[NodeSensitivity]] = {}
    owner: dict[str, str] = {}
    for node in nodes:
        item = next((owner[w] for w in node.weights if w in owner), node.output)
        owner.update(dict.fromkeys(node.weights, item))
        items.setdefault(item, []).append(node)
    return items


def _choice(
    members: Sequence[NodeSensitivity],
    format_: str,
    overhead: Mapping[str, int],
    times: Mapping[str, Mapping[str, float]],
) -> Choice:
    if format_ == "float":
        return Choice(
            "float",
            loss=0.0,
            bytes=sum(n.bytes_float for n in members),
            ms=sum(_time(n, format_, times) for n in members),
            float_macs=sum(work_of(n) for n in members),
        )
    return Choice(
        format_,
        loss=sum(n.formats[format_].loss for n in members),
        bytes=sum(n.formats[format_].bytes + overhead.get(format_, 0) for n in members),
        ms=sum(_time(n, format_, times) for n in members),
    )


def work_of(node: NodeSensitivity) -> float:
    """Multiply-accumulates, or as many as a join takes the time of; a lookup takes none."""
    if node.op == "Gather":
        return 0.0
    return node.macs or _MACS_PER_ELEMENT * node.elements


def _time(node: NodeSensitivity, format_: str, times: Mapping[str, Mapping[str, float]]) -> float:
    measured = times.get(node.output, {}).get(format_)
    return work_of(node) * _TIME[format_] if measured is None else measured


def as_format(name: str) -> Format | None:
    """A format by its name; None for float."""
    return next((format_ for format_ in FORMATS if format_ == name), None)


def _first(node: ir.Node) -> str | None:
    return node.outputs[0].name if node.outputs else None


def _refuse_quantized(model: Model) -> None:
    form = quantized_form(model)
    if form is not None and form.kinds:
        raise PassError(
            f"the model is quantized already: {form}",
            where=_WHERE,
            cure="start from the float model, or leave the pass out",
        )


def overhead_of(model: Model, applied: Applied) -> int:
    """Bytes that each changed node takes in the file beside its weights, on average."""
    saved = sum(change.bytes_before - change.bytes_after for change in applied.changed)
    extra = applied.model.size_bytes - (model.size_bytes - saved)
    return max(0, -(-extra // max(len(applied.changed), 1)))


def kept_float(nodes: Sequence[NodeSensitivity], changed: Sequence[Change]) -> list[Skip]:
    """Why candidates stay float."""
    done = {change.node for change in changed}
    return [
        Skip(node.node, node.op, f"kept in float: {_reason(node)}")
        for node in nodes
        if node.node not in done
    ]


def _reason(node: NodeSensitivity) -> str:
    best = min(node.formats, key=lambda f: node.formats[f].loss)
    return f"{best} would bring an expected loss of {node.formats[best].loss:.2g}"
