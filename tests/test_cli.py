"""The command line, without the verbs that measure: those are in test_verbs.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import edgecompress
from edgecompress import __version__, api
from edgecompress.cli import VERBS, main
from edgecompress.cli.console import Console
from edgecompress.cli.values import budget_option, pass_option, shape_option
from edgecompress.errors import BudgetError, DataError
from tests.models import small_cnn

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "pydantic")

TORCH_SOURCE = """
import torch

def make():
    print("a print of the user's own")
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), (torch.zeros(2, 4),)

def interrupted():
    import os, signal, time
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def process(*arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgecompress", *map(str, arguments)]
    environment = {**os.environ, **changes}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_cnn().save(tmp_path / "cnn.onnx")[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "net.py"
    file.write_text(TORCH_SOURCE, encoding="utf-8")
    return file


@pytest.mark.parametrize("statement", ["import edgecompress", "from edgecompress.cli import main"])
def test_imports_load_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["build", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "edgecompress", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "edgecompress.cli" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert done.stdout


def test_the_group_lists_all_verbs_with_an_example() -> None:
    done = run("--help")
    assert done.exit_code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout
    assert "edgecompress build recipe.toml" in done.stdout
    listed = done.stdout.partition("Commands:")[2].partition("Examples:")[0]
    assert "..." not in listed  # no summary is cut short


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_and_the_common_options(verb: str) -> None:
    done = run(verb, "--help")
    assert done.exit_code == 0
    assert f"  edgecompress {verb}" in done.stdout
    for option in ("--json", "--quiet", "--debug"):
        assert option in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"edgecompress, version {__version__}\n"


def test_every_verb_is_a_function_of_the_api() -> None:
    assert set(VERBS) <= set(api.__all__)
    for verb in VERBS:
        assert callable(getattr(api, verb))


def test_the_package_offers_the_verbs_lazily() -> None:
    for name in edgecompress.__all__:
        found = getattr(edgecompress, name)
        # A module of the same name would take the function's place once it is imported.
        assert not isinstance(found, ModuleType)
        assert name in dir(edgecompress)
    assert set(edgecompress.__all__) >= set(VERBS) - {"targets", "passes", "doctor", "statistics"}
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        edgecompress.biuld  # noqa: B018


USAGE = [
    (["buld"], "no such command 'buld'; did you mean 'build'?"),
    (["build"], "Missing argument 'RECIPE'"),
    (["inspect", "a", "--jsn"], "No such option"),
    (["compress", "m.onnx"], "Missing option '-o'"),
    (["compress", "m.onnx", "-o", "out", "-p", ":a=1"], "expected the name of a pass first"),
    (["compress", "m.onnx", "-o", "out", "-p", "q:a"], "expected option=value, got 'a'"),
    (["validate", "m.onnx", "--budget", "size_mb"], "expected name=number such as size_mb=3"),
    (
        ["validate", "m.onnx", "--budget", "size_mb=3", "--budget", "size_mb=4"],
        "given twice: size_mb",
    ),
    (["profile", "m.onnx", "--shape", "x=1xa"], "expected input=1x3x224x224, got 'x=1xa'"),
    (["profile", "m.onnx", "--threads", "0"], "0 is not in the range"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[text for _, text in USAGE])
def test_wrong_usage_ends_with_2_and_one_error(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize("arguments", [["inspect", "--json"], ["inspect", "none.onnx", "--json"]])
def test_errors_are_json_too(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    error = json.loads(done.stdout)
    assert set(error) == {"error", "what", "where", "cure", "exit_code"}
    assert error["exit_code"] == 2
    assert done.stderr.startswith("error: ")


def test_options_take_values() -> None:
    assert pass_option("cleanup") == ("cleanup", {})
    text = "quantize:method=mse,per_channel=false,percentile=99.9,rows=8,word=NaN"
    assert pass_option(text) == (
        "quantize",
        {"method": "mse", "per_channel": False, "percentile": 99.9, "rows": 8, "word": "NaN"},
    )
    assert budget_option("size_mb=3") == ("size_mb", 3.0)
    assert shape_option("a=b=1x3") == ("a=b", (1, 3))
    assert shape_option("rate=") == ("rate", ())


def test_init_writes_a_recipe_and_does_not_replace_one(tmp_path: Path, model: Path) -> None:
    from edgecompress.recipe import load_recipe

    recipe = tmp_path / "recipes" / "cnn.toml"
    done = run("init", model, "-o", recipe, "--target", "cpu-arm64")
    assert done.exit_code == 0
    assert done.stdout == f"wrote {recipe}\n"
    assert done.stderr == f"next: edgecompress build {recipe}\n"
    loaded = load_recipe(recipe)
    assert (loaded.base / loaded.source.model).resolve() == model.resolve()
    assert loaded.target.name == "cpu-arm64"

    recipe.write_text("# mine", encoding="utf-8")
    done = run("init", model, "-o", recipe)
    assert done.exit_code == 2
    assert "exists already" in done.stderr
    assert recipe.read_text(encoding="utf-8") == "# mine"
    done = run("init", model, "-o", recipe, "--force", "-q")
    assert done.exit_code == 0
    assert done.stderr == ""
    assert load_recipe(recipe).target.name == "host"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.onnx"], "none.onnx: no such file"),
        (["{model}", "--data", "none.npz"], "none.npz: no such file"),
        (["{model}", "--target", "cpu-x86"], "unknown target 'cpu-x86'; did you mean 'cpu-x86-64'"),
        (["{model}", "-o", "recipe.json"], "expected a name that ends in .toml"),
    ],
)
def test_init_refuses(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("init", *(a.format(model=model) for a in arguments))
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.glob("recipe.*"))


def test_inspect_as_text_and_as_json(model: Path) -> None:
    text = run("inspect", model)
    assert text.exit_code == 0
    assert "Conv" in text.stdout
    assert "quantize" in text.stdout
    found = json.loads(run("inspect", model, "--json").stdout)
    assert [layer["op"] for layer in found["layers"]] == ["Conv", "Conv", "Conv", "Gemm"]
    assert found["signature"]["inputs"][0]["shape"] == ["N", 3, 16, 16]
    assert found == json.loads(api.inspect(model).model_dump_json())


def test_export_keeps_stdout_for_the_result(tmp_path: Path, source: Path) -> None:
    file = tmp_path / "net.onnx"
    done = run("export", f"{source}:make", "-o", file, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert "a print of the user's own" in done.stderr
    assert result["files"] == [str(file)]
    assert result["kind"] == "torch"
    assert result["export_error"] < 1e-5
    assert result["size_bytes"] == file.stat().st_size
    assert isinstance(result["signature"]["inputs"][0]["shape"][0], str)


def test_export_refuses_another_suffix(tmp_path: Path, model: Path) -> None:
    done = run("export", model, "-o", tmp_path / "net.bin")
    assert done.exit_code == 2
    assert "expected a name that ends in .onnx, got 'net.bin'" in done.stderr


def test_targets() -> None:
    from edgecompress.target import load, names

    listed = run("targets")
    assert all(name in listed.stdout for name in names())
    found = json.loads(run("targets", "--json").stdout)
    assert [each["profile"]["name"] for each in found] == names()
    one = run("targets", "ios-coreml")
    assert "measurable here  no: " in one.stdout
    assert all(fact.source in one.stdout for fact in load("ios-coreml").facts)
    assert json.loads(run("targets", "ios-coreml", "--json").stdout)["measurable"] is False
    assert run("targets", "host").stdout.startswith("cpu-")
    assert run("targets", "web-wsm").exit_code == 2


def test_passes() -> None:
    from edgecompress.graph_pass import pass_names

    found = json.loads(run("passes", "--json").stdout)
    assert [each["name"] for each in found] == pass_names()
    one = run("passes", "quantize").stdout
    assert 'method: "minmax" | ' in one
    assert "How activation ranges are chosen" in one
    unknown = run("passes", "quantise")
    assert unknown.exit_code == 2
    assert "did you mean 'quantize'?" in unknown.stderr


def test_schema() -> None:
    plain, as_json = run("schema"), run("schema", "--json")
    assert json.loads(plain.stdout) == json.loads(as_json.stdout)


def test_doctor() -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.stdout
    assert done.stdout.endswith("all well\n")
    assert json.loads(run("doctor", "--json").stdout)["healthy"] is True


def test_interrupted(tmp_path: Path, source: Path) -> None:
    done = process("export", f"{source}:interrupted", "-o", tmp_path / "net.onnx")
    assert done.returncode == 130
    assert done.stdout == ""
    assert done.stderr.strip().endswith("interrupted; nothing was written")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "net.onnx").exists()


def test_the_process_ends_with_the_exit_code(tmp_path: Path) -> None:
    done = process("inspect", tmp_path / "none.onnx")
    assert done.returncode == 2
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr  # no colours where nobody sees them


FAILURES: list[tuple[Exception, int, str]] = [
    (DataError("expected 3 rows, got 2", where="x.npz", cure="add one"), 2, "x.npz: expected 3"),
    (BudgetError("size_mb: 4 > 3"), 1, "error: size_mb"),
    (click.UsageError("no such thing"), 2, "error: no such thing"),
    (click.Abort(), 130, "interrupted; nothing was written\n"),
    (RuntimeError("wires\ncrossed"), 1, "internal error: RuntimeError: wires crossed\n"),
    (ZeroDivisionError(), 1, "internal error: ZeroDivisionError\n"),
]


@pytest.mark.parametrize(("error", "code", "text"), FAILURES, ids=[t for _, _, t in FAILURES])
@pytest.mark.parametrize("as_json", [False, True])
def test_failures(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, text: str, as_json: bool
) -> None:
    assert Console(as_json=as_json).failed(error) == code
    written = capsys.readouterr()
    assert text in written.err
    assert "Traceback" not in written.err
    assert (json.loads(written.out)["exit_code"] == code) if as_json else written.out == ""


def test_an_internal_error_says_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    Console().failed(RuntimeError("x"))
    assert "--debug" in capsys.readouterr().err
    try:
        raise RuntimeError("x")
    except RuntimeError as error:
        Console(debug=True).failed(error)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "debug"),
    [
        (["build", "--debug"], None, True),
        (["build"], "1", True),
        (["build"], "0", False),
        (["build", "--", "--debug"], None, False),
    ],
)
def test_when_tracebacks_are_shown(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: str | None, debug: bool
) -> None:
    monkeypatch.delenv("EDGECOMPRESS_DEBUG", raising=False)
    if environment is not None:
        monkeypatch.setenv("EDGECOMPRESS_DEBUG", environment)
    assert Console.for_arguments(arguments).debug is debug


def test_an_interrupted_build_goes_on_from_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.work(resumable=True):
        pass
    console.failed(click.Abort())
    text = "interrupted; nothing was written, the next run continues from the cache\n"
    assert capsys.readouterr().err == text


class Terminal:
    """Enough of a terminal to draw on."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def draw(console: Console) -> None:
    with console.work() as progress:
        progress("ranges", 0, 4)
        progress("ranges", 4, 4)
        progress("nodes", 1, 2)


@pytest.mark.parametrize(
    ("console", "expected"),
    [(Console(), "ranges ...\nnodes ...\n"), (Console(quiet=True), "")],
    ids=["a line per piece of work", "quiet"],
)
def test_progress_without_a_terminal(
    capsys: pytest.CaptureFixture[str], console: Console, expected: str
) -> None:
    draw(console)
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", expected)


def test_progress_on_a_terminal_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    draw(Console())
    frames = terminal.text.split("\r")
    assert f"[{'#' * 24}] 4/4" in terminal.text
    assert f"nodes  [{'#' * 12}{'.' * 12}] 1/2" in terminal.text
    assert frames[-1] == ""
    assert frames[-2].strip() == ""
    assert len(frames[-2]) >= max(len(frame.rstrip()) for frame in frames[-3:])


def test_real_model(shared: Callable[[str], Path]) -> None:
    found: dict[str, Any] = json.loads(
        run("inspect", shared("mobilenet_v1_075_224.onnx"), "--json").stdout
    )
    assert found["parameters"] == 2_577_352
