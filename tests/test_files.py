"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from edgecompress import files
from edgecompress.errors import OutputError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def failing(number: int, text: str = "refused") -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, text)

    return fail


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    file = tmp_path / "a/b/c.txt"
    files.write_text(file, "größer\n")
    assert file.read_bytes() == "größer\n".encode()
    assert names(file.parent) == ["c.txt"]
    assert files.sha256_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "x", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    files.write_bytes(file, b"old")
    aside = files.write_aside(file)
    aside.__enter__().write_bytes(b"ne")
    error = RuntimeError("halfway")
    assert not aside.__exit__(RuntimeError, error, None)
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"no space left on the disk: [\d,.]+ MB are free\n  -> free"),
        (errno.EACCES, "the folder is not writable\n  -> choose another output folder"),
        (errno.EROFS, "the folder is not writable"),
        (errno.EPERM, "the folder is not writable"),
        (errno.EIO, "cannot be written: refused"),
    ],
)
@pytest.mark.parametrize("call", ["mkstemp", "replace"])
def test_refusals_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str, call: str
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")
    owner = files.tempfile if call == "mkstemp" else files.os
    monkeypatch.setattr(owner, call, failing(number))
    with pytest.raises(OutputError, match=message) as caught:
        files.write_bytes(file, b"new")
    assert str(tmp_path) in str(caught.value)
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_the_disk_fills_up_while_writing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left"), files.write_aside(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "full")
    assert names(tmp_path) == []


@pytest.mark.parametrize("inside", ["x", "sub/x"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, inside: str) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_bytes(tmp_path / "taken" / inside, b"")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        files.folder_aside(tmp_path / "taken"),
    ):
        pytest.fail("the folder was opened")


def test_a_folder_appears_with_its_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    (tmp_path / "kept.txt").write_text("mine")
    (tmp_path / "model.onnx").write_text("old")
    with files.folder_aside(tmp_path) as aside:
        for name in ("manifest.json", "z.html", "model.onnx"):
            (aside / name).write_text("new")
        assert (tmp_path / "model.onnx").read_text() == "old"
    assert moved == ["model.onnx", "z.html", "manifest.json"]
    assert names(tmp_path) == ["kept.txt", "manifest.json", "model.onnx", "z.html"]
    assert (tmp_path / "model.onnx").read_text() == "new"


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("old")
    aside = files.folder_aside(tmp_path)
    (aside.__enter__() / "model.onnx").write_text("new")
    assert not aside.__exit__(KeyError, KeyError(), None)
    assert names(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "old"


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "mkdtemp", failing(errno.EACCES))
    with (
        pytest.raises(OutputError, match=f"{tmp_path}: the folder is not writable"),
        files.folder_aside(tmp_path),
    ):
        pytest.fail("the folder was opened")
