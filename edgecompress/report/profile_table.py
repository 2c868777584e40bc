"""What the terminal and the page say of a table of profiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from edgecompress.measure import Measurement
from edgecompress.report import format as fmt
from edgecompress.report.agreement import departure_lines
from edgecompress.report.placement import placement_lines
from edgecompress.report.profile_data import ProfileResult, ProfileTable
from edgecompress.report.text import table

__all__ = [
    "HEADERS",
    "title",
    "short_name",
    "cells",
    "shape_text",
    "outputs_text",
    "status",
    "as_text",
    "details",
]

HEADERS = ("model", "target", "p50", "p99", "ratio", "memory", "size", "outputs", "status")
_MOST_BREAKS = 5


def title(found: ProfileTable) -> str:
    """What the table is of: ``2 models on 3 targets``."""
    models = len({row.model for row in found.rows})
    targets = len({(row.target, row.device) for row in found.rows})
    plural = ["" if number == 1 else "s" for number in (models, targets)]
    return f"{models} model{plural[0]} on {targets} target{plural[1]}"


def short_name(row: ProfileResult) -> str:
    """The model without its folder."""
    return PurePath(row.model).name


def shape_text(row: ProfileResult) -> str:
    """Shapes of the inputs: ``x 1x3x224x224``."""
    return ", ".join(f"{name} {'x'.join(map(str, dims))}" for name, dims in row.shapes.items())


def outputs_text(row: ProfileResult) -> str:
    """Agreement with onnxruntime in a word and a figure."""
    if row.agreement is None:
        return ""
    word = "agree" if row.agreement.passed else "WRONG"
    return f"{word}, {fmt.brief(fmt.number(row.agreement.worst.relative_error, 2))}"


def status(row: ProfileResult) -> str:
    """What became of the row, in a few words."""
    if row.error is not None:
        return "failed"
    if row.unsupported:
        plural = "" if len(row.unsupported) == 1 else "s"
        return f"{len(row.unsupported)} node{plural} not taken"
    if row.agreement is not None and not row.agreement.passed:
        return "wrong outputs"
    measured = row.measurement
    if measured.conditions is not None and not measured.conditions.quiet:
        return f"{measured.basis}, busy machine"
    return measured.basis


def _latency(measured: Measurement, quantile: str) -> str:
    if measured.latency_ms is None:
        return ""
    about = "" if measured.basis == "measured" else "~"
    return f"{about}{fmt.ms(getattr(measured.latency_ms, quantile))}"


def cells(row: ProfileResult) -> list[str]:
    """A row of the table, under :data:`HEADERS`."""
    measured = row.measurement
    ratio = measured.latency_ratio
    memory = measured.peak_memory_mb
    return [
        short_name(row),
        row.target if row.device == "local" else f"{row.target} at {row.device}",
        _latency(measured, "p50"),
        _latency(measured, "p99") if measured.basis == "measured" else "",
        "" if ratio is None else fmt.ratio(ratio),
        "" if memory is None else fmt.megabytes(memory),
        fmt.size(measured.size_bytes),
        outputs_text(row),
        status(row),
    ]


def as_text(found: ProfileTable) -> str:
    """The table, and below it what needs saying of single rows."""
    several = len({shape_text(row) for row in found.rows}) > 1
    headers = [*HEADERS, "shapes"] if several else [*HEADERS]
    rows = [[*cells(row), shape_text(row)] if several else cells(row) for row in found.rows]
    align = "llrrrrrll" + ("l" if several else "")
    lines = [table(headers, rows, align=align, whole_names=True)]
    for row in found.rows:
        said = list(details(row))
        if said:
            lines += ["", f"{short_name(row)} on {row.target}", *(f"  {s}" for s in said)]
    return "\n".join(lines)


def estimate_lines(measured: Measurement) -> Iterator[str]:
    """How far to trust an estimate; nothing for others."""
    if measured.expected_error is not None:
        yield f"the truth is expected within a factor of {measured.expected_error:.2g}"
    if measured.note:
        yield measured.note


def details(row: ProfileResult, *, basis: bool = True) -> Iterator[str]:
    """What went wrong, what keeps nodes from where they should run, and what was done.

    Args:
        row: The profile.
        basis: Also say why there is no measurement.
    """
    if row.error is not None:
        yield f"error: {row.error['what']}"
        if row.error["cure"]:
            yield f"-> {row.error['cure']}"
    elif basis and row.measurement.basis != "measured" and row.measurement.reason:
        yield f"{row.measurement.basis}: {row.measurement.reason}"
        yield from estimate_lines(row.measurement)
    for node in row.unsupported[:_MOST_BREAKS]:
        yield f"cannot run {node.op} {node.node}: {node.reason}"
    if len(row.unsupported) > _MOST_BREAKS:
        yield f"and {len(row.unsupported) - _MOST_BREAKS} more"
    if row.agreement is not None:
        yield from departure_lines(row.agreement)
    if row.placement is not None:
        yield from placement_lines(row.placement)
    yield from row.notes
    conditions = row.measurement.conditions
    if conditions is not None and not conditions.quiet:
        yield f"the machine was busy: {conditions.noise_note}"
