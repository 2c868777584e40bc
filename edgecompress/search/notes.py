"""What a build says of its search in a few lines."""

from __future__ import annotations

from collections.abc import Iterable

from edgecompress.report import format as fmt
from edgecompress.report.data import CandidateReport, GiveBackReport, SearchReport

__all__ = ["search_notes"]

_NAMED = 5


def search_notes(report: SearchReport, metric: str) -> list[str]:
    """Lines for the report's notes: what was chosen, what was given back, what was left out."""
    chosen = next(each for each in report.candidates if each.status == "chosen")
    notes = [_float(report, chosen) if not chosen.passes else _chosen(chosen, metric)]
    for cause, words in (("accuracy", "lost accuracy"), ("time", "lost time")):
        given = [each for each in chosen.gave_back if each.cause == cause]
        if given:
            notes.append(f"gave back to float what {words}: {_named(given)}")
    if not report.complete:
        left = [each.name for each in report.candidates if each.status == "not tried"]
        rest = f"; not tried: {', '.join(left)}" if left else ""
        notes.append(f"the search's time was over, the best file so far is delivered{rest}")
    if report.allowed_by == "default":
        notes.append(
            f"no budget names metric_drop: the search allowed {report.allowed_drop:.4g}, "
            "1 % of the float model's figure"
        )
    return notes


def _chosen(chosen: CandidateReport, metric: str) -> str:
    facts = []
    if chosen.latency_ratio is not None:
        facts.append(f"{fmt.ratio(chosen.latency_ratio)} the float model's time")
    if chosen.size_bytes is not None:
        facts.append(fmt.size(chosen.size_bytes))
    if chosen.metric_drop is not None:
        word = "better" if chosen.metric_drop < 0 else "worse"
        facts.append(f"{metric} {word} by {fmt.brief(fmt.number(abs(chosen.metric_drop)))}")
    return f"the search chose {chosen.name}, {chosen.reason}: {', '.join(facts)}"


def _float(report: SearchReport, chosen: CandidateReport) -> str:
    others = [each for each in report.candidates if each is not chosen and each.parent is None]
    why = "; ".join(f"{each.name}: {each.status}" for each in others) or "there are none"
    return f"no candidate beats the float model, which is delivered ({why})"


def _named(given: Iterable[GiveBackReport]) -> str:
    texts = [f"{each.node} ({each.op}: {each.detail})" for each in given]
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return "; ".join(texts[:_NAMED]) + more
