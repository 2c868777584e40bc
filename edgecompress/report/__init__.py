"""Report: one data model with four faces: JSON, an HTML page, JUnit XML and plain text."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from edgecompress import files
from edgecompress.errors import InputError
from edgecompress.report.data import Report
from edgecompress.report.html import html_text, write_html
from edgecompress.report.junit import junit_text, write_junit
from edgecompress.report.text import summary, table

__all__ = [
    "Report",
    "write_json",
    "read_json",
    "write_html",
    "html_text",
    "write_junit",
    "junit_text",
    "summary",
    "table",
]


def write_json(report: Report, path: Path) -> None:
    """Write the report as JSON, whole or not at all.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    files.write_text(path, report.model_dump_json(indent=2) + "\n")


def read_json(path: Path) -> Report:
    """Read a report that :func:`write_json` wrote.

    Raises:
        InputError: The file is missing, or is not a report of this version.
    """
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror or error}",
            where=str(path),
            cure="give the report.json of a build's output folder",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"is not a report of this version: {place + ': ' if place else ''}{first['msg']}",
            where=str(path),
            cure="build again with this version of edgecompress",
        ) from error
