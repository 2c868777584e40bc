"""Pieces of text that several verbs print."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.measure import Measurement
from edgecompress.report import figures
from edgecompress.report import format as fmt
from edgecompress.report.data import BudgetVerdict
from edgecompress.report.profile_table import estimate_lines
from edgecompress.report.text import table

__all__ = ["measurement", "budgets"]


def measurement(measured: Measurement) -> str:
    """Latency, load time and memory on a line each, with the word that says how they came."""
    latency = measured.latency_ms
    if latency is None:
        return f"not measured: {measured.reason or 'no reason given'}"
    if measured.basis == "estimated":
        lines = [
            f"latency  about {fmt.ms(latency.p50)} (estimated: {measured.reason})",
            f"memory   about {fmt.megabytes(measured.peak_memory_mb)}",
            *estimate_lines(measured),
        ]
        return "\n".join(lines)
    quantiles = f"p50 {fmt.ms(latency.p50)}, p90 {fmt.ms(latency.p90)}, p99 {fmt.ms(latency.p99)}"
    lines = [
        f"latency  {quantiles} ({measured.basis}, {latency.runs} runs)",
        f"load     {fmt.ms(measured.load_ms)}",
        f"memory   {fmt.megabytes(measured.peak_memory_mb)}{_parts(measured)}",
        f"size     {fmt.size(measured.size_bytes)}{_compressed(measured)}",
    ]
    if measured.latency_ratio is not None:
        lines.insert(1, f"ratio    {fmt.ratio(measured.latency_ratio)} of the reference's latency")
    return "\n".join(lines)


def _parts(measured: Measurement) -> str:
    memory = measured.memory
    if memory is None or memory.anonymous_mb is None or memory.file_mb is None:
        return ""
    over = measured.memory_over_runner_mb
    more = "" if over is None else f", {fmt.megabytes(over)} over the empty runner"
    return (
        f" at its peak{more}; at the end {fmt.megabytes(memory.anonymous_mb)} of its own and "
        f"{fmt.megabytes(memory.file_mb)} of files"
    )


def _compressed(measured: Measurement) -> str:
    size = measured.compressed_bytes
    return "" if size is None else f", {fmt.size(size)} compressed as app stores ship it"


def budgets(verdicts: Sequence[BudgetVerdict]) -> str:
    """Each budget with its verdict."""
    rows = [
        [
            verdict.name,
            fmt.quantity(verdict.limit, verdict.unit),
            fmt.quantity(verdict.value, verdict.unit),
            verdict.basis,
            figures.budget_word(verdict),
        ]
        for verdict in verdicts
    ]
    return table(["budget", "limit", "found", "basis", "verdict"], rows, align="lrrll")
