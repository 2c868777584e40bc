"""What layers suffer from their formats, as the page draws it and as tables have it."""

from __future__ import annotations

from edgecompress.report import charts
from edgecompress.report import format as fmt
from edgecompress.report.charts import Mark
from edgecompress.report.data import NodeSensitivityReport, Report, SensitivityReport, StepReport
from edgecompress.report.figures import Figure
from edgecompress.report.picture import Chart, Row

__all__ = ["chart", "columns", "formats", "loss", "steps", "worst_first"]

_SHOWN = 40


def steps(report: Report) -> list[tuple[StepReport, SensitivityReport]]:
    """Steps that measured sensitivity, but for those that were rolled back."""
    return [
        (step, step.sensitivity)
        for step in report.steps
        if step.sensitivity is not None and step.status != "rolled back"
    ]


def worst_first(found: SensitivityReport) -> list[NodeSensitivityReport]:
    """Nodes by the largest loss that any of their formats brings, the largest first."""
    return sorted(found.nodes, key=lambda node: -max(f.loss for f in node.formats.values()))


def formats(found: SensitivityReport) -> list[str]:
    """All formats that some node may have, in the order in which they appear."""
    return list(dict.fromkeys(name for node in found.nodes for name in node.formats))


def loss(value: float) -> str:
    """An expected loss, with two digits: they are estimates."""
    return "0" if value == 0 else f"{value:.2g}"


def chart(found: SensitivityReport) -> Chart:
    """Loss and signal to noise of the most sensitive nodes, a bar for each format."""
    shown = worst_first(found)[:_SHOWN]
    losses = charts.scale([f.loss for node in shown for f in node.formats.values()], _loss_tick)
    noise = charts.scale([f.sqnr_db for n in shown for f in n.formats.values()], _decibel_tick)
    rows = tuple(
        Row(
            node.node,
            node.op if node.chosen is None else f"{node.op}, {node.chosen}",
            (
                charts.bars(
                    losses,
                    [
                        Mark(name, Figure(f"{loss(f.loss)} {name}", f.loss), _style(node, name))
                        for name, f in node.formats.items()
                    ],
                ),
                charts.bars(
                    noise,
                    [
                        Mark(
                            name,
                            Figure(f"{fmt.decibels(f.sqnr_db)} {name}", f.sqnr_db),
                            _style(node, name),
                        )
                        for name, f in node.formats.items()
                    ],
                ),
            ),
        )
        for node in shown
    )
    return Chart(
        (f"Expected loss ({found.unit})", "Signal to noise of its output"),
        (charts.axis(losses), charts.axis(noise)),
        rows,
    )


def columns(found: SensitivityReport) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table, the most sensitive node first."""
    names = formats(found)
    chosen = any(node.chosen is not None for node in found.nodes)
    headings = ["node", "op", *(f"{n} {what}" for n in names for what in ("loss", "SQNR"))]
    rows = []
    for node in worst_first(found):
        cells = [node.node, node.op]
        for name in names:
            error = node.formats.get(name)
            cells += (
                ["-", "-"] if error is None else [loss(error.loss), fmt.decibels(error.sqnr_db)]
            )
        rows.append([*cells, node.chosen or "-"] if chosen else cells)
    return [*headings, "chosen"] if chosen else headings, rows


def _style(node: NodeSensitivityReport, name: str) -> str:
    return "after" if node.chosen == name else "before"


def _loss_tick(value: float) -> str:
    return loss(value)


def _decibel_tick(value: float) -> str:
    return f"{value:.0f} dB"
