"""Wrong input through the command line: exit code 2, one clear error, nothing written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from edgecompress.cli import main
from tests.models import from_text, small_cnn
from tests.recipes import UNREACHABLE, names, save_inputs, write_recipe

Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Bad:
    """What is done to a good recipe and its files, and what the error must say.

    Attributes:
        says: Pieces of the error, among them the file or key that it is about.
        prepare: Spoils the files.
        changes: Tables of the recipe that are replaced.
        cure: A piece of the line after the arrow; empty where the error itself names the choices.
    """

    says: tuple[str, ...]
    cure: str = ""
    prepare: Prepare = lambda folder: None
    changes: dict[str, Any] = field(default_factory=dict)


def build(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["build", str(folder / "recipe.json"), *arguments])


def shorten(name: str) -> Prepare:
    def prepare(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return prepare


def write(name: str, text: str) -> Prepare:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def rows(**arrays: Any) -> Prepare:
    return lambda folder: np.savez(folder / "rows.npz", **arrays)


def external(location: str | None) -> Prepare:
    """Weights in a file beside the model, at ``location``; None takes the file away."""

    def prepare(folder: Path) -> None:
        _, data = small_cnn().save(folder / "cnn.onnx", external_data=True)
        if location is None:
            data.unlink()
            return
        proto = onnx.load(folder / "cnn.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        onnx.save(proto, folder / "cnn.onnx")

    return prepare


def operator(name: str, domain: str) -> Prepare:
    def prepare(folder: Path) -> None:
        proto = onnx.load(folder / "cnn.onnx")
        proto.graph.node[1].op_type = name
        proto.graph.node[1].domain = domain
        if domain:
            proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
        onnx.save(proto, folder / "cnn.onnx")

    return prepare


def pickled_module(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), folder / "net.pt")
    write("net.py", NET)(folder)


NET = """
from pathlib import Path
import torch
from edgecompress.sources import load_checkpoint

def make():
    net = torch.nn.Linear(2, 2)
    net.load_state_dict(load_checkpoint(Path(__file__).parent / "net.pt"))
    return net, (torch.zeros(1, 2),)
"""
TEXTS = """
<ir_version: 10, opset_import: ["" : 20]>
texts (string[N, 2] x) => (string[N, 2] y) { y = Identity(x) }
"""
IMAGES = np.random.default_rng(0).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)
HOLED = np.where(np.arange(8)[:, None, None, None] == 5, np.nan, IMAGES)
QUANTIZE = {"name": "quantize"}

MODELS = {
    "truncated": Bad(("cnn.onnx", "truncated"), "export or copy", shorten("cnn.onnx")),
    "text": Bad(("cnn.onnx", "ONNX"), "export", write("cnn.onnx", "I am text")),
    "empty": Bad(("cnn.onnx", "holds no ONNX graph"), "export", write("cnn.onnx", "")),
    "missing": Bad(
        ("none.onnx", "no such file"), "check the path", changes={"source": {"model": "none.onnx"}}
    ),
    "weights missing": Bad(("cnn.onnx.data", "is missing"), "copy it", external(None)),
    "weights above": Bad(
        ("cnn.onnx", "outside the model's folder"), "beside it", external("../secret.bin")
    ),
    "weights elsewhere": Bad(
        ("cnn.onnx", "outside the model's folder"), "beside it", external("/etc/passwd")
    ),
    "unknown operator": Bad(
        ("cnn.onnx", "Frobnicate"), "standard operators", operator("Frobnicate", "")
    ),
    "custom operator": Bad(
        ("cpu-", "my.ops::Frobnicate"), "choose another target", operator("Frobnicate", "my.ops")
    ),
    "input of text": Bad(
        ("input x", "object"),
        "[data] table",
        lambda folder: from_text(TEXTS).save(folder / "cnn.onnx"),
        {"data": None, "pass": []},
    ),
    "checkpoint": Bad(
        ("net.pt", "is a checkpoint"),
        "load_checkpoint",
        pickled_module,
        {"source": {"model": "net.pt"}},
    ),
    "pickle": Bad(
        ("net.pt", "needs to unpickle more than tensors"),
        "state_dict()",
        pickled_module,
        {"source": {"model": "net.py:make"}},
    ),
}

RECIPES = {
    "misspelt key": Bad(
        ("recipe.json", "target", "unknown key 'rnus'; did you mean 'runs'?"),
        changes={"target": {"name": "host", "rnus": 5}},
    ),
    "misspelt table": Bad(
        ("recipe.json", "unknown key 'bugdet'; did you mean 'budget'?"),
        changes={"bugdet": {"size_mb": 1}},
    ),
    "unknown pass": Bad(
        ("[[pass]] #1", "'quantise'", "did you mean 'quantize'?"),
        changes={"pass": [{"name": "quantise"}]},
    ),
    "unknown option": Bad(
        ("[[pass]] #1", "unknown option 'methd'; did you mean 'method'?"),
        "edgecompress passes quantize",
        changes={"pass": [{**QUANTIZE, "methd": "mse"}]},
    ),
    "pattern that fits no node": Bad(
        ("pass 'quantize'", "'conv_*' matches no node"),
        "edgecompress inspect",
        changes={"pass": [{**QUANTIZE, "nodes": {"conv_*": False}}]},
    ),
    "negative budget": Bad(
        ("budget.size_mb", "greater than 0, got -1"), changes={"budget": {"size_mb": -1}}
    ),
    "two problems": Bad(
        ("2 problems", "budget.size_mb", "'rnus'"),
        changes={"budget": {"size_mb": -1}, "target": {"rnus": 5}},
    ),
    "unknown target": Bad(
        ("'cpu-x86'", "did you mean 'cpu-x86-64'?"),
        "choose one of these",
        changes={"target": {"name": "cpu-x86"}},
    ),
    "unknown metric": Bad(
        ("metric.name", "'topp'", "did you mean 'top5'?"),
        "file.py:function",
        changes={"metric": {"name": "topp"}},
    ),
    "metric without limits": Bad(
        ("budget.metric_drop", "infinite"),
        "'cosine'",
        changes={"metric": {"name": "sqnr"}, "budget": {"metric_drop": 3}},
    ),
    "unknown output": Bad(
        ("metric.output", "'logits'", "known: y"),
        changes={"metric": {"name": "cosine", "output": "logits"}},
    ),
}

DATA = {
    "missing": Bad(
        ("rows.npz", "no such file"), "check the path", lambda f: (f / "rows.npz").unlink()
    ),
    "truncated": Bad(("rows.npz", "cannot be read"), "copy the file again", shorten("rows.npz")),
    "wrong name": Bad(
        ("rows.npz", "no array 'x'", "known: y, z"), "inputs =", rows(y=IMAGES, z=IMAGES)
    ),
    "wrong shape": Bad(
        ("rows.npz", "float32[N, 3, 16, 16]", "[3, 8, 8]"), "reshape", rows(x=IMAGES[..., :8, :8])
    ),
    "wrong rank": Bad(
        ("rows.npz", "float32[N, 3, 16, 16]", "[8, 3, 16]"), "axis", rows(x=IMAGES[..., 0])
    ),
    "wrong type": Bad(
        ("rows.npz", "float32[N, 3, 16, 16], got int64"),
        "save the array as float32",
        rows(x=IMAGES.astype(np.int64)),
    ),
    "not a number": Bad(("rows.npz", "input 'x'", "NaN", "row 5"), "repair", rows(x=HOLED)),
    "too few": Bad(("rows.npz", "at least 2 rows, got 1"), "must differ", rows(x=IMAGES[:1])),
    "none": Bad(("rows.npz", "at least 2 rows, got 0"), "must differ", rows(x=IMAGES[:0])),
    "no labels": Bad(
        ("'top1' needs labels",), "labels = ...", changes={"metric": {"name": "top1"}}
    ),
    "labels out of range": Bad(
        ("labels from 0 to 9", "got 77"),
        "number the classes",
        rows(x=IMAGES, digits=np.full(8, 77)),
        {"data": {"path": "rows.npz", "labels": "digits"}},
    ),
    "function that fails": Bad(
        ("mine.py:2", "FileNotFoundError"),
        "",
        write("mine.py", "def rows():\n    return {'x': open('none.bin')}\n"),
        {"data": {"path": "mine.py:rows"}},
    ),
    "function that is no Python": Bad(
        ("mine.py:1", "SyntaxError"),
        "run",
        write("mine.py", "def rows(:\n"),
        {"data": {"path": "mine.py:rows"}},
    ),
    "metric that fails": Bad(
        ("mine.py:2", "KeyError: 'none'"),
        "function(outputs, labels)",
        write("mine.py", "def judge(outputs, labels):\n    return outputs['none']\n"),
        {"metric": {"name": "mine.py:judge"}},
    ),
    "metric that is not there": Bad(
        ("mine.py", "defines no 'jugde'; did you mean 'judge'?"),
        "",
        write("mine.py", "def judge(outputs, labels):\n    return 1\n"),
        {"metric": {"name": "mine.py:jugde"}},
    ),
}

OUTPUTS = {
    "a file": Bad(("out", "is a file"), "choose another", write("out", "mine")),
    "below a file": Bad(
        ("file", "is a file"),
        "choose another",
        write("file", "mine"),
        {"build": {"output": "file/out"}},
    ),
    "the user's own model": Bad(
        ("out", "holds model.onnx"),
        "choose another",
        lambda folder: ((folder / "out").mkdir(), write("out/model.onnx", "mine")(folder)),
    ),
    "cache": Bad(
        ("cache", "finished steps cannot be kept"),
        "--no-cache",
        write("cache", "mine"),
        {"build": {"cache": "cache"}},
    ),
}

CASES = {
    f"{kind}: {name}": bad
    for kind, cases in (
        ("model", MODELS),
        ("recipe", RECIPES),
        ("data", DATA),
        ("output", OUTPUTS),
    )
    for name, bad in cases.items()
}


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
def test_refused(tmp_path: Path, bad: Bad) -> None:
    folder = save_inputs(tmp_path / "work")
    bad.prepare(folder)
    write_recipe(folder, **bad.changes)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = build(folder, "--quiet")
    check_refused(done, bad.says, bad.cure)
    kept = folder / ".edgecompress"
    after = {
        file: file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and kept not in file.parents and "__pycache__" not in str(file)
    }
    assert after == before


def check_refused(done: Result, says: tuple[str, ...], cure: str, code: int = 2) -> None:
    assert done.exit_code == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    message, _, found_cure = done.stderr.partition("\n  -> ")
    for piece in says:
        assert piece in message
    assert cure in found_cure
    assert (found_cure == "") <= (cure == "")


FILES: dict[str, tuple[str, Prepare, tuple[str, ...], str]] = {
    "missing": ("none.toml", lambda folder: None, ("none.toml", "no such file"), "init"),
    "folder": ("some", lambda f: (f / "some").mkdir(), ("some", "got a folder"), "init"),
    "folder with a suffix": (
        "some.toml",
        lambda f: (f / "some.toml").mkdir(),
        ("some.toml", "got a folder"),
        "init",
    ),
    "model": ("cnn.onnx", lambda folder: None, ("cnn.onnx", "expected a recipe"), "init"),
    "syntax": (
        "some.toml",
        write("some.toml", "[source]\nmodel = cnn.onnx\n"),
        ("some.toml", "is not valid TOML", "line 2"),
        "",
    ),
    "not text": (
        "some.toml",
        lambda folder: (folder / "some.toml").write_bytes(b"\xff\xfe\x00"),
        ("some.toml", "UTF-8"),
        "UTF-8",
    ),
}


@pytest.mark.parametrize(("name", "prepare", "says", "cure"), FILES.values(), ids=FILES)
def test_refused_recipe_file(
    tmp_path: Path, name: str, prepare: Prepare, says: tuple[str, ...], cure: str
) -> None:
    prepare(save_inputs(tmp_path))
    done = CliRunner().invoke(main, ["build", str(tmp_path / name)])
    check_refused(done, says, cure)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_steps(tmp_path: Path) -> None:
    write_recipe(save_inputs(tmp_path))
    done = build(tmp_path, "--dry-run")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "quantize  to run" in done.stdout
    assert names(tmp_path) == {"cnn.onnx", "rows.npz", "recipe.json"}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_dry_run_refuses_what_a_build_refuses(tmp_path: Path, as_json: bool) -> None:
    write_recipe(save_inputs(tmp_path), data={"path": "none.npz"})
    done = build(tmp_path, "--dry-run", *(["--json"] if as_json else []))
    assert done.exit_code == 2
    assert "no such file" in done.stderr
    assert ("DataError" in done.stdout) is as_json


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(save_inputs(tmp_path), target=UNREACHABLE, **{"pass": []})

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    done = build(tmp_path, "--quiet", "--no-cache")
    check_refused(done, ("no space left on the disk",), "free some space")
    assert names(tmp_path) <= {"cnn.onnx", "rows.npz", "recipe.json", "out"}
    assert names(tmp_path / "out") == set()
