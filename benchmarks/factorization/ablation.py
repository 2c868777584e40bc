"""Objectives with and without refinement against plain SVD and SVD-LLM, all on the same rows.

Ranks are uniform, not rounded for any device, and no layer is left out for being slow: what differs
is how the factors are found. The pass with its own defaults, which choose ranks, too, stands
beside. Ours hold one batch in eight back to watch themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from _common import Verdict, table

from factorization.making import Given, Maker, Variant
from factorization.subjects import prepare

__all__ = ["KEEPS", "MODELS", "as_tables", "measure", "variants", "verdicts"]

MODELS = ("llama10m", "minilm")
KEEPS = (0.8, 0.6, 0.4)
BASELINE = "SVD-LLM"
PLAIN = "plain SVD"
CHECK = "input_aware, no damping"
DEFAULTS = "defaults"
UNREFINED = "defaults, unrefined"
_REFINED = ", refined"
# Refinement takes minutes for each: of those that start from something else only.
_TRAINED = ("input_agnostic", "input_aware", "anchored")
# Share of whitening's increase that is to be left.
GOALS = {0.6: 1 / 2, 0.4: 1 / 3}
# Figures this near count as equal.
_NOISE = 0.01
_SAME = 0.03
_PLATEAU = 1.25

Figures = dict[str, Any]


def variants(keep: float, *, rows: int) -> list[Variant]:
    """All files at one share: peers, ours without refinement, ours with it."""
    from edgecompress.factorization.parts import Objective

    plain = {"keep": keep, "rows": rows, "never_slower": False}
    common = {**plain, "ranks": "uniform"}
    listed = [Variant(PLAIN, keep, peer="svd"), Variant(BASELINE, keep, peer="svd_llm")]
    check = {**common, "objective": "input_aware", "refine": False, "damping": 0.0}
    listed.append(Variant(CHECK, keep, check))
    for refine in (False, True):
        for objective in _TRAINED if refine else get_args(Objective):
            title = objective + (_REFINED if refine else "")
            listed.append(
                Variant(title, keep, {**common, "objective": objective, "refine": refine})
            )
    listed.append(Variant(UNREFINED, keep, {**plain, "refine": False}))
    listed.append(Variant(DEFAULTS, keep, plain))
    return listed


def measure(name: str, given: Given, keeps: tuple[float, ...] = KEEPS) -> Figures:
    """All files of one model, judged."""
    subject = prepare(name, quick=given.quick)
    maker = Maker(subject, given)
    found: Figures = {
        "title": subject.title,
        "calibration_rows": subject.data.calibration_rows,
        "calibration_tokens": subject.tokens,
        "validation_rows": subject.data.validation_rows,
        "blocks": maker.judge.blocks,
        "defaults": _defaults(),
        "float": maker.reference(),
        "rows": [],
    }
    for keep in keeps[1:2] if given.quick else keeps:
        for variant in variants(keep, rows=subject.data.calibration_rows):
            made = maker.made(variant)
            found["rows"].append({"title": variant.title, "keep": keep, **made})
    return found


def _defaults() -> Figures:
    from edgecompress.graph_pass import make_pass, pass_names

    return make_pass("factorize", {}).options() if "factorize" in pass_names() else {}


def row(found: Figures, title: str, keep: float) -> Figures | None:
    """The row of a variant, if it has figures."""
    for each in found["rows"]:
        if each["title"] == title and each["keep"] == keep and "figures" in each:
            return dict(each)
    return None


def _increase(found: Figures, each: Mapping[str, Any], figure: str) -> float:
    return float(each["figures"][figure] - found["float"]["figures"][figure])


def main_figure(name: str) -> str:
    """What the goals are about: perplexity, or the embeddings' distance from float's."""
    return "perplexity" if name == "llama10m" else "loss"


def _ratio(found: Figures, each: Mapping[str, Any], figure: str) -> float | None:
    base = row(found, BASELINE, each["keep"])
    if base is None:
        return None
    return _increase(found, each, figure) / _increase(found, base, figure)


_COLUMNS = {
    "llama10m": (
        ("perplexity", "perplexity", 1.0, 2),
        ("other_perplexity", "of other text", 1.0, 2),
    ),
    "minilm": (
        ("loss", "squared distance", 1.0, 4),
        ("spearman", "Spearman x 100", 100.0, 2),
        ("sts_loss", "STS loss", 1.0, 4),
    ),
}


def as_tables(name: str, found: Figures) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, head and cells of the tables of one model."""
    columns = _COLUMNS[name]
    head = ["kept", ""]
    for _, label, *_ in columns:
        head += [label, "increase", "of whitening's"]
    listed = [["1", "float", *_cells(found, {**found["float"], "keep": 1.0}, columns, bare=True)]]
    for each in found["rows"]:
        if "figures" in each:
            listed.append([f"{each['keep']:g}", each["title"], *_cells(found, each, columns)])
    depth_head = ("kept", "", *(f"{number}" for number in range(1, len(found["blocks"]) + 1)))
    depth = [
        [f"{each['keep']:g}", each["title"], *(f"{error:.4f}" for error in each["depth"])]
        for each in found["rows"]
        if "depth" in each
    ]
    costs = [
        [f"{each['keep']:g}", each["title"], *_costs(each)]
        for each in found["rows"]
        if "figures" in each
    ]
    cost_head = ("kept", "", "wall s", "CPU s", "peak MB", "layers", "MB")
    title = found["title"]
    return [
        (title, tuple(head), listed),
        (f"{title}: squared error behind each block, to its power", depth_head, depth),
        (f"{title}: cost", cost_head, costs),
    ]


def _cells(found: Figures, each: Any, columns: Any, *, bare: bool = False) -> list[str]:
    cells = []
    for figure, _, scale, digits in columns:
        cells.append(f"{each['figures'][figure] * scale:.{digits}f}")
        if bare:
            cells += ["-", "-"]
            continue
        ratio = _ratio(found, each, figure)
        cells.append(f"{_increase(found, each, figure) * scale:+.{digits}f}")
        cells.append("-" if ratio is None else f"{ratio:.2f}")
    return cells


def _costs(each: Mapping[str, Any]) -> list[str]:
    peak, layers = each.get("peak_mb"), each.get("layers")
    return [
        f"{each['seconds']:.0f}",
        f"{each['cpu_seconds']:.0f}",
        "-" if peak is None else f"{peak:.0f}",
        "-" if layers is None else str(layers),
        f"{each['bytes'] / 1e6:.1f}",
    ]


def as_text(name: str, found: Figures) -> str:
    """For the terminal."""
    failed = [f"{r['keep']:g} {r['title']}: {r['failed']}" for r in found["rows"] if "failed" in r]
    return "\n\n".join([*(table(*each) for each in as_tables(name, found)), *failed])


def verdicts(name: str, found: Figures) -> list[Verdict]:
    """The goals on one model."""
    figure, listed = main_figure(name), []
    for keep in dict.fromkeys(each["keep"] for each in found["rows"]):
        about = f"{found['title']}, {keep:g} kept"
        listed.append(_same_as_peer(about, found, keep, figure))
        listed.append(_order(about, found, keep, figure))
        listed.append(_refinement_helps(about, found, keep, figure))
        listed.append(_rescue(about, found, keep, figure))
        listed.append(_plateau(about, found, keep))
        if keep in GOALS:
            listed.append(_against_whitening(about, found, keep, figure))
    return listed


def _increases(found: Figures, keep: float, figure: str, *titles: str) -> list[float] | None:
    rows = [row(found, title, keep) for title in titles]
    return None if None in rows else [_increase(found, r, figure) for r in rows if r is not None]


def _same_as_peer(about: str, found: Figures, keep: float, figure: str) -> Verdict:
    goal = f"{about}: our input_aware without damping is SVD-LLM's whitening, {_SAME:.0%} apart"
    both = _increases(found, keep, figure, CHECK, BASELINE)
    if both is None:
        return Verdict(goal, "not measured", None)
    apart = both[0] / both[1] - 1
    return Verdict(goal, f"{figure} increases by {apart:+.1%} more", abs(apart) <= _SAME)


def _order(about: str, found: Figures, keep: float, figure: str) -> Verdict:
    goal = f"{about}, unrefined: anchored <= input_aware < shift_aware << plain SVD"
    titles = ("anchored", "input_aware", "shift_aware", PLAIN)
    values = _increases(found, keep, figure, *titles)
    if values is None:
        return Verdict(goal, "not measured", None)
    anchored, aware, shift, plain = values
    met = anchored <= aware * (1 + _NOISE) and aware < shift and 2 * shift < plain
    return Verdict(goal, f"{figure} " + ", ".join(f"+{value:.4g}" for value in values), met)


def _refinement_helps(about: str, found: Figures, keep: float, figure: str) -> Verdict:
    goal = f"{about}: refinement improves every start"
    starts = [t for t in _unrefined(found, keep) if row(found, t + _REFINED, keep) is not None]
    if not starts:
        return Verdict(goal, "not measured", None)
    shares = {}
    for title in starts:
        values = _increases(found, keep, figure, title + _REFINED, title)
        assert values is not None
        shares[title] = values[0] / values[1]
    shown = ", ".join(f"{title} x {share:.2f}" for title, share in shares.items())
    return Verdict(goal, f"{figure}'s increase: {shown}", max(shares.values()) < 1)


def _unrefined(found: Figures, keep: float) -> list[str]:
    from edgecompress.factorization.parts import Objective

    return [name for name in get_args(Objective) if row(found, name, keep) is not None]


def _rescue(about: str, found: Figures, keep: float, figure: str) -> Verdict:
    goal = f"{about}: refined from plain SVD, better than whitening alone"
    values = _increases(found, keep, figure, "input_agnostic" + _REFINED, BASELINE)
    if values is None:
        return Verdict(goal, "not measured", None)
    shown = f"{figure} +{values[0]:.4g} against +{values[1]:.4g}"
    return Verdict(goal, shown, values[0] < values[1])


def _plateau(about: str, found: Figures, keep: float) -> Verdict:
    """Over the second half of the depth, whose last block is the one that ends the network."""
    goal = f"{about}: the error behind blocks grows at most {_PLATEAU} times over the second half"
    ours, base = row(found, DEFAULTS, keep), row(found, BASELINE, keep)
    if ours is None or base is None:
        return Verdict(goal, "not measured", None)
    grown, whitening = (_growth(each["depth"]) for each in (ours, base))
    shown = f"{grown:.2f} (defaults); SVD-LLM {whitening:.2f}"
    return Verdict(goal, shown, grown <= _PLATEAU)


def _growth(errors: list[float]) -> float:
    inner = [error for error in errors[:-1] if error > 0]
    return inner[-1] / inner[(len(inner) - 1) // 2] if inner else math.nan


def _against_whitening(about: str, found: Figures, keep: float, figure: str) -> Verdict:
    goal = f"{about}: increase of {figure} at most {GOALS[keep]:.2f} of whitening's alone"
    titles = [DEFAULTS, *(f"{name}{_REFINED}" for name in _unrefined(found, keep))]
    ratios = {
        title: ratio
        for title in titles
        if (each := row(found, title, keep)) is not None
        if (ratio := _ratio(found, each, figure)) is not None
    }
    if DEFAULTS not in ratios:
        return Verdict(goal, "not measured", None)
    best = min(ratios, key=lambda title: ratios[title])
    shown = f"{ratios[DEFAULTS]:.2f} (defaults); the best, {best}: {ratios[best]:.2f}"
    return Verdict(goal, shown, ratios[DEFAULTS] <= GOALS[keep])
