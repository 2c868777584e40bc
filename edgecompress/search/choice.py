"""Which of the trials is the best, and what to say of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgecompress.report import format as fmt
from edgecompress.search.trials import Trial

__all__ = ["NOISE", "Objective", "choose", "is_slower", "settle", "speed_of"]

NOISE = 0.03
"""Ratios of time that differ by less are equal: the same file measured twice differs by as much."""

Objective = Literal["latency", "size"]


def speed_of(trial: Trial) -> float:
    """Time per inference over that of the float model; 1 where it was not measured."""
    return 1.0 if trial.speed is None else trial.speed


def is_slower(trial: Trial, reference: Trial) -> bool:
    """Whether a trial takes more time than another, beyond noise; not where that is unknown."""
    return trial.speed is not None and trial.speed > speed_of(reference) * (1 + NOISE)


def choose(trials: Sequence[Trial], objective: Objective) -> Trial:
    """The best of the trials that have no status yet; the first one is float, and always is one.

    Those that keep the most budgets come first. By latency, none that is slower than float is
    taken, and the smallest wins among those that are equally fast; where no time is known, the
    first that was tried.
    """
    plain = trials[0]
    fit = [t for t in trials if t.status is None]
    if objective == "latency":
        fit = [t for t in fit if not is_slower(t, plain)]
    fewest = min(len(t.missed) for t in fit)
    fit = [t for t in fit if len(t.missed) == fewest]
    if objective == "size":
        return min(fit, key=lambda t: (t.size_bytes or 0, speed_of(t)))
    compressed = [t for t in fit if not t.is_float]
    if compressed and all(t.speed is None for t in compressed):
        return compressed[0]
    least = min(map(speed_of, fit))
    equal = [t for t in fit if speed_of(t) <= least * (1 + NOISE)]
    return min(equal, key=lambda t: (t.size_bytes or 0, speed_of(t)))


def settle(trials: Sequence[Trial], chosen: Trial, objective: Objective) -> None:
    """Give each trial its status, in the light of the one that was chosen."""
    plain = trials[0]
    for trial in trials:
        if trial is chosen:
            trial.end("chosen", _why_chosen(trial, trials, objective))
        elif trial.status is not None:
            continue
        elif objective == "latency" and is_slower(trial, plain):
            trial.end("slower than float", _why_slower(trial, plain))
        elif len(trial.missed) > len(chosen.missed):
            trial.end("misses a budget", ", ".join(trial.missed))
        else:
            trial.end("outdone", _why_outdone(trial, chosen, objective))


def _why_chosen(trial: Trial, trials: Sequence[Trial], objective: Objective) -> str:
    if trial.is_float:
        return "no candidate is better" if len(trials) > 1 else "there are no candidates"
    if objective == "size":
        return "the smallest that keeps all" if not trial.missed else "the smallest"
    if trial.speed is None:
        return "the first that keeps all; nothing can be measured on this target"
    return "the fastest that keeps all" if not trial.missed else "the fastest"


def _why_slower(trial: Trial, plain: Trial) -> str:
    against = "" if plain.speed in (None, 1.0) else f", float takes {fmt.ratio(plain.speed)}"
    return f"it takes {fmt.ratio(trial.speed)} the time{against}"


def _why_outdone(trial: Trial, chosen: Trial, objective: Objective) -> str:
    if objective == "latency" and trial.speed is None and not trial.is_float:
        return f"{chosen.name} was tried before it"
    if objective == "latency" and speed_of(trial) > speed_of(chosen) * (1 + NOISE):
        return f"{chosen.name} is faster"
    if (trial.size_bytes or 0) > (chosen.size_bytes or 0):
        same = "as fast, and " if objective == "latency" and chosen.speed is not None else ""
        return f"{chosen.name} is {same}smaller"
    return f"{chosen.name} is as good, and faster"
