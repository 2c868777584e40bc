"""Bars and dots as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from edgecompress.report import format as fmt
from edgecompress.report import svg
from edgecompress.report.figures import Figure

__all__ = ["Scale", "Mark", "Point", "scale", "axis", "bars", "dot", "scatter"]

# Share of the width that marks may take, in percent; the rest is for the figure at their end.
_ROOM = 70.0
_BAR = 10
_AXIS_HEIGHT = 18
_SCATTER_HEIGHT, _LABEL_HEIGHT, _LABEL_WIDTH = 230, 13, 22.0


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high`` with its ticks and the way its figures are written."""

    low: float
    high: float
    ticks: tuple[float, ...]
    text: Callable[[float], str]

    def x(self, value: float) -> float:
        """Place of ``value`` in percent of the picture's width."""
        return _ROOM * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Mark:
    """A figure to draw.

    Attributes:
        name: What the tooltip calls it.
        figure: The figure; the word ``unknown`` stands in place of a bar that has none.
        style: Class of ``page.css`` that gives the colour.
        whisker: Further values that a thin line connects to the bar's end, e.g. p90 and p99.
    """

    name: str
    figure: Figure
    style: str
    whisker: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """A dot of a scatter: its place, its label, and a sentence for the tooltip."""

    name: str
    x: float
    y: float
    style: str
    why: str


def scale(
    values: Iterable[float | None], text: Callable[[float], str], *, from_zero: bool = True
) -> Scale:
    """An axis with two to five round ticks that spans ``values``."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return Scale(0.0, 1.0, (), text)
    low, high = min(known), max(known)
    if from_zero:
        low = min(low, 0.0)
    if high <= low:
        high = low + (abs(low) or 1.0)
    if not from_zero:
        margin = 0.08 * (high - low)
        low, high = low - margin, high + margin
    step = _round_step((high - low) / 4)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(i * step for i in range(first, last + 1)), text)


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of ten that is at least ``rough``."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return min(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))


def axis(along: Scale) -> Markup:
    """Tick labels with their units."""
    drawn = svg.svg(_AXIS_HEIGHT, "axis")
    drawn.set("aria-hidden", "true")
    for i, tick in enumerate(along.ticks):
        anchor = "start" if i == 0 and along.x(tick) < 5 else "middle"
        style = "tick odd" if i % 2 else "tick"  # every other one is hidden where it is narrow
        label = svg.text(drawn, along.x(tick), _AXIS_HEIGHT - 5, fmt.brief(along.text(tick)), style)
        label.set("text-anchor", anchor)
    return svg.markup(drawn)


def bars(along: Scale, marks: Sequence[Mark], limit: float | None = None) -> Markup:
    """One bar per mark, one above the other, each with its figure at its end.

    Args:
        along: The axis.
        marks: What to draw, from above.
        limit: Where a line tells what the budget allows.
    """
    height = (_BAR + 2) * len(marks) + 6
    drawn = svg.svg(height, "bars")
    drawn.set("aria-label", "; ".join(f"{m.name} {fmt.clean(m.figure.text)}" for m in marks))
    _grid(drawn, along, height)
    if limit is not None and math.isfinite(limit):
        svg.line(drawn, along.x(limit), 0, along.x(limit), height, "limit")
    for i, mark in enumerate(marks):
        _bar(drawn, along, mark, top=4 + i * (_BAR + 2))
    return svg.markup(drawn)


def dot(along: Scale, mark: Mark, limit: float | None = None) -> Markup:
    """A dot for a figure whose axis does not start at zero, and a line at ``limit``."""
    height = _BAR + 8
    drawn = svg.svg(height, "bars")
    drawn.set("aria-label", f"{mark.name} {fmt.clean(mark.figure.text)}")
    _grid(drawn, along, height)
    if limit is not None and math.isfinite(limit):
        svg.line(drawn, along.x(limit), 0, along.x(limit), height, "limit")
    middle = height / 2
    value = mark.figure.value
    if value is None or not math.isfinite(value):
        _without_place(drawn, middle + 4, mark.figure)
    else:
        svg.dot(drawn, along.x(value), middle, 4.5, _style(mark), _tip(mark))
        svg.text(drawn, along.x(value), middle + 4, mark.figure.text, "value").set("dx", "9")
    return svg.markup(drawn)


def scatter(across: Scale, up: Scale, points: Sequence[Point], limit: float | None) -> Markup:
    """Dots with their names; the axes' figures stand below and at the left.

    Args:
        across: The horizontal axis.
        up: The vertical axis.
        points: What to draw.
        limit: Where a line tells what the budget allows of the vertical figure.
    """
    drawn = svg.svg(_SCATTER_HEIGHT + _AXIS_HEIGHT, "bars")
    drawn.set("aria-label", "; ".join(f"{p.name}: {p.why}" for p in points))

    def level(value: float) -> float:
        return _SCATTER_HEIGHT * (1 - up.x(value) / _ROOM)

    def place(value: float) -> float:
        return 8 + across.x(value)

    for tick in up.ticks:
        svg.line(drawn, 0, level(tick), 100, level(tick), "grid")
        svg.text(drawn, 0, level(tick) - 3, fmt.brief(up.text(tick)), "tick")
    for tick in across.ticks:
        svg.line(drawn, place(tick), 0, place(tick), _SCATTER_HEIGHT, "grid")
        label = svg.text(
            drawn, place(tick), _SCATTER_HEIGHT + 13, fmt.brief(across.text(tick)), "tick"
        )
        label.set("text-anchor", "middle")
    if limit is not None and up.low <= limit <= up.high:
        svg.line(drawn, 0, level(limit), 100, level(limit), "limit")
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: -p.y):
        x, y = place(point.x), level(point.y)
        svg.dot(drawn, x, y, 5, point.style, f"{point.name}: {point.why}")
        base = y + 4
        while any(abs(base - b) < _LABEL_HEIGHT and abs(x - a) < _LABEL_WIDTH for a, b in taken):
            base += _LABEL_HEIGHT
        taken.append((x, base))
        svg.text(drawn, x, base, point.name, "value").set("dx", "9")
    return svg.markup(drawn)


def _bar(drawn: ET.Element, along: Scale, mark: Mark, top: float) -> None:
    value = mark.figure.value
    baseline = top + _BAR - 1.5
    if value is None or not math.isfinite(value):
        _without_place(drawn, baseline, mark.figure)
        return
    start, end = along.x(min(0.0, value)), along.x(max(0.0, value))
    rect = ET.SubElement(
        drawn, "rect", x=f"{start:.2f}%", y=svg.px(top), height=svg.px(_BAR), rx="1.5"
    )
    rect.set("width", f"{end - start:.2f}%")
    rect.set("class", _style(mark))
    svg.title(rect, _tip(mark))
    for reach in mark.whisker:
        to = along.x(reach)
        svg.line(drawn, end, top + _BAR / 2, to, top + _BAR / 2, "whisker")
        svg.line(drawn, to, top + 2, to, top + _BAR - 2, "whisker")
        end = max(end, to)
    svg.text(drawn, end, baseline, mark.figure.text, "value").set("dx", "5")


def _without_place(drawn: ET.Element, baseline: float, figure: Figure) -> None:
    """The word for a figure that has no place on the axis: unknown, or infinite."""
    style = "unknown" if figure.value is None else "value"
    svg.text(drawn, 0, baseline, figure.text, style, figure.why)


def _grid(drawn: ET.Element, along: Scale, height: float) -> None:
    for tick in along.ticks:
        svg.line(drawn, along.x(tick), 0, along.x(tick), height, "grid")


def _tip(mark: Mark) -> str:
    return f"{mark.name}: {mark.figure.text} ({mark.figure.basis})"


def _style(mark: Mark) -> str:
    return f"{mark.style} estimated" if mark.figure.basis == "estimated" else mark.style
