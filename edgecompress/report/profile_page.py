"""A table of profiles as one HTML page that needs nothing but itself."""

from __future__ import annotations

import os
from pathlib import Path

from edgecompress import files
from edgecompress.errors import OutputError
from edgecompress.report import format as fmt
from edgecompress.report import profile_table
from edgecompress.report.html import environment
from edgecompress.report.profile_data import ProfileTable

__all__ = ["check_page", "page_text", "write_page"]


def check_page(path: str | os.PathLike[str]) -> Path:
    """Where the page is to be written.

    Raises:
        OutputError: The name does not say that it is HTML.
    """
    file = Path(path)
    if file.suffix not in (".html", ".htm"):
        raise OutputError(f"expected a name that ends in .html, got {file.name!r}", where=str(file))
    return file


def page_text(found: ProfileTable) -> str:
    """The page as text; all that comes from models and devices is escaped."""
    fastest = max(
        (r.measurement.latency_ms.p50 for r in found.rows if r.measurement.latency_ms is not None),
        default=0.0,
    )
    template, shared = environment("profile.html.j2")
    return template.render(found=found, told=profile_table, fmt=fmt, longest=fastest, **shared)


def write_page(found: ProfileTable, path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    files.write_text(path, page_text(found))
