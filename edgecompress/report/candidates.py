"""What the page shows of a search: all candidates by what they cost and what they keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from edgecompress.report import charts, figures
from edgecompress.report import format as fmt
from edgecompress.report.charts import Point
from edgecompress.report.data import CandidateReport, Report
from edgecompress.report.figures import Figure

__all__ = ["Drawing", "drawing", "figure", "loss", "styles"]

styles = {"chosen": "good", "failed": "bad", "loses too much": "bad", "slower than float": "bad"}
"""Class of a status's tag on the page; others have none."""


@dataclass(frozen=True)
class Drawing:
    """Candidates as dots: the metric by time, or by size where no time is known."""

    title: str
    svg: Markup


def drawing(report: Report) -> Drawing | None:
    """The candidates that have both figures, or None where there are none."""
    search = report.search
    if search is None:
        return None
    timed = search.objective == "latency" and any(c.latency_ratio for c in search.candidates[1:])
    text: Callable[[float | None], str] = fmt.ratio if timed else fmt.size
    points = [
        Point(each.name, cost, each.metric, _style(each), f"{each.status}, {each.reason}")
        for each in search.candidates
        if (cost := each.latency_ratio if timed else each.size_bytes) is not None
        and each.metric is not None
    ]
    if not points:
        return None
    limit = _limit(report)
    across = charts.scale([p.x for p in points], text)
    up = charts.scale([*(p.y for p in points), limit], fmt.number, from_zero=False)
    metric = report.metric.name if report.metric else "metric"
    title = f"{metric} by {'time, over that of the float model' if timed else 'file size'}"
    return Drawing(title, charts.scatter(across, up, points, limit))


def _style(candidate: CandidateReport) -> str:
    if candidate.status == "chosen":
        return "after"
    return "off" if candidate.passes else "before"


def _limit(report: Report) -> float | None:
    source = figures.before(report)
    if report.search is None or report.metric is None or source is None or source.metric is None:
        return None
    drop = report.search.allowed_drop
    return source.metric - drop if report.metric.higher_is_better else source.metric + drop


def figure(
    candidate: CandidateReport, value: float | None, text: Callable[[float | None], str]
) -> Figure:
    """A figure of a candidate, or why it is unknown."""
    if value is None:
        return Figure(fmt.UNKNOWN, None, "unknown", candidate.reason or "it was not taken")
    return Figure(text(value), value)


def loss(value: float | None) -> str:
    """By how much the metric got worse, without zeros at its end."""
    return fmt.brief(fmt.number(value))
