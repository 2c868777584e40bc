"""The goals of quantization, judged on what was found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from _common import MB, Verdict

from quantization.tables import Found, Row, best

__all__ = ["same_to_third_digit", "verdicts"]

LARGEST_DROP = 0.3
FAST = {"mobilenet_v1": 0.48, "minilm": 0.34}
INT4_MB = 16.0
LARGEST_PERPLEXITY = {"int4": 3.0, "int8": 0.3}  # per cent above float
COST_SHARE = 0.5


def verdicts(found: Sequence[Found], *, vnni: bool, judge_accuracy: bool = True) -> list[Verdict]:
    """All goals on all models.

    Args:
        found: The rows of each model.
        vnni: Whether the processor has the instructions that the latency goals ask for.
        judge_accuracy: False where too few rows were used to say anything.
    """
    listed = [verdict for each in found for verdict in _of_model(each, vnni)]
    if judge_accuracy:
        return listed
    return [replace(each, met=None) for each in listed]


def _of_model(found: Found, vnni: bool) -> Iterator[Verdict]:
    ours = best(found, "W8A8", ours=True)
    if ours is not None:
        yield from _accuracy(found, ours)
        if found.name in FAST:
            yield _accurate_and_fast(found, vnni)
        yield from _cost(found, ours)
    if found.name == "minilm":
        yield _small(found)
    if found.kind == "language":
        yield from _perplexity(found)
    yield from _float16(found)
    yield _never_slower(found)


def _accuracy(found: Found, ours: Row) -> Iterator[Verdict]:
    show = found.yardstick.shown
    assert ours.value is not None
    assert ours.drop is not None
    peer = best(found, "W8A8", ours=False)
    if peer is not None and peer.value is not None:
        yield Verdict(
            f"{found.title}: {found.yardstick.label} at W8A8 at least that of the best peer",
            f"{show(ours.value):.2f} against {show(peer.value):.2f} ({peer.title})",
            found.yardstick.at_least(ours.value, peer.value),
        )
    yield Verdict(
        f"{found.title}: W8A8 at most {LARGEST_DROP} points below float",
        f"{ours.drop:.2f}",
        _within(ours.drop, LARGEST_DROP),
    )


def _accurate_and_fast(found: Found, vnni: bool) -> Verdict:
    """Both in one file: the fastest of ours that is accurate enough, else the most accurate."""
    limit = FAST[found.name]
    goal = f"{found.title}: W8A8 at most {LARGEST_DROP} points below float at {limit} of latency"
    rows = [r for r in _ours(found, "W8A8") if r.latency is not None and r.drop is not None]
    if not rows:
        return Verdict(goal, "not measured", None)
    accurate = [row for row in rows if _within(row.drop or 0.0, LARGEST_DROP)]
    chosen = (
        min(accurate, key=lambda row: row.latency or math.inf)
        if accurate
        else min(rows, key=lambda row: row.drop or 0.0)
    )
    met = bool(accurate) and round(chosen.latency or math.inf, 2) <= limit
    shown = f"{chosen.drop:.2f} points at {chosen.latency:.2f} ({chosen.title})"
    return Verdict(goal, shown, met if vnni else None)


def _ours(found: Found, form: str) -> list[Row]:
    return [row for row in found.rows if row.ours and row.format == form]


def _cost(found: Found, ours: Row) -> Iterator[Verdict]:
    """Against the fastest peer of equal accuracy: it loses at most 0.3 points more than we do."""
    goal = f"{found.title}: at most {COST_SHARE} of the {{}} of the fastest peer of equal accuracy"
    equal = [
        row
        for row in found.rows
        if not row.ours and row.format == "W8A8" and row.cpu_seconds is not None
        if row.drop is not None and ours.drop is not None
        if row.drop <= max(ours.drop, 0.0) + LARGEST_DROP
    ]
    if not equal or ours.cpu_seconds is None or ours.peak_mb is None:
        for what in ("time", "peak memory"):
            yield Verdict(goal.format(what), "no peer is as accurate", None)
        return
    fastest = min(equal, key=lambda row: row.cpu_seconds or math.inf)
    cpu = ours.cpu_seconds / (fastest.cpu_seconds or math.inf)
    wall = (ours.seconds or math.inf) / (fastest.seconds or math.inf)
    peak = ours.peak_mb / (fastest.peak_mb or math.inf)
    yield Verdict(
        goal.format("time"),
        f"{cpu:.2f} (CPU), {wall:.2f} (wall) of {fastest.title}",
        max(cpu, wall) <= COST_SHARE,
    )
    yield Verdict(goal.format("peak memory"), f"{peak:.2f} of {fastest.title}", peak <= COST_SHARE)


def _small(found: Found) -> Verdict:
    """Of our files that are small enough, the most accurate; else the smallest."""
    goal = f"{found.title}: int4 at most {INT4_MB:.0f} MB and {LARGEST_DROP} points below float"
    rows = [r for r in _ours(found, "int4") if r.drop is not None and r.bytes is not None]
    if not rows:
        return Verdict(goal, "no such file", False)
    small = [row for row in rows if (row.bytes or 0) <= INT4_MB * MB]
    chosen = (
        min(small, key=lambda row: row.drop or 0.0)
        if small
        else min(rows, key=lambda row: row.bytes or 0)
    )
    drop, size = chosen.drop or 0.0, chosen.bytes or 0
    met = bool(small) and _within(drop, LARGEST_DROP)
    return Verdict(goal, f"{size / MB:.2f} MB, {drop:.2f} points ({chosen.title})", met)


def _perplexity(found: Found) -> Iterator[Verdict]:
    for form, limit in LARGEST_PERPLEXITY.items():
        goal = f"{found.title}: perplexity of {form} weights at most {limit} % above float"
        ours = best(found, form, ours=True)
        if ours is None or ours.drop is None:
            yield Verdict(goal, "no such file", False)
        else:
            yield Verdict(goal, f"{ours.drop:.2f} %", _within(ours.drop, limit))


def _float16(found: Found) -> Iterator[Verdict]:
    goal = f"{found.title}: float16 agrees with float to the metric's third digit"
    ours, reference = best(found, "float16", ours=True), found.reference
    if ours is None or ours.value is None or reference.value is None:
        yield Verdict(goal, "no such file", False)
        return
    yield Verdict(
        goal,
        f"{ours.value:.5g} against {reference.value:.5g}",
        same_to_third_digit(reference.value, ours.value),
    )


def _never_slower(found: Found) -> Verdict:
    goal = f"{found.title}: none of our files slower than float"
    measured = [row for row in found.rows if row.ours and row.latency is not None]
    if not measured:
        return Verdict(goal, "not measured", None)
    slowest = max(measured, key=lambda row: row.latency or 0.0)
    assert slowest.latency is not None
    shown = f"at most {slowest.latency:.2f} ({slowest.title})"
    return Verdict(goal, shown, round(slowest.latency, 2) <= 1.0)


def _within(drop: float, limit: float) -> bool:
    """Judged as it is shown, to two digits; a drop that is no number is none."""
    return math.isfinite(drop) and round(drop, 2) <= limit


def same_to_third_digit(reference: float, value: float) -> bool:
    """Whether two figures differ by at most half a unit of the third digit of the first."""
    if not reference or not math.isfinite(value):
        return value == reference
    unit = 10.0 ** (math.floor(math.log10(abs(reference))) - 2)
    return abs(value - reference) <= unit / 2
