"""What a build leaves in its output folder, all of it at once or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgecompress import files
from edgecompress.errors import OutputError
from edgecompress.model import Model
from edgecompress.report import write_html, write_json, write_junit
from edgecompress.report.data import FileRecord, Report

__all__ = ["check_writable", "deliver", "deliver_report", "MANIFEST_SCHEMA"]

MANIFEST_SCHEMA = 1
_OURS = ("model.onnx", "model.onnx.data", "rejected.onnx", "rejected.onnx.data", "manifest.json")


def check_writable(output: Path) -> None:
    """Refuse an output folder before hours of work go into it.

    Raises:
        OutputError: It is a file, or cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(
            "is a file, expected a folder", where=str(output), cure="choose another output folder"
        )
    with files.folder_aside(output):
        pass


def deliver(output: Path, model: Model, report: Report, manifest: dict[str, Any]) -> Report:
    """Write model, manifest and report; returns the report with the files' digests.

    A model that failed a budget is delivered as ``rejected.onnx``, without a manifest, and an
    earlier ``model.onnx`` of ours is removed: who takes that file has one that passed, or none.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    passed = report.status == "passed"
    name = "model.onnx" if passed else "rejected.onnx"
    with files.folder_aside(output) as aside:
        written = [FileRecord(**_record(file)) for file in model.save(aside / name)]
        report = report.model_copy(update={"files": written})
        _write_report(aside, report)
        if passed:
            text = {**manifest, "files": [record.model_dump() for record in written]}
            files.write_text(aside / "manifest.json", json.dumps(text, indent=2) + "\n")
        _remove_earlier(output, keep={record.name for record in written})
    return report


def deliver_report(output: Path, report: Report) -> None:
    """Write only the report, of a build that broke off.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    with files.folder_aside(output) as aside:
        _write_report(aside, report)
        _remove_earlier(output, keep=set())


def _write_report(folder: Path, report: Report) -> None:
    write_json(report, folder / "report.json")
    write_html(report, folder / "report.html")
    write_junit(report, folder / "junit.xml")


def _remove_earlier(output: Path, keep: set[str]) -> None:
    """Remove files of an earlier build that would contradict this one's report.

    Only where an earlier report of ours lies beside them: a folder may hold the user's own models.
    """
    if not (output / "report.json").is_file():
        return
    for name in _OURS:
        if name not in keep:
            (output / name).unlink(missing_ok=True)


def _record(file: Path) -> dict[str, Any]:
    return {
        "name": file.name,
        "bytes": file.stat().st_size,
        "sha256": files.sha256_file(file),
    }
