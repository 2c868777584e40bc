"""What the page draws: the steps, and where bytes and time go, by layer and by operator type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgecompress.report import charts, figures
from edgecompress.report import format as fmt
from edgecompress.report.charts import Mark
from edgecompress.report.data import LayerReport, Report, StepReport
from edgecompress.report.figures import Figure

__all__ = ["Row", "Chart", "steps", "layers", "operators", "time_figure", "sqnr_figure"]

_LAYERS_SHOWN = 30
_OPERATORS_SHOWN = 12


@dataclass(frozen=True)
class Row:
    """A line of a picture: what it is about, and one drawing per column."""

    name: str
    detail: str
    cells: tuple[Markup, ...]


@dataclass(frozen=True)
class Chart:
    """A picture: column titles with units, axes, and rows."""

    titles: tuple[str, ...]
    axes: tuple[Markup, ...]
    rows: tuple[Row, ...]


def steps(report: Report) -> list[Chart]:
    """Size, metric and latency after each step, as three pictures of one column each."""
    return [_size_steps(report), _metric_steps(report), _latency_steps(report)]


def _style(step: StepReport) -> str:
    return {"source": "before", "rolled back": "off"}.get(step.status, "after")


def _rows(report: Report, cells: Sequence[Markup]) -> tuple[Row, ...]:
    return tuple(
        Row(step.name, step.status, (cell,)) for step, cell in zip(report.steps, cells, strict=True)
    )


def _limit(report: Report, name: str) -> float | None:
    return next((budget.limit for budget in report.budgets if budget.name == name), None)


def _size_steps(report: Report) -> Chart:
    found = [figures.size_figure(step) for step in report.steps]
    megabytes = _limit(report, "size_mb")
    limit = None if megabytes is None else 1e6 * megabytes
    along = charts.scale([*(f.value for f in found), limit], fmt.size)
    cells = [
        charts.bars(along, [Mark(step.name, figure, _style(step))], limit)
        for step, figure in zip(report.steps, found, strict=True)
    ]
    return Chart(("File size",), (charts.axis(along),), _rows(report, cells))


def _metric_steps(report: Report) -> Chart:
    found = [figures.metric_figure(report, step) for step in report.steps]
    limit, title = None, "Metric"
    if report.metric is not None:
        better = report.metric.higher_is_better
        title = f"{report.metric.name} ({'higher' if better else 'lower'} is better)"
        source, drop = figures.before(report), _limit(report, "metric_drop")
        if source is not None and source.metric is not None and drop is not None:
            limit = source.metric - drop if better else source.metric + drop
    along = charts.scale([*(f.value for f in found), limit], fmt.number, from_zero=False)
    cells = [
        charts.dot(along, Mark(step.name, figure, _style(step)), limit)
        for step, figure in zip(report.steps, found, strict=True)
    ]
    return Chart((title,), (charts.axis(along),), _rows(report, cells))


def _latency_steps(report: Report) -> Chart:
    found = [figures.latency_figure(step) for step in report.steps]
    limit = _limit(report, "latency_ms")
    whiskers = [
        tuple(
            figure.value
            for quantile in ("p90", "p99")
            if (figure := figures.latency_figure(step, quantile)).value is not None
        )
        for step in report.steps
    ]
    tails = [value for whisker in whiskers for value in whisker]
    along = charts.scale([*(f.value for f in found), *tails, limit], fmt.ms)
    cells = [
        charts.bars(along, [Mark(step.name, figure, _style(step), whisker)], limit)
        for step, figure, whisker in zip(report.steps, found, whiskers, strict=True)
    ]
    title = "Latency, p50 with p90 and p99"
    return Chart((title,), (charts.axis(along),), _rows(report, cells))


def time_figure(value: float | None, step: StepReport | None) -> Figure:
    """Time of one layer, or why it is unknown."""
    if value is not None:
        measured = step.measurement if step else None
        return Figure(fmt.us(value), value, measured.basis if measured else "measured")
    if step is None or step.measurement is None or not step.measurement.operators:
        why = "the operators were not timed"
        if step and step.measurement and step.measurement.reason:
            why = step.measurement.reason
    else:
        why = "the runtime timed no operator of this name: it was fused into another one"
    return Figure(fmt.UNKNOWN, None, "unknown", why)


def sqnr_figure(layer: LayerReport) -> Figure:
    """Signal to quantization noise of a layer's output, or why it is unknown."""
    if layer.sqnr_db is None:
        return Figure(fmt.UNKNOWN, None, "unknown", "this layer's output was not compared")
    return Figure(fmt.decibels(layer.sqnr_db), layer.sqnr_db)


def layers(report: Report) -> Chart:
    """Bytes and time of the heaviest layers in graph order, and the sum of the others."""
    shown, rest = _heaviest(report.layers)
    first, last = figures.before(report), figures.after(report)
    lines = [
        (
            layer.node,
            f"{layer.op}, {layer.format}",
            Figure(fmt.size(layer.bytes_before), float(layer.bytes_before)),
            Figure(fmt.size(layer.bytes_after), float(layer.bytes_after)),
            time_figure(layer.time_before_us, first),
            time_figure(layer.time_after_us, last),
        )
        for layer in shown
    ]
    if rest:
        sizes = sum(layer.bytes_before for layer in rest), sum(layer.bytes_after for layer in rest)
        lines.append(
            (
                f"{len(rest)} other layer{'s' if len(rest) > 1 else ''}",
                "sum",
                Figure(fmt.size(sizes[0]), float(sizes[0])),
                Figure(fmt.size(sizes[1]), float(sizes[1])),
                _sum([layer.time_before_us for layer in rest]),
                _sum([layer.time_after_us for layer in rest]),
            )
        )
    sizes_along = charts.scale([f.value for line in lines for f in line[2:4]], fmt.size)
    times_along = charts.scale([f.value for line in lines for f in line[4:6]], fmt.us)
    rows = tuple(
        Row(
            name,
            detail,
            (
                charts.bars(sizes_along, _before_and_after(bytes_before, bytes_after)),
                charts.bars(times_along, _before_and_after(time_before, time_after)),
            ),
        )
        for name, detail, bytes_before, bytes_after, time_before, time_after in lines
    )
    return Chart(
        ("Weights, bytes", "Time per inference"),
        (charts.axis(sizes_along), charts.axis(times_along)),
        rows,
    )


def _heaviest(found: list[LayerReport]) -> tuple[list[LayerReport], list[LayerReport]]:
    """The layers with the largest share of bytes and time, and the others; both in graph order."""
    if len(found) <= _LAYERS_SHOWN:
        return found, []
    all_bytes = sum(layer.bytes_before for layer in found) or 1
    all_time = sum(layer.time_before_us or 0.0 for layer in found) or 1.0

    def share(index: int) -> float:
        layer = found[index]
        return layer.bytes_before / all_bytes + (layer.time_before_us or 0.0) / all_time

    chosen = set(sorted(range(len(found)), key=share, reverse=True)[: _LAYERS_SHOWN - 1])
    return (
        [layer for i, layer in enumerate(found) if i in chosen],
        [layer for i, layer in enumerate(found) if i not in chosen],
    )


def _sum(times: list[float | None]) -> Figure:
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        why = f"the runtime timed {len(known)} of these {len(times)} layers"
        return Figure(fmt.UNKNOWN, None, "unknown", why)
    return Figure(fmt.us(sum(known)), sum(known))


def _before_and_after(first: Figure, last: Figure) -> list[Mark]:
    return [Mark("before", first, "before"), Mark("after", last, "after")]


def operators(report: Report) -> Chart | None:
    """Time by operator type before and after, or None where the runtime timed none."""
    first = figures.operator_times(figures.before(report))
    last = figures.operator_times(figures.after(report))
    weight = {op: max(first.get(op, 0.0), last.get(op, 0.0)) for op in {**first, **last}}
    if not weight:
        return None
    names = sorted(weight, key=lambda op: (-weight[op], op))
    shown, rest = names[:_OPERATORS_SHOWN], names[_OPERATORS_SHOWN:]
    lines = [(op, _operator(first, [op]), _operator(last, [op])) for op in shown]
    if rest:
        lines.append((f"{len(rest)} others", _operator(first, rest), _operator(last, rest)))
    along = charts.scale([f.value for line in lines for f in line[1:]], fmt.us)
    rows = tuple(
        Row(op, "", (charts.bars(along, _before_and_after(before, after)),))
        for op, before, after in lines
    )
    return Chart(("Time per inference",), (charts.axis(along),), rows)


def _operator(times: dict[str, float], ops: list[str]) -> Figure:
    """Time of operator types; a type that a timed graph does not run is a true zero."""
    if not times:
        return Figure(fmt.UNKNOWN, None, "unknown", "the operators were not timed")
    total = sum(times.get(op, 0.0) for op in ops)
    if not any(op in times for op in ops):
        return Figure("none", 0.0)
    return Figure(fmt.us(total), total)
