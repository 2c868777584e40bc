"""A candidate with some of its nodes back in float."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace

from edgecompress.graph_pass import Change
from edgecompress.report import format as fmt
from edgecompress.report.data import GiveBackReport
from edgecompress.search.candidates import Candidate
from edgecompress.search.noisy_nodes import Noise
from edgecompress.search.slow_nodes import Loss
from edgecompress.search.trials import Trial

__all__ = ["changes_of", "for_accuracy", "for_time", "without"]


def changes_of(trial: Trial) -> list[Change]:
    """All that the passes of a trial changed, and can be told to leave alone."""
    return [change for each in trial.taken for change in each.applied.changed]


def without(parent: Trial, given: Sequence[GiveBackReport]) -> Trial:
    """A trial of the same passes that leaves nodes out: each in the last pass that changed it."""
    passes = list(parent.candidate.passes)
    for each in given:
        for taken in reversed(parent.taken):
            if any(change.node == each.node for change in taken.applied.changed):
                at = next(i for i, p in enumerate(parent.candidate.passes) if p is taken.step)
                left_out = {**passes[at].nodes, glob.escape(each.node): False}
                passes[at] = replace(passes[at], nodes=left_out)
                break
    root = parent
    while root.parent is not None:
        root = root.parent
    gave_back = (*parent.gave_back, *given)
    name = f"{root.name}, {len(gave_back)} in float"
    return Trial(Candidate(name, tuple(passes), own=True), parent=parent, gave_back=gave_back)


def for_time(losses: Sequence[Loss]) -> list[GiveBackReport]:
    """Nodes that lose time, with the figures."""
    return [
        GiveBackReport(
            node=loss.node,
            op=loss.op,
            cause="time",
            detail=f"{fmt.us(loss.before_us)} in float, {fmt.us(loss.after_us)} compressed and "
            f"{fmt.us(loss.conversions_us)} for conversions",
        )
        for loss in losses
    ]


def for_accuracy(noises: Sequence[Noise]) -> list[GiveBackReport]:
    """Nodes that make error, with the figures."""
    return [
        GiveBackReport(
            node=noise.node,
            op=noise.op,
            cause="accuracy",
            detail=_error(noise),
        )
        for noise in noises
    ]


def _error(noise: Noise) -> str:
    own = "" if noise.own is None else f"its own error is {_percent(noise.own)} of its output"
    gain = "" if noise.gain is None else f"{_percent(noise.gain)} of the model's outputs"
    return ", ".join(filter(None, (own, gain))) or "its error is unknown"


def _percent(share: float) -> str:
    return f"{fmt.brief(fmt.number(100 * share, 2))} %"
