"""What a build leaves in its output folder, all of it at once or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from edgecompress import files, locks
from edgecompress.errors import OutputError
from edgecompress.model import Model
from edgecompress.report import write_html, write_json, write_junit
from edgecompress.report.data import FileRecord, Report
from edgecompress.runtimes import Artifact

__all__ = ["check_output", "claim_output", "deliver", "deliver_report", "MANIFEST_SCHEMA"]

MANIFEST_SCHEMA = 1
_REPORT = "report.json"
_MODELS = ("model.onnx", "model.onnx.data", "rejected.onnx", "rejected.onnx.data", "manifest.json")
_CURE = "choose another output folder"
_WRITTEN = (*_MODELS, _REPORT, "report.html", "junit.xml")


def check_output(output: Path, source: Path) -> None:
    """Refuse an output folder before hours of work go into it; leaves no trace.

    Args:
        output: The folder.
        source: Where the source model lies; it need not be a file.

    Raises:
        OutputError: It is a file, cannot be written, or holds files under the names that
            :func:`deliver` writes that are the user's own or the source itself.
    """
    _check_place(output)
    # An earlier build's files are replaced; a model of the user's own never is.
    foreign = [name for name in _WRITTEN if (output / name).exists()]
    if foreign and _earlier_report(output) is None:
        raise OutputError(
            f"holds {', '.join(foreign)} that no build of edgecompress has written",
            where=str(output),
            cure=f"{_CURE}, or move what is there",
        )
    if source.resolve().parent == output.resolve() and source.name in _MODELS:
        raise OutputError(
            f"holds the source model, and the build writes {source.name} there",
            where=str(output),
            cure=_CURE,
        )
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        with _aside(output):
            pass
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not made after all, or filled by others meanwhile
                folder.rmdir()


@contextlib.contextmanager
def claim_output(output: Path, source: Path) -> Iterator[None]:
    """Be the only build that writes to a folder, from the check before the work to the delivery.

    What an earlier build that was killed has begun there is brought to its end first. An empty
    folder that was made for this is taken away again.

    Raises:
        BuildError: Another build writes there.
        OutputError: See :func:`check_output`.
    """
    _check_place(output)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.only_writer(output))
            files.finish_earlier(output)
        except OSError as error:
            raise _of_folder(files.refused(error, output / "model.onnx"), output) from error
        check_output(output, source)
        yield


def _check_place(output: Path) -> None:
    for folder in (output, *output.parents):
        if folder.exists() and not folder.is_dir():
            raise OutputError("is a file, expected a folder", where=str(folder), cure=_CURE)


def _earlier_report(output: Path) -> dict[str, Any] | None:
    """What an earlier build of ours reported there."""
    try:
        report = json.loads((output / _REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(report, dict) and str(report.get("tool", "")).startswith("edgecompress ")
    return report if ours else None


def deliver(
    output: Path,
    model: Model,
    report: Report,
    manifest: dict[str, Any],
    prepared: Artifact | None = None,
) -> Report:
    """Write model, manifest and report; returns the report with the files' digests.

    Where the target's runtime loads files of its own, these are delivered beside the ONNX file they
    were made of; a folder of files, such as a CoreML package, as one archive.

    A model that failed a budget is delivered as ``rejected.onnx``, without a manifest, and an
    earlier ``model.onnx`` of ours is removed: who takes that file has one that passed, or none.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    passed = report.status == "passed"
    name = "model.onnx" if passed else "rejected.onnx"
    owned = _earlier(output)
    with _aside(output, owned=owned, model=model) as aside:
        files_written = model.save(aside / name)
        if passed and prepared is not None:
            own = _own_files(prepared, aside)
            _check_free(output, [file.name for file in own], owned)
            files_written += own
        written = [FileRecord(**_record(file)) for file in files_written]
        report = report.model_copy(update={"files": written})
        _write_report(aside, report)
        if passed:
            text = {**manifest, "files": [record.model_dump() for record in written]}
            files.write_text(aside / "manifest.json", json.dumps(text, indent=2) + "\n")
    return report


def _check_free(output: Path, wanted: Collection[str], owned: Collection[str]) -> None:
    """Refuse to replace files that no build of ours has written."""
    foreign = [name for name in wanted if name not in owned and (output / name).exists()]
    if foreign:
        raise OutputError(
            f"holds {', '.join(foreign)} that no build of edgecompress has written",
            where=str(output),
            cure=f"{_CURE}, or move what is there",
        )


def _own_files(prepared: Artifact, folder: Path) -> list[Path]:
    """The files that the target's runtime loads, without those that hold the ONNX graph itself."""
    if prepared.path.suffix == ".onnx":
        return []
    places = {file.parent for file in prepared.files}
    if len(places) > 1:
        return [_archive(prepared.files, folder)]
    # What a converter leaves beside them belongs to them, such as lists of operators.
    beside = sorted(
        file for file in prepared.path.parent.iterdir() if file.is_file() and file.suffix != ".onnx"
    )
    return [Path(shutil.copy(file, folder / file.name)) for file in beside]


def _archive(parts: Collection[Path], folder: Path) -> Path:
    """A folder as one file; the same bytes for the same contents."""
    top = Path(os.path.commonpath(parts))
    archive = folder / f"{top.name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as whole:
        for file in sorted(parts):
            entry = zipfile.ZipInfo((Path(top.name) / file.relative_to(top)).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            whole.writestr(entry, file.read_bytes())
    return archive


def deliver_report(output: Path, report: Report) -> None:
    """Write only the report, of a build that broke off.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    with _aside(output, owned=_earlier(output)) as aside:
        _write_report(aside, report)


def _earlier(output: Path) -> tuple[str, ...]:
    """Files of an earlier build, which would contradict this one's report."""
    report = _earlier_report(output)
    if report is None:
        return ()
    listed = [str(each.get("name", "")) for each in report.get("files", [])]
    return (*_MODELS, *(name for name in listed if name and Path(name).name == name))


@contextlib.contextmanager
def _aside(
    output: Path, *, owned: Collection[str] = (), model: Model | None = None
) -> Iterator[Path]:
    """See :func:`files.folder_aside`; errors name the folder, not a temporary file in it."""
    try:
        with files.folder_aside(output, owned=owned) as aside:
            yield aside
            files.flush(aside)
    except OutputError as error:
        cause = error.__cause__
        needed = ""
        if model is not None and isinstance(cause, OSError) and files.is_full(cause):
            needed = f", {model.size_bytes / 1e6:,.1f} MB are needed for the model"
        raise _of_folder(error, output, needed) from error


def _of_folder(error: OutputError, output: Path, needed: str = "") -> OutputError:
    return OutputError(error.what + needed, where=str(output), cure=error.cure or _CURE)


def _write_report(folder: Path, report: Report) -> None:
    write_json(report, folder / _REPORT)
    write_html(report, folder / "report.html")
    write_junit(report, folder / "junit.xml")


def _record(file: Path) -> dict[str, Any]:
    return {
        "name": file.name,
        "bytes": file.stat().st_size,
        "sha256": files.sha256_file(file),
    }
