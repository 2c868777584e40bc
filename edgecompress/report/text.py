"""Plain text for the terminal: aligned tables and the summary of a build. No colours."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from edgecompress.report import factorization, factorization_tables, figures, sensitivity
from edgecompress.report import format as fmt
from edgecompress.report.data import Report, StepReport

__all__ = ["table", "summary"]

_GAP = "  "
_NARROWEST_FIRST = 12
_MOST_SENSITIVE = 10


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    align: str,
    whole_names: bool = False,
) -> str:
    """Columns that stand in line, at most as wide as the terminal where that can be done.

    Only the first column is shortened (in the middle, by an ellipsis): it holds names, which are
    still recognised by their ends, while a figure that lost digits would be a lie.

    Args:
        headers: One heading per column.
        rows: Cells, as many per row as there are headers.
        align: One letter per column: ``l`` left, ``r`` right.
        whole_names: Shorten nothing: the names of the first column are there to be typed.

    Returns:
        The lines of the table without a newline at the end and without trailing blanks.

    Raises:
        ValueError: A row, or ``align``, has another number of columns than ``headers``.
    """
    if len(align) != len(headers) or any(len(row) != len(headers) for row in rows):
        raise ValueError(f"expected {len(headers)} columns in align and in each row")
    cells = [[_one_line(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    spare = shutil.get_terminal_size().columns - len(_GAP) * (len(widths) - 1) - sum(widths)
    if widths and spare < 0 and not whole_names:
        widths[0] = max(min(widths[0], _NARROWEST_FIRST), widths[0] + spare)
        cells = [[fmt.shorten(row[0], widths[0]), *row[1:]] for row in cells]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        _GAP.join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ).rstrip()
        for row in cells
    )


def _one_line(cell: str) -> str:
    return fmt.clean(" ".join(cell.splitlines()))


def summary(report: Report) -> str:
    """What a build prints at its end: steps, budgets, fusion coverage and the verdict."""
    parts = [
        _steps(report),
        _search(report),
        *_sensitivity(report),
        *_factorization(report),
        _budgets(report),
        _closing(report),
    ]
    return "\n\n".join(part for part in parts if part)


def _steps(report: Report) -> str:
    if not report.steps:
        return ""
    metric = report.metric.name if report.metric else "metric"
    headers = ["step", "size", metric, "p50", "ratio", "memory", "took", "status"]
    return table(headers, [_step(report, step) for step in report.steps], align="lrrrrrrl")


def _step(report: Report, step: StepReport) -> list[str]:
    latency = figures.latency_figure(step)
    status = f"{step.status} (cached)" if step.cached else step.status
    return [
        step.name,
        figures.size_figure(step).text,
        figures.metric_figure(report, step).text,
        _marked(latency),
        _marked(figures.ratio_figure(step)),
        _marked(figures.memory_figure(step)),
        fmt.seconds(step.seconds),
        status,
    ]


def _search(report: Report) -> str:
    if report.search is None:
        return ""
    metric = report.metric.name if report.metric else "metric"
    found = report.search.candidates
    rows = [
        [
            each.name,
            fmt.size(each.size_bytes),
            fmt.number(each.metric),
            fmt.ratio(each.latency_ratio),
            each.status,
        ]
        for each in found
    ]
    lines = [table(["candidate", "size", metric, "ratio", "verdict"], rows, align="lrrrl")]
    lines += [fmt.clean(f"  {each.name}: {each.reason}") for each in found if each.reason]
    return "\n".join(lines)


def _sensitivity(report: Report) -> list[str]:
    """The most sensitive nodes of each step that measured them."""
    parts = []
    for _, found in sensitivity.steps(report):
        headings, rows = sensitivity.columns(found)
        text = table(headings, rows[:_MOST_SENSITIVE], align=f"ll{'r' * (len(headings) - 2)}")
        more = len(rows) - _MOST_SENSITIVE
        rest = f"; {more} more nodes in report.html" if more > 0 else ""
        parts.append(f"{text}\n\nexpected loss: {found.unit}{rest}")
    return parts


def _factorization(report: Report) -> list[str]:
    """A few lines about each step that factorized."""
    return [
        "\n".join(
            [_one_line(step.name), *(f"  {line}" for line in factorization_tables.lines(found))]
        )
        for step, found in factorization.steps(report)
    ]


def _marked(figure: figures.Figure) -> str:
    """The figure, with a tilde where it is an estimate."""
    return f"~{figure.text}" if figure.basis == "estimated" else figure.text


def _budgets(report: Report) -> str:
    if not report.budgets:
        return ""
    rows = [
        [
            budget.name,
            fmt.brief(fmt.quantity(budget.limit, budget.unit)),
            fmt.quantity(budget.value, budget.unit),
            budget.basis,
            figures.budget_word(budget),
        ]
        for budget in report.budgets
    ]
    return table(["budget", "limit", "found", "basis", "verdict"], rows, align="lrrll")


def _closing(report: Report) -> str:
    lines = [f"note: {fmt.clean(note)}" for note in report.notes]
    lines.append(figures.coverage_line(report))
    if report.coverage:
        lines += [
            fmt.clean(f"  not fused: {node}: {what}")
            for node, what in report.coverage.unfused.items()
        ]
    if report.error:
        lines.append(fmt.clean(figures.error_text(report)))
    lines.append(fmt.clean(_verdict(report)))
    if report.output:
        lines.append(fmt.clean(f"report: {Path(report.output).resolve() / 'report.html'}"))
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    failed = [b.name for b in report.budgets if not b.passed]
    line = f"{figures.verdict(report)}: {figures.model_name(report)} for {report.target}"
    if report.status == "failed" and failed:
        line += f", budgets not met: {', '.join(failed)}"
    if report.status == "passed":
        line += f", {len(report.budgets)} of {len(report.budgets)} budgets met"
    return f"{line} ({fmt.seconds(report.seconds)})"
