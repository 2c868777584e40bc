"""Curves, columns and dots over a grid, as inline SVG.

A drawing is two pictures side by side: figures of the vertical axis, as wide as they need, and
the grid, as wide as the page lets it be. Curves are stretched with the grid; their strokes, dots
and lettering are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from edgecompress.report import format as fmt
from edgecompress.report import svg

__all__ = ["Axis", "Drawing", "linear", "logarithmic"]

_LEVELS_WIDTH, _TOP, _BELOW = 46, 8, 18
_SPAN = 1000.0
# Of a logarithmic axis: below this share of the largest value all is drawn on the floor.
_DEEPEST = 1e-9
_DIGIT = 1e-9


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high`` with its ticks and the words at them."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Place of ``value`` between 0 and 1; what lies outside stands at the nearer end."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


def linear(high: float, step: float) -> Axis:
    """From zero to at least ``high``, with a tick at each multiple of ``step``."""
    count = math.ceil(high / step - _DIGIT)
    return Axis(0.0, count * step, tuple((i * step, f"{i * step:g}") for i in range(count + 1)))


def logarithmic(values: Iterable[float], floor: float = 0.0) -> Axis:
    """A logarithmic axis over ``values``, of one power of ten at least.

    Args:
        values: What it holds. Zeros stand at its lower end, which then is called 0.
        floor: What lies below it need not be told apart and stands at the lower end, too.
    """
    known = sorted(value for value in values if math.isfinite(value))
    if not known or known[-1] <= 0:
        return Axis(0.1, 1.0, ((0.1, "0"), (1.0, "1")), logarithmic=True)
    least = max(floor if floor < known[-1] else 0.0, _DEEPEST * known[-1])
    shown = [value for value in known if value >= least]
    low, high = _round_down(shown[0]), -_round_down(-known[-1])
    if high < 9 * low:
        low = _round_down(high / 10)
    if len(shown) == len(known):
        return Axis(low, high, _ticks(low, high), logarithmic=True)
    word = "0" if known[len(known) - len(shown) - 1] == 0 and not floor else "less"
    ground = low / 10
    return Axis(ground, high, ((ground, word), *_ticks(low, high)), logarithmic=True)


def _round_down(value: float) -> float:
    """The nearest of 1, 2 and 5 times powers of ten that is not larger; of negative ones, too."""
    power = 10.0 ** math.floor(math.log10(abs(value)) + _DIGIT)
    if value > 0:
        return max(s for s in (1, 2, 5) if s * power <= value * (1 + _DIGIT)) * power
    return -min(s for s in (1, 2, 5, 10) if s * power >= -value * (1 - _DIGIT)) * power


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten, fewer where they are many, with 2 and 5 between them where they are few."""
    first, last = (math.log10(end) for end in (low, high))
    every = math.ceil((last - first) / 6)
    factors = (1, 2, 5) if last - first < 2.5 else (1,)
    powers = [p for p in range(math.floor(first), math.ceil(last) + 1) if p % every == 0]
    found = [factor * 10.0**power for power in powers for factor in factors]
    inside = [tick for tick in found if low * (1 - _DIGIT) <= tick <= high * (1 + _DIGIT)]
    return tuple((tick, f"{tick:.1g}" if tick < 1e-3 else f"{tick:g}") for tick in inside)


class Drawing:
    """A grid to draw on."""

    def __init__(self, height: float, up: Axis, label: str) -> None:
        """Draw the grid.

        Args:
            height: Of the grid, in pixels.
            up: The vertical axis.
            label: What the picture shows, for those who do not see it.
        """
        self._height, self._up = height, up
        whole = height + _TOP + _BELOW
        self._levels = svg.svg(whole, "levels", str(_LEVELS_WIDTH))
        self._levels.set("aria-hidden", "true")
        self._drawn = svg.svg(whole, "grid-of")
        self._drawn.set("aria-label", fmt.clean(label))
        for tick, words in up.ticks:
            svg.line(self._drawn, 0, self.level(tick), 100, self.level(tick), "grid")
            figure = svg.text(self._levels, 100, self.level(tick) + 4, words, "tick")
            figure.set("dx", "-7")
            figure.set("text-anchor", "end")
        self._stretched = ET.SubElement(
            self._drawn,
            "svg",
            width="100%",
            height=svg.px(whole),
            viewBox=f"0 0 {_SPAN:g} {whole:g}",
            preserveAspectRatio="none",
        )

    def level(self, value: float) -> float:
        """Place of a value from above, in pixels."""
        return round(_TOP + self._height * (1 - self._up.at(value)), 2)

    def tick(self, x: float, words: str, *, line: bool = False, style: str = "tick") -> None:
        """Words below the grid at ``x`` (0 to 1), and a line there if wanted."""
        if line:
            svg.line(self._drawn, 100 * x, _TOP, 100 * x, _TOP + self._height, "grid")
        label = svg.text(self._drawn, 100 * x, self._height + _TOP + 14, words, style)
        label.set("text-anchor", "start" if x < 0.02 else "end" if x > 0.98 else "middle")

    def upright(self, x: float, style: str, why: str) -> None:
        """A line from top to bottom."""
        ends = {"x1": svg.percent(100 * x), "y1": svg.px(_TOP)}
        ends |= {"x2": ends["x1"], "y2": svg.px(_TOP + self._height)}
        line = ET.SubElement(self._drawn, "line", ends)
        line.set("class", style)
        svg.title(line, why)

    def across(self, value: float, style: str) -> None:
        """A line from left to right."""
        svg.line(self._drawn, 0, self.level(value), 100, self.level(value), style)

    def curve(self, points: Sequence[tuple[float, float]], style: str, why: str) -> None:
        """A line through points (x from 0 to 1, value)."""
        path = ET.SubElement(self._stretched, "path", d=self._path(points))
        path.set("class", f"curve {style}")
        svg.title(path, why)

    def band(
        self, lower: Sequence[tuple[float, float]], upper: Sequence[tuple[float, float]], why: str
    ) -> None:
        """All that lies between two lines."""
        outline = f"{self._path(upper)}L{self._path(lower[::-1])[1:]}Z"
        path = ET.SubElement(self._stretched, "path", d=outline)
        path.set("class", "band")
        svg.title(path, why)

    def dot(self, x: float, value: float, radius: float, style: str, why: str) -> None:
        """A dot with a tooltip."""
        svg.dot(self._drawn, round(100 * x, 2), self.level(value), radius, style, why)

    def column(self, start: float, width: float, value: float, style: str, why: str) -> None:
        """A bar that stands on the ground."""
        top = self.level(value)
        bar = ET.SubElement(self._drawn, "rect", x=svg.percent(100 * start), y=svg.px(top))
        bar.set("width", svg.percent(100 * width))
        bar.set("height", svg.px(round(_TOP + self._height - top, 2)))
        bar.set("class", style)
        svg.title(bar, why)

    def words(self, x: float, value: float, text: str, style: str) -> None:
        """Words above a place of the grid."""
        label = svg.text(self._drawn, 100 * x, self.level(value) - 4, text, style)
        label.set("text-anchor", "middle")

    def markup(self) -> Markup:
        """Both pictures in one element."""
        return (
            Markup('<div class="drawing">')
            + svg.markup(self._levels)
            + svg.markup(self._drawn)
            + Markup("</div>")
        )

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{_SPAN * x:.1f} {self.level(value):g}" for x, value in points)
