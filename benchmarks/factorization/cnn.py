"""Convolutional networks: top-1 against kept MACs, data-aware against weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from _common import Verdict

from factorization.making import Given, Maker, Variant
from factorization.subjects import LEFT_OUT, prepare

__all__ = ["KEEPS", "LEFT_OUT", "LINES", "MODELS", "as_tables", "measure", "verdicts"]

MODELS = ("resnet20", "resnet56", "mobilenet_v1")
KEEPS = (0.8, 0.6, 0.4)
LINES = {
    "weights alone": {"objective": "input_agnostic", "ranks": "uniform", "refine": False},
    "data-aware": {"objective": "anchored", "ranks": "uniform", "refine": False},
    "data-aware, ranks by loss": {"objective": "anchored", "refine": False},
    "defaults": {},
}

Figures = dict[str, Any]


def measure(name: str, given: Given) -> Figures:
    """All files of one network, judged."""
    subject = prepare(name, quick=given.quick)
    maker = Maker(subject, given)
    lines: dict[str, list[Figures]] = {}
    for line, options in LINES.items():
        lines[line] = []
        for keep in KEEPS[2:3] if given.quick else KEEPS:
            told = {
                **options,
                "keep": keep,
                "budget": "macs",
                "rows": subject.data.calibration_rows,
                "never_slower": False,
            }
            lines[line].append({"keep": keep, **maker.made(Variant(line, keep, told))})
    return {
        "title": subject.title,
        "calibration_rows": subject.data.calibration_rows,
        "validation_rows": subject.data.validation_rows,
        "float": maker.reference(),
        "lines": lines,
        "left_out": LEFT_OUT,
    }


def share_of_macs(found: Mapping[str, Any], point: Mapping[str, Any]) -> float:
    """Of the whole file, against the float file."""
    return float(point["macs"] / found["float"]["macs"])


def as_tables(name: str, found: Figures) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, head and cells."""
    head = ("MACs asked for", *LINES)
    keeps = [point["keep"] for point in next(iter(found["lines"].values()))]
    top = found["float"]["figures"]["top1"]
    rows = [["1 (float)", *([f"{100 * top:.2f}"] * len(LINES))]]
    for number, keep in enumerate(keeps):
        points = [found["lines"][line][number] for line in LINES]
        rows.append([f"{keep:g}", *(_cell(found, point) for point in points)])
    return [(f"{found['title']}: top-1 % (share of the file's MACs)", head, rows)]


def _cell(found: Figures, point: Figures) -> str:
    if "failed" in point:
        return "-"
    return f"{100 * point['figures']['top1']:.2f} ({share_of_macs(found, point):.2f})"


def verdicts(name: str, found: Figures) -> list[Verdict]:
    """Data-aware at least as good as weights alone, at each share."""
    lines = found["lines"]
    pairs = [
        (a["keep"], a["figures"]["top1"], b["figures"]["top1"])
        for a, b in zip(lines["data-aware"], lines["weights alone"], strict=True)
        if "figures" in a and "figures" in b
    ]
    goal = f"{found['title']}: data-aware at least as good as weights alone"
    shown = ", ".join(f"{100 * (a - b):+.2f} at {keep:g}" for keep, a, b in pairs)
    met = all(a >= b for _, a, b in pairs) if pairs else None
    return [Verdict(goal, shown or "not measured", met)]
