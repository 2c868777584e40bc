"""A factorization as tables, and as lines for the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median_low

from edgecompress.report import format as fmt
from edgecompress.report.factorization import BlockErrors, Factorization, RankedLayer

__all__ = ["Cell", "Table", "block_table", "error_text", "facts", "layer_table", "lines"]

_REASONS_SHOWN = 5


def error_text(value: float | None) -> str:
    """A relative error with two digits."""
    return fmt.number(value, 2)


def facts(found: Factorization) -> dict[str, str]:
    """Settings and sums, line by line."""
    told = {key: fmt.plain(value) for key, value in found.settings.items()}
    for name, sums in (("parameters", found.parameters), ("MACs", found.macs)):
        if sums is not None:
            told[name] = _sums(sums)
    if found.layers:
        told["layers"] = _counts(found)
    if ranks := [rank for layer in found.factorized for rank in layer.ranks]:
        told["rank"] = f"{min(ranks)} to {max(ranks)}, median {median_low(ranks)}"
    return told


def _sums(pair: tuple[float, float]) -> str:
    before, after = pair
    part = f" ({fmt.ratio(after / before)})" if before > 0 else ""
    return f"{fmt.count(round(before))} -> {fmt.count(round(after))}{part}"


def _counts(found: Factorization) -> str:
    kinds = Counter(layer.kind for layer in found.factorized)
    forms = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    text = f"{len(found.factorized)} of {len(found.layers)} factorized"
    return f"{text} ({forms})" if forms else text


def lines(found: Factorization) -> list[str]:
    """What the terminal shows of it."""
    told = facts(found)
    settings = [f"{key} {told[key]}" for key in found.settings]
    shown = [", ".join(settings)] if settings else []
    shown += [
        f"{key}: {told[key]}" for key in ("layers", "rank", "parameters", "MACs") if key in told
    ]
    shown += _worst(found)
    undone = [block for block in found.blocks if block.rolled_back]
    shown += [
        f"refinement undone: {block.name}: {block.reason or 'no reason was given'}"
        for block in undone[:_REASONS_SHOWN]
    ]
    if len(undone) > _REASONS_SHOWN:
        shown.append(f"and of {len(undone) - _REASONS_SHOWN} more blocks, in report.html")
    return [fmt.clean(line) for line in shown]


def _worst(found: Factorization) -> list[str]:
    """The worst block by the objective that was asked for, and by what refinement left."""
    names = [n for n in found.objectives if n in (found.settings.get("objective"), "refined")]
    told = []
    for name in names or found.objectives:
        known = [block for block in found.blocks if name in block.errors]
        worst = max(known, key=lambda block: block.errors[name])
        after = "after refinement" if name == "refined" else name.replace("_", " ")
        told.append(f"{error_text(worst.errors[name])} {after} ({worst.name})")
    return [f"worst block error: {'; '.join(told)}"] if told else []


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, and what it sorts by where that is a number."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Headings, each with whether figures stand below it, and rows."""

    headings: tuple[tuple[str, bool], ...]
    rows: list[list[Cell]]


def layer_table(found: Factorization) -> Table:
    """All layers, with their places in the graph."""
    texts = ("Layer", "Operator", "Form")
    figures = ["Weight", "Rank", "Kept", "Error"]
    timed = any(layer.seconds for layer in found.layers)
    if timed:
        figures += ["Time dense", "Time factors"]
    headings = (("#", True), *((text, False) for text in texts), *((f, True) for f in figures))
    rows = [_layer_row(place, layer) for place, layer in enumerate(found.layers, start=1)]
    return Table(headings, [row[: len(headings)] for row in rows])


def _layer_row(place: int, layer: RankedLayer) -> list[Cell]:
    shape = f"{layer.shape[0]} x {layer.shape[1]}" if layer.shape else fmt.UNKNOWN
    size = float(layer.shape[0] * layer.shape[1]) if layer.shape else None
    before, after = layer.seconds or (None, None)
    return [
        Cell(str(place), place),
        Cell(layer.name),
        Cell(layer.op),
        Cell(layer.kind),
        Cell(shape, size),
        Cell(layer.rank_text, float(layer.ranks[0]) if layer.ranks else None),
        Cell(fmt.percent(layer.share), layer.share),
        Cell(error_text(layer.error) if layer.ranks else "-", layer.error),
        Cell(_time(before), before),
        Cell(_time(after), after),
    ]


def _time(seconds: float | None) -> str:
    return fmt.UNKNOWN if seconds is None else fmt.us(1e6 * seconds)


def block_table(found: Factorization) -> Table:
    """All blocks, along the depth."""
    names = found.objectives
    headings = tuple((name.replace("_", " "), True) for name in names)
    rows = [
        [
            Cell(str(place), place),
            Cell(block.name),
            *(Cell(error_text(block.errors.get(name)), block.errors.get(name)) for name in names),
            Cell(_judged(block)),
        ]
        for place, block in enumerate(found.blocks, start=1)
    ]
    return Table((("#", True), ("Block", False), *headings, ("Refinement", False)), rows)


def _judged(block: BlockErrors) -> str:
    if block.rolled_back:
        return f"undone: {block.reason}" if block.reason else "undone"
    return "kept" if "refined" in block.errors else block.reason or "none"
