"""What the page draws of a factorization: spectra, ranks by layer, errors by block."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from markupsafe import Markup

from edgecompress.report import format as fmt
from edgecompress.report.curves import Axis, Drawing, linear, logarithmic
from edgecompress.report.factorization import BlockErrors, Factorization, RankedLayer
from edgecompress.report.factorization_tables import error_text

__all__ = ["Key", "Panel", "block_errors", "form_keys", "objective_keys", "ranks", "spectra"]

_PANELS, _CURVES, _BAND_POINTS = 12, 12, 41
_PANEL_HEIGHT, _RANKS_HEIGHT, _BLOCKS_HEIGHT = 120.0, 130.0, 200.0
_SPECTRUM_FLOOR = 1e-4
_LABELLED_BARS, _NAMED_TICKS = 40, 12
_FORMS = ("matrix", "output", "spatial", "tucker", "dense")
_OBJECTIVES = {
    "input_agnostic": "input agnostic (plain SVD)",
    "input_aware": "input-aware",
    "shift_aware": "shift-aware",
    "anchored": "anchored",
    "mixed": "mixed",
    "refined": "after refinement",
}


@dataclass(frozen=True)
class Panel:
    """Spectra of layers that have their role in common."""

    title: str
    detail: str
    svg: Markup


@dataclass(frozen=True)
class Key:
    """A line of the legend: class of the style sheet, and what it stands for."""

    style: str
    words: str


def spectra(found: Factorization) -> list[Panel]:
    """Remaining error against rank: a panel for each role that layers play, with a bound."""
    layers = [layer for layer in found.layers if len(layer.spectrum) > 1]
    if not layers:
        return []
    up = logarithmic([e for layer in layers for _, e in layer.spectrum], _SPECTRUM_FLOOR)
    groups: dict[tuple[str, str], list[RankedLayer]] = defaultdict(list)
    for layer in layers:
        groups[_role(layer)].append(layer)
    shown, rest = list(groups), list[RankedLayer]()
    if len(groups) > _PANELS:
        largest = sorted(groups, key=lambda role: -len(groups[role]))[: _PANELS - 1]
        shown = [role for role in groups if role in largest]
        rest = [layer for role in groups if role not in largest for layer in groups[role]]
    names = [name for name, _ in shown]
    # What an exporter only numbers is told apart by its size.
    titles = _unlike(names) if len(set(names)) > 1 else [size or name for name, size in shown]
    panels = [_panel(groups[role], name, up) for role, name in zip(shown, titles, strict=True)]
    return [*panels, _panel(rest, "others", up)] if rest else panels


def _role(layer: RankedLayer) -> tuple[str, str]:
    """The name without what counts repeats of a structure, and the size of the weight."""
    return re.sub(r"[._-]?\d+", "", layer.name) or layer.op, _size(layer)


def _size(layer: RankedLayer) -> str:
    return f"{layer.shape[0]} x {layer.shape[1]}" if layer.shape else ""


def _unlike(names: Sequence[str]) -> list[str]:
    """Names without the folders that all of them begin with."""
    parts = [re.split(r"(?<=[/.])", name) for name in names]
    common = zip(*(found[:-1] for found in parts), strict=False)
    alike = len(list(takewhile(lambda level: len(set(level)) == 1, common)))
    return ["".join(found[alike:]) for found in parts]


def _panel(layers: Sequence[RankedLayer], role: str, up: Axis) -> Panel:
    sizes = sorted({_size(layer) for layer in layers})
    size = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes"
    number = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
    drawing = Drawing(
        _PANEL_HEIGHT, up, f"{role}, {number}: remaining relative error by share of the rank"
    )
    for share in (0.0, 0.5, 1.0):
        drawing.tick(share, f"{share:g}", line=True)
    first = layers[0]
    if len(sizes) == 1 and first.full_rank and first.break_even:
        even = first.break_even / first.full_rank
        why = f"break-even: above {even:.2f} of the rank two factors are larger than the weight"
        drawing.upright(min(even, 1.0), "limit", why)
    if len(layers) <= _CURVES:
        for layer in layers:
            drawing.curve(layer.spectrum, "spectrum", layer.name)
    else:
        _band(drawing, layers)
    radius = 3.5 if len(layers) <= _CURVES else 2.5
    for layer in layers:
        chosen = _rank_share(layer)
        if chosen is not None:
            error = _on(layer.spectrum, chosen)
            why = f"{layer.name}: rank {layer.rank_text}, remaining error {error_text(error)}"
            drawing.dot(chosen, error, radius, "chosen", why)
    detail = ", ".join(part for part in (size, number) if part not in ("", role))
    return Panel(role, detail, drawing.markup())


def _band(drawing: Drawing, layers: Sequence[RankedLayer]) -> None:
    """All curves as the area that they fill, and the middle one of them at each place."""
    shares = [i / (_BAND_POINTS - 1) for i in range(_BAND_POINTS)]
    at = [sorted(_on(layer.spectrum, share) for layer in layers) for share in shares]
    lower = [(share, errors[0]) for share, errors in zip(shares, at, strict=True)]
    upper = [(share, errors[-1]) for share, errors in zip(shares, at, strict=True)]
    middle = [(share, errors[len(errors) // 2]) for share, errors in zip(shares, at, strict=True)]
    drawing.band(lower, upper, f"all {len(layers)} layers, from the least to the largest")
    drawing.curve(middle, "spectrum", f"median of {len(layers)} layers")


def _rank_share(layer: RankedLayer) -> float | None:
    """The chosen rank over the largest one; other forms than the matrix's have no place there."""
    return min(layer.ranks[0] / layer.full_rank, 1.0) if layer.ranks and layer.full_rank else None


def _on(points: Sequence[tuple[float, float]], share: float) -> float:
    """The error of a spectrum at a share of the rank, between its points as they are drawn."""
    if share <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= share <= x1:
            way = (share - x0) / (x1 - x0) if x1 > x0 else 1.0
            if min(y0, y1) <= 0:
                return y0 + way * (y1 - y0)
            return math.exp(math.log(y0) + way * (math.log(y1) - math.log(y0)))
    return points[-1][1]


def ranks(found: Factorization) -> Markup | None:
    """Elements kept of each layer, in graph order, or None where no layer is known."""
    layers = found.layers
    if not layers:
        return None
    highest = max([1.0, *(layer.share or 0.0 for layer in layers)])
    up = linear(highest, 0.25 if highest <= 1.5 else 2.0 ** math.ceil(math.log2(highest / 5)))
    kept = [layer for layer in layers if layer.ranks]
    label = f"{len(kept)} of {len(layers)} layers factorized; the table below has their ranks"
    drawing = Drawing(_RANKS_HEIGHT, up, label)
    width = 1 / len(layers)
    for place, layer in enumerate(layers):
        shown = 0.0 if layer.share is None else layer.share
        drawing.column(
            (place + 0.12) * width, 0.76 * width, shown, _form(layer.kind), _rank_tip(layer)
        )
        if layer.share is None or (layer.ranks and len(layers) <= _LABELLED_BARS):
            text = " ".join(map(str, layer.ranks)) if len(layers) <= _LABELLED_BARS else "?"
            drawing.words((place + 0.5) * width, shown, text, "tick wide")
    drawing.across(1.0, "limit")
    _count(drawing, len(layers))
    return drawing.markup()


def _rank_tip(layer: RankedLayer) -> str:
    if not layer.ranks:
        return f"{layer.name}: dense"
    size = f" of {layer.full_rank:g}" if layer.full_rank else ""
    return (
        f"{layer.name}: {layer.kind}, rank {layer.rank_text}{size}, "
        f"{fmt.percent(layer.share)} of the elements, error {error_text(layer.error)}"
    )


def _count(drawing: Drawing, number: int) -> None:
    """Places from 1 to ``number`` below a drawing, some of them named."""
    step = next(
        factor * 10**power
        for power in range(9)
        for factor in (1, 2, 5)
        if number / (factor * 10**power) <= _NAMED_TICKS
    )
    for place in range(step, number + 1, step) if step > 1 else range(1, number + 1):
        drawing.tick((place - 0.5) / number, str(place))


def block_errors(found: Factorization) -> Markup | None:
    """Error of each block's output along the depth, or None where no error is known."""
    blocks, names = found.blocks, found.objectives
    if not names:
        return None
    up = logarithmic(error for block in blocks for error in block.errors.values())
    label = f"Relative squared error of {len(blocks)} blocks by objective; the table below has it"
    drawing = Drawing(_BLOCKS_HEIGHT, up, label)
    _count(drawing, len(blocks))
    for place, block in enumerate(blocks):
        if block.rolled_back:
            why = f"{block.name}: refinement undone: {block.reason or 'no reason was given'}"
            drawing.upright((place + 0.5) / len(blocks), "undone", why)
    for name in names:
        _objective(drawing, blocks, name, thick=name == found.settings.get("objective"))
    return drawing.markup()


def _objective(drawing: Drawing, blocks: Sequence[BlockErrors], name: str, *, thick: bool) -> None:
    style = f"objective {_style(name)}{' wanted' if thick else ''}"
    words = _OBJECTIVES.get(name, name)
    radius = 3.0 if len(blocks) <= 60 else 1.5
    known: list[tuple[float, float]] = []
    for place, block in enumerate(blocks):
        error = block.errors.get(name)
        if error is not None:
            known.append(((place + 0.5) / len(blocks), error))
        if known and (error is None or place == len(blocks) - 1):
            if len(known) > 1:
                drawing.curve(known, style, words)
            known = []
    for place, block in enumerate(blocks):
        if (error := block.errors.get(name)) is not None:
            undone = name == "refined" and block.rolled_back
            why = f"{block.name}, {words}: {error_text(error)}{', undone' if undone else ''}"
            mark = f"{style} hollow" if undone else style
            drawing.dot((place + 0.5) / len(blocks), error, radius, mark, why)


def _style(name: str) -> str:
    return name if name in _OBJECTIVES else "unnamed"


def objective_keys(found: Factorization) -> list[Key]:
    """The legend of :func:`block_errors`, in the order of the lines at the last block."""
    last = found.blocks[-1].errors if found.blocks else {}
    ordered = sorted(found.objectives, key=lambda name: -last.get(name, 0.0))
    return [Key(f"objective {_style(name)}", _OBJECTIVES.get(name, name)) for name in ordered]


def form_keys(found: Factorization) -> list[Key]:
    """The legend of :func:`ranks`."""
    used = dict.fromkeys(layer.kind for layer in found.layers)
    ordered = [*(form for form in _FORMS if form in used), *(f for f in used if f not in _FORMS)]
    return [Key(_form(form), form) for form in ordered]


def _form(kind: str) -> str:
    return f"form {kind}" if kind in _FORMS else "form"
