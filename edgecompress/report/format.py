"""How figures read, in one place: bytes, times, ratios, and the word ``unknown``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = [
    "UNKNOWN",
    "number",
    "size",
    "megabytes",
    "count",
    "ms",
    "us",
    "seconds",
    "ratio",
    "change",
    "percent",
    "decibels",
    "quantity",
    "brief",
    "plain",
    "clean",
    "shorten",
]

UNKNOWN = "unknown"
"""What stands where a figure was not taken: never 0, never a blank."""


def number(value: float | None, digits: int = 4) -> str:
    """A number with ``digits`` significant digits: 84.89, 0.8489, 1,234."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    # Rounding first: 99.96 with three digits is 100, not 100.0.
    value = float(f"{value:.{digits - 1}e}")
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """``value`` in the largest decimal unit that keeps it at least 1, with three digits."""
    scale = 0
    while abs(float(f"{value:.2e}")) >= 1000 and scale + 1 < len(units):
        value /= 1000
        scale += 1
    countable = scale == 0 and units[0] in ("B", "")
    text = f"{value:.0f}" if countable else number(value, 3)
    return f"{text} {units[scale]}".strip()


def size(value: float | None) -> str:
    """Bytes in decimal units: 512 B, 2.80 MB."""
    return UNKNOWN if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def megabytes(value: float | None) -> str:
    """Megabytes: 38.2 MB."""
    return UNKNOWN if value is None else size(value * 1e6)


def count(value: int | None) -> str:
    """A count such as parameters or MACs: 640, 2.59 M."""
    return UNKNOWN if value is None else _scaled(value, ("", "k", "M", "G", "T"))


def ms(value: float | None) -> str:
    """Milliseconds: 3.87 ms."""
    return UNKNOWN if value is None else f"{number(value, 3)} ms"


def us(value: float | None) -> str:
    """Microseconds, in a larger unit where that is shorter: 412 µs, 1.23 ms."""
    return UNKNOWN if value is None else _scaled(value, ("µs", "ms", "s"))


def seconds(value: float | None) -> str:
    """How long work took: 0.42 s, 41.3 s, 3 min 04 s."""
    if value is None:
        return UNKNOWN
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def ratio(value: float | None) -> str:
    """After over before: 0.49x."""
    return UNKNOWN if value is None else f"{value:.2f}x"


def change(before: float, after: float) -> str:
    """What was won or lost, with its sign: +0.11, -1.22; empty where that is no number."""
    difference = after - before
    if not math.isfinite(difference):
        return ""
    if abs(difference) <= 1e-9 * max(abs(before), abs(after)):
        return "±0"
    # As many decimals as the figures themselves show with four digits.
    return f"{difference:+.{max(3 - math.floor(math.log10(max(abs(before), abs(after)))), 0)}f}"


def percent(value: float | None) -> str:
    """A share between 0 and 1: 12.4 %."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def decibels(value: float | None) -> str:
    """Signal-to-noise ratio: 31.4 dB; ``exact`` where there is no noise at all."""
    if value is None:
        return UNKNOWN
    return "exact" if value == math.inf else f"{value:.1f} dB"


def quantity(value: float | None, unit: str) -> str:
    """A figure with its unit, in the form of that unit."""
    if value is None:
        return UNKNOWN
    known = {
        "bytes": size,
        "B": size,
        "MB": megabytes,
        "ms": ms,
        "us": us,
        "s": seconds,
        "dB": decibels,
        "x": ratio,
        "ratio": ratio,
    }
    if unit in known:
        return known[unit](value)
    return f"{brief(number(value))} {unit}".strip()


def brief(text: str) -> str:
    """A figure without the zeros at its end, for limits and axes: 2.50 MB becomes 2.5 MB."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda found: found[1].rstrip("."), text, count=1)


def plain(value: Any) -> str:
    """An option, note or condition as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return brief(number(value, 6))
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and value:
        return ", ".join(f"{k} = {plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple) and value:
        return ", ".join(plain(v) for v in value)
    return json.dumps(value, default=str)


def clean(text: str) -> str:
    """``text`` with each character that a terminal obeys or XML 1.0 forbids replaced by U+FFFD."""
    return "".join(c if c == "\n" or _harmless(c) else "\ufffd" for c in text)


def _harmless(character: str) -> bool:
    # Printable leaves out control characters, lone surrogates, and the marks that turn the
    # direction of text around; of the two last XML forbids only some.
    return character.isprintable() and character not in "\ufffe\uffff"


def shorten(text: str, width: int) -> str:
    """``text`` cut in the middle to at most ``width`` characters: both ends of a name tell."""
    if len(text) <= width:
        return text
    if width < 2:
        return "…"[:width]
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
