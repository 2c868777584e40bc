"""The report as one HTML page that needs nothing but itself: no network, and no JavaScript."""

from __future__ import annotations

import base64
import hashlib
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress import files
from edgecompress.measure import Conditions, Measurement
from edgecompress.report import factorization, factorization_tables, figures
from edgecompress.report import format as fmt
from edgecompress.report.data import Report, SkipReport

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["environment", "html_text", "write_html"]


def write_html(report: Report, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    files.write_text(path, html_text(report))


def html_text(report: Report) -> str:
    """The page as text.

    All that comes from the model, the recipe or the host is escaped. Should a name slip through
    nevertheless, the page's content security policy lets no script run but the one that sorts
    tables, which is named by its hash.
    """
    from edgecompress.report import candidates, factorization_picture, picture, sensitivity
    from edgecompress.report.agreement import departure_lines
    from edgecompress.report.placement import placement_lines

    template, shared = environment("page.html.j2")
    return template.render(
        report=report,
        figures=figures,
        fmt=fmt,
        picture=picture,
        candidates=candidates,
        sensitivity=sensitivity,
        factorization=factorization,
        factorization_tables=factorization_tables,
        factorization_picture=factorization_picture,
        before=figures.before(report),
        after=figures.after(report),
        by_reason=by_reason,
        agreement_lines=departure_lines,
        placement_lines=placement_lines,
        conditions=_conditions(report),
        **shared,
    )


def environment(page: str) -> tuple[Template, dict[str, Any]]:
    """A template of this folder, and what all pages are given: the script and its hash."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def visible(value: object) -> object:
        """Take away characters that would hide or turn around what is written."""
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return fmt.clean(str(value)) if is_text else value

    templates = Environment(
        loader=PackageLoader("edgecompress", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = templates.get_template("sort.html.j2").render()
    return templates.get_template(page), {
        "script": Markup(script),  # a file of this package, without anything filled in
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def by_reason(skipped: list[SkipReport]) -> list[tuple[str, list[SkipReport]]]:
    """Skipped candidates under their common reasons, the most frequent reason first."""
    ordered = sorted(skipped, key=lambda skip: skip.reason)
    groups = [(reason, list(group)) for reason, group in groupby(ordered, lambda s: s.reason)]
    return sorted(groups, key=lambda group: -len(group[1]))


def _conditions(report: Report) -> dict[str, str]:
    """How the result was measured, line by line; where it was not, the float model."""
    for step in (figures.after(report), figures.before(report)):
        measured = step.measurement if step else None
        if measured is not None and measured.conditions is not None:
            return _facts(measured, measured.conditions)
    return {}


def _facts(measured: Measurement, under: Conditions) -> dict[str, str]:
    lines = {
        "processor": under.cpu,
        "system": under.os,
        "runtime": f"{under.runtime} {under.runtime_version}, {under.provider}",
        "threads": str(under.threads),
        "processors": ", ".join(map(str, under.cpus)) or "not pinned",
        "inputs": ", ".join(f"{name} {shape}" for name, shape in under.inputs.items()),
        "machine": "quiet" if under.quiet else f"busy: {under.noise_note or 'see the notes'}",
    }
    latency = measured.latency_ms
    if latency is not None:
        lines |= {
            "runs": f"{latency.runs}, after {latency.warmup} to warm up",
            "fastest run": fmt.ms(latency.min),
            "least processor time": fmt.ms(latency.cpu_min_ms),
        }
    if measured.cpu_ratio is not None:
        lines["processor time ratio"] = fmt.ratio(measured.cpu_ratio)
    return lines | {
        "load time": fmt.ms(measured.load_ms),
        "first run": fmt.ms(measured.first_run_ms),
        "memory of the model alone": fmt.megabytes(measured.memory_over_runner_mb),
    }
