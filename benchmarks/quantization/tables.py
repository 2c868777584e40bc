"""What was found, as rows; and the rows as text, Markdown and plain data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from _common import MB, Verdict, table

from quantization.models import LEFT_OUT, Kind, Yardstick

__all__ = ["Found", "Row", "as_text", "between_markers", "compact", "markdown"]

BEGIN, END = "<!-- quantization:begin -->", "<!-- quantization:end -->"


@dataclass(frozen=True)
class Row:
    """One file, or why there is none.

    Attributes:
        title: Who made it, and how.
        format: ``float``, ``W8A8``, ``dynamic``, ``int8``, ``int4`` or ``float16``.
        ours: Made by edgecompress.
        value: The metric, in its own unit.
        drop: From the float file, as :meth:`Yardstick.drop` has it.
        bytes: Of all its files.
        latency: Least CPU time of one inference, to float's.
        wall: Median ratio of wall times to float's.
        cpu_ms: Least CPU time of one inference.
        seconds: Wall time of the compression process.
        cpu_seconds: Its CPU time.
        peak_mb: Its largest resident set.
        load: Processes that wanted a core when it began.
        failed: Why figures are missing.
    """

    title: str
    format: str
    ours: bool = False
    value: float | None = None
    drop: float | None = None
    bytes: int | None = None
    latency: float | None = None
    wall: float | None = None
    cpu_ms: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mb: float | None = None
    load: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Found:
    """All rows of one model; the float file's is the first."""

    name: str
    title: str
    kind: Kind
    yardstick: Yardstick
    calibration_rows: int
    validation_rows: int
    rows: Sequence[Row]

    @property
    def reference(self) -> Row:
        """The float file."""
        return self.rows[0]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Summary:
    """Everything that the document shows."""

    found: Sequence[Found]
    verdicts: Sequence[Verdict]
    environment: Mapping[str, Any]
    peers: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=lambda: LEFT_OUT)


def _head(found: Found) -> tuple[str, ...]:
    lost = "drop %" if found.yardstick.relative else "drop"
    costs = ("wall s", "CPU s", "peak MB")
    return ("", found.yardstick.label, lost, "MB", "latency / float", "wall / float", *costs)


def _cells(found: Found, row: Row) -> tuple[str, ...]:
    shown = None if row.value is None else found.yardstick.shown(row.value)
    return (
        row.title,
        _figure(shown, 2),
        _figure(None if row is found.reference else row.drop, 2),
        _figure(None if row.bytes is None else row.bytes / MB, 2),
        _figure(row.latency, 2),
        _figure(row.wall, 2),
        _figure(row.seconds, 1),
        _figure(row.cpu_seconds, 1),
        _figure(row.peak_mb, 0),
    )


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _notes(found: Found) -> list[str]:
    return [f"{row.title}: {row.failed}" for row in found.rows if row.failed is not None]


def _rows_about(found: Found) -> str:
    return f"{found.calibration_rows} calibration rows, {found.validation_rows} validation rows"


def as_text(found: Found) -> str:
    """For the terminal."""
    shown = [_cells(found, row) for row in found.rows if row.value is not None]
    title = f"{found.title}: {_rows_about(found)}"
    return "\n".join([table(title, _head(found), shown), *_notes(found)])


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]


_PREFACE = """\
Written by `make bench-quantization`; the same figures as data are in
`benchmarks/results/quantization.json`.

All quantizers get the same float file and the same calibration rows, and are judged on the same
validation rows, one at a time, by the same onnxruntime sessions. *Drop* is from the float file, in
points (per cent for perplexity). *Latency* is the least CPU time of one inference, batch 1, one
thread, all files of a model in turn in one process; *wall / float* is the median ratio of wall
times in the same rounds. *Wall s*, *CPU s* and *peak MB* are of the compression process with start
and imports; ours reads and preprocesses its rows there too, while peers are given them ready. Peers
run once and their results are kept, so wall times of different rows were taken at different loads
of the machine: CPU time is the fairer figure."""


def _machine(summary: Summary) -> str:
    machine = summary.environment
    versions = {**machine["versions"], **summary.peers}
    return (
        f"Machine: {machine['cpu']} ({', '.join(machine['instruction_sets'])}), "
        f"{machine['logical_cores']} logical cores, {machine['os']}, Python {machine['python']}; "
        f"taken {machine['taken']}. "
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}."
    )


def markdown(summary: Summary) -> str:
    """The document: machine, one table per model, verdicts, and how to get them again."""
    lines = ["# Quantization: all models, all peers", "", _PREFACE, "", _machine(summary)]
    for found in summary.found:
        shown = [
            [f"**{cell}**" if row.ours and i == 0 else cell for i, cell in enumerate(cells)]
            for row in found.rows
            if row.value is not None
            for cells in [_cells(found, row)]
        ]
        lines += ["", f"## {found.title}", "", f"{_rows_about(found)}.", ""]
        lines += _pipes(_head(found), shown)
        if notes := _notes(found):
            lines += ["", "No figures:", "", *[f"- {note}" for note in notes]]
    lines += ["", "## Left out", ""]
    lines += [f"- {name}: {why}." for name, why in summary.left_out.items()]
    lines += ["", "## Goals", ""]
    head = ("goal", "found", "verdict")
    lines += _pipes(head, [(v.goal, v.found, _word(v)) for v in summary.verdicts])
    return "\n".join(lines) + "\n"


def _word(verdict: Verdict) -> str:
    return {True: "met", False: "**missed**", None: "not judged"}[verdict.met]


_FORMATS = ("W8A8", "int8", "int4")


def compact(summary: Summary) -> str:
    """A row per model and format that we have: float, the most accurate of each peer, and ours."""
    packages = list(dict.fromkeys(summary.peers))
    rows = []
    for found in summary.found:
        for form in _FORMATS:
            ours = best(found, form, ours=True)
            if ours is None:
                continue
            peers = [best(found, form, ours=False, made_by=package) for package in packages]
            cells = [_short(found, row) for row in (found.reference, *peers)]
            about = (found.title, form, found.yardstick.label)
            rows.append((*about, *cells, f"**{_short(found, ours)}**"))
    head = ("model", "format", "metric", "float", *packages, "edgecompress")
    words = (
        "Each cell: metric, time of one inference against float, and size; of each peer its most "
        "accurate method, of edgecompress the defaults; int8 and int4 are weights alone. Every "
        "method, its cost and what failed: [docs/quantization.md](docs/quantization.md)."
    )
    return "\n".join([*_pipes(head, rows), "", words, "", _machine(summary)])


def _short(found: Found, row: Row | None) -> str:
    if row is None or row.value is None:
        return "-"
    size = f"{_figure((row.bytes or 0) / MB, 2)} MB"
    speed = "" if row is found.reference else f", {_figure(row.latency, 2)}x"
    return f"{found.yardstick.shown(row.value):.2f}{speed}, {size}"


def best(found: Found, form: str, *, ours: bool, made_by: str = "") -> Row | None:
    """Of the rows of a format: of ours, the first (the defaults); of peers', the most accurate.

    Args:
        found: The rows of a model.
        form: The format.
        ours: Whether ours are asked for.
        made_by: What titles begin with.
    """
    rows = [
        r
        for r in found.rows
        if r.format == form and r.ours == ours and r.value is not None
        if r.title.startswith(made_by)
    ]
    if not rows or ours:
        return rows[0] if rows else None
    return min(rows, key=lambda row: float("inf") if row.drop is None else row.drop)


def between_markers(text: str, new: str) -> str:
    """``text`` with what stands between the two markers replaced.

    Raises:
        ValueError: The markers are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"expected a line {BEGIN!r} and, behind it, a line {END!r}")
    return pattern.sub(lambda _: f"{BEGIN}\n{new}\n{END}", text, count=1)
