"""The curves of the convolutional networks as one SVG, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from factorization.cnn import share_of_macs

__all__ = ["svg"]

# Middle tones: no background is drawn.
_TEXT, _GRID = "#7d8590", "#7d859055"
_STYLES = {
    "weights alone": ("#d9822b", "4 3"),
    "data-aware": ("#2f81f7", "4 3"),
    "data-aware, ranks by loss": ("#2f81f7", ""),
    "defaults": ("#2da44e", ""),
}
_PANEL, _HEIGHT = 270, 190
_LEFT, _TOP, _GAP, _LEGEND, _ENTRY = 40, 28, 26, 66, 180
_LOW, _HIGH = 0.2, 1.0

Figures = Mapping[str, Any]


def svg(networks: Mapping[str, Figures]) -> str:
    """Top-1 against the share of the file's MACs, a panel for each network.

    Args:
        networks: Figures of :func:`factorization.cnn.measure` by name.
    """
    width = max(len(networks) * (_LEFT + _PANEL + _GAP), _LEFT + len(_STYLES) * _ENTRY)
    height = _TOP + _HEIGHT + _LEGEND
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    letters = f'font-family="sans-serif" font-size="11" fill="{_TEXT}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {letters} role="img">',
        "<title>Top-1 accuracy against kept multiply-accumulates</title>",
    ]
    for number, found in enumerate(networks.values()):
        lines += _panel(found, number * (_LEFT + _PANEL + _GAP) + _LEFT)
    return "\n".join([*lines, *_legend(height), "</svg>"]) + "\n"


def _panel(found: Figures, left: float) -> list[str]:
    bottom = _TOP + _HEIGHT
    middle = left + _PANEL / 2
    lines = [f'<text x="{middle:g}" y="16" text-anchor="middle">{escape(found["title"])}</text>']
    for tick in (0, 25, 50, 75, 100):
        y = _y(tick / 100)
        lines.append(_line(left, y, left + _PANEL, y, _GRID))
        lines.append(f'<text x="{left - 6:g}" y="{y + 4:g}" text-anchor="end">{tick}</text>')
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        x = _x(left, share)
        lines.append(_line(x, _TOP, x, bottom, _GRID))
        lines.append(f'<text x="{x:g}" y="{bottom + 15:g}" text-anchor="middle">{share:g}</text>')
    reference = found["float"]["figures"]["top1"]
    for name, points in found["lines"].items():
        ends = [(1.0, reference)]
        known = [point for point in points if "figures" in point]
        ends += [(share_of_macs(found, point), point["figures"]["top1"]) for point in known]
        lines += _curve(name, left, sorted(ends, reverse=True))
    return lines


def _x(left: float, share: float) -> float:
    return round(left + _PANEL * (max(share, _LOW) - _LOW) / (_HIGH - _LOW), 1)


def _y(top1: float) -> float:
    return round(_TOP + _HEIGHT * (1 - top1), 1)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}"{more}/>'


def _stroke(dash: str) -> str:
    return ' stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _curve(name: str, left: float, points: Sequence[tuple[float, float]]) -> list[str]:
    colour, dash = _STYLES[name]
    places = [(_x(left, share), _y(top1)) for share, top1 in points]
    path = " ".join(f"{x:g},{y:g}" for x, y in places)
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}"{_stroke(dash)}/>',
        *(f'<circle cx="{x:g}" cy="{y:g}" r="2.5" fill="{colour}"/>' for x, y in places),
    ]


def _legend(height: float) -> list[str]:
    words = "top-1 % (upwards) against the share of the file's multiply-accumulates that is kept"
    lines = [f'<text x="{_LEFT}" y="{height - 32:g}">{words}</text>']
    for number, (name, (colour, dash)) in enumerate(_STYLES.items()):
        x, y = _LEFT + number * _ENTRY, height - 12
        lines.append(_line(x, y - 4, x + 26, y - 4, colour, _stroke(dash)))
        lines.append(f'<text x="{x + 32}" y="{y:g}">{escape(name)}</text>')
    return lines
