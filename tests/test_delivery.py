"""The output folder: whole results, and nobody else's files."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgecompress.delivery import check_output, deliver, deliver_report
from edgecompress.errors import OutputError
from edgecompress.report.data import Report
from edgecompress.runtimes import Artifact
from tests.models import small_cnn
from tests.recipes import BROKEN_OFF, DELIVERED, names
from tests.reports import sample_report

SOURCE = Path("cnn.onnx")
MODEL = small_cnn()
REJECTED = DELIVERED - {"model.onnx", "manifest.json"} | {"rejected.onnx"}


def report(status: str) -> Report:
    return sample_report(status=status)


def give(output: Path, status: str) -> None:
    if status == "error":
        deliver_report(output, report("error"))
    else:
        deliver(output, MODEL, report(status), {"schema": 1})


@pytest.mark.parametrize("before", [None, "passed", "failed", "error"])
@pytest.mark.parametrize(
    ("status", "expected"), [("passed", DELIVERED), ("failed", REJECTED), ("error", BROKEN_OFF)]
)
def test_the_folder_holds_one_build(
    tmp_path: Path, before: str | None, status: str, expected: set[str]
) -> None:
    output = tmp_path / "a" / "out"
    if before is not None:
        give(output, before)
    give(output, status)
    assert names(output) == expected
    assert json.loads((output / "report.json").read_text())["status"] == status


def test_other_files_stay(tmp_path: Path) -> None:
    give(tmp_path, "passed")
    (tmp_path / "notes.txt").write_text("mine")
    give(tmp_path, "failed")
    assert names(tmp_path) == {*REJECTED, "notes.txt"}


def prepared(folder: Path, *parts: str) -> Artifact:
    """Files that a runtime would load, each holding its own name."""
    for part in parts:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).write_text(part)
    return Artifact(tuple(folder / part for part in parts))


def test_files_of_the_runtime_come_with_what_lies_beside_them(tmp_path: Path) -> None:
    made = prepared(tmp_path / "made", "model.ort")
    (tmp_path / "made" / "operators.config").write_text("Conv")
    (tmp_path / "made" / "model.onnx").write_text("what it was made of")
    output = tmp_path / "out"
    told = deliver(output, MODEL, report("passed"), {"schema": 1}, made)
    assert names(output) == {*DELIVERED, "model.ort", "operators.config"}
    assert [file.name for file in told.files] == ["model.onnx", "model.ort", "operators.config"]
    assert (output / "model.ort").read_text() == "model.ort"
    assert (output / "model.onnx").stat().st_size > 100
    give(output, "failed")  # and go with the build that they belong to
    assert names(output) == REJECTED


def test_a_rejected_model_has_no_files_of_the_runtime(tmp_path: Path) -> None:
    made = prepared(tmp_path / "made", "model.tflite")
    deliver(tmp_path / "out", MODEL, report("failed"), {"schema": 1}, made)
    assert names(tmp_path / "out") == REJECTED


def test_a_folder_of_files_is_one_archive_of_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for run in ("a", "b"):
        parts = ("m.mlpackage/Manifest.json", "m.mlpackage/Data/weights/weight.bin")
        made = prepared(tmp_path / run / "made", *parts)
        deliver(tmp_path / run / "out", MODEL, report("passed"), {"schema": 1}, made)
        found.append((tmp_path / run / "out" / "m.mlpackage.zip").read_bytes())
    assert found[0] == found[1]
    with zipfile.ZipFile(io.BytesIO(found[0])) as archive:
        assert sorted(archive.namelist()) == sorted(parts)


def test_a_users_own_file_of_the_runtimes_name_is_never_touched(tmp_path: Path) -> None:
    made = prepared(tmp_path / "made", "model.tflite")
    output = tmp_path / "out"
    output.mkdir()
    (output / "model.tflite").write_text("mine")
    with pytest.raises(OutputError, match=r"model\.tflite that no build"):
        deliver(output, MODEL, report("passed"), {"schema": 1}, made)
    assert names(output) == {"model.tflite"}
    assert (output / "model.tflite").read_text() == "mine"


def test_the_report_in_hand_is_the_report_on_disk(tmp_path: Path) -> None:
    returned = deliver(tmp_path, MODEL, report("passed"), {"schema": 1})
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == returned
    assert [file.name for file in returned.files] == ["model.onnx"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"] == [file.model_dump() for file in returned.files]


# Checks before the work


@pytest.mark.parametrize("existing", [False, True])
def test_a_good_folder_is_left_as_it_was(tmp_path: Path, existing: bool) -> None:
    output = tmp_path / "a" / "b"
    if existing:
        output.mkdir(parents=True)
        (output / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    check_output(output, SOURCE)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", ["file", "file/out", "file/a/out"])
def test_a_file_in_the_way(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file, expected a folder") as caught:
        check_output(tmp_path / place, SOURCE)
    assert caught.value.where == str(tmp_path / "file")
    assert caught.value.cure == "choose another output folder"


@pytest.mark.parametrize("name", sorted(DELIVERED | {"rejected.onnx"}))
def test_a_users_own_files_are_never_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"tool": "another"}')
    with pytest.raises(OutputError, match=f"holds {name} that no build") as caught:
        check_output(tmp_path, SOURCE)
    assert "choose another output folder" in (caught.value.cure or "")
    assert (tmp_path / name).read_text() == '{"tool": "another"}'


@pytest.mark.parametrize("status", ["passed", "failed", "error"])
def test_an_earlier_build_of_ours_is_replaced(tmp_path: Path, status: str) -> None:
    give(tmp_path, status)
    check_output(tmp_path, SOURCE)


def test_the_source_is_not_replaced(tmp_path: Path) -> None:
    give(tmp_path, "passed")
    with pytest.raises(OutputError, match=r"holds the source model.*model\.onnx"):
        check_output(tmp_path, tmp_path / "model.onnx")
    check_output(tmp_path / "again", tmp_path / "model.onnx")


REFUSALS = {
    errno.EACCES: "not writable",
    errno.EROFS: "not writable",
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the quota is used up",
}


@pytest.mark.parametrize(("code", "text"), REFUSALS.items(), ids=[*REFUSALS.values()])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, text: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match=text) as caught:
        check_output(tmp_path / "out", SOURCE)
    assert caught.value.where == str(tmp_path / "out")
    assert caught.value.cure
    assert names(tmp_path) == set()


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    if earlier:
        give(tmp_path, "passed")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    whole = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if "junit" in path.name:
            whole(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="no space left on the disk") as caught:
        give(tmp_path, "failed")
    assert caught.value.where == str(tmp_path)
    assert caught.value.cure == "free some space or write elsewhere"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
