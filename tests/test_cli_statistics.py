"""``edgecompress statistics``: what it shows, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgecompress import api, sharding
from edgecompress.cli import main
from edgecompress.cli.values import bytes_option, input_option
from edgecompress.model import Model
from edgecompress.results import StatisticsResult
from edgecompress.sharding import collect_sharded
from edgecompress.statistics import Statistics
from edgecompress.statistics_table import chosen_values
from tests.models import from_text, small_cnn
from tests.running import run as run_model
from tests.running import with_outputs

MIXED = """
<ir_version: 8, opset_import: ["": 17]>
net (float[n, 4] x, int64[n] k) => (float[n, 4] y, int64[m] shape)
{
    two = Constant <value_float = 2.0> ()
    scaled = Mul (x, two)
    kf = Cast <to = 1> (k)
    axes = Constant <value_ints = [1]> ()
    column = Unsqueeze (kf, axes)
    y = Add (scaled, column)
    shape = Shape (y)
}
"""


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["statistics", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statistics")
    small_cnn().save(folder / "cnn.onnx")
    x = np.random.default_rng(0).normal(0, 1, (20, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x)
    np.savez(folder / "two.npz", first=x, second=x + 100)
    (folder / "recipe.toml").write_text(
        '[source]\nmodel = "cnn.onnx"\n[data.calibration]\npath = "rows.npz"\nrows = 12\n'
        '[[pass]]\nname = "cleanup"\n',
        encoding="utf-8",
    )
    (folder / "validation.toml").write_text(
        '[source]\nmodel = "cnn.onnx"\n[data.validation]\npath = "rows.npz"\n'
        '[[pass]]\nname = "cleanup"\n',
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> StatisticsResult:
    return api.statistics(folder / "cnn.onnx", data=folder / "rows.npz")


def test_the_figures_are_those_of_the_runtime(folder: Path, result: StatisticsResult) -> None:
    model = small_cnn()
    names = [tensor.name for tensor in result.tensors]
    x = np.load(folder / "rows.npz")["x"]
    expected = run_model(with_outputs(model, names), {"x": x}) | {"x": x}
    assert result.rows == 20
    assert names == ["x", *(v.name for node in model.ir.graph for v in node.outputs)]
    for tensor in result.tensors:
        values = expected[tensor.name].astype(np.float64)
        close = 1e-5 * float(np.abs(values).max())  # torch adds up in another order
        assert tensor.low == pytest.approx(values.min(), abs=close)
        assert tensor.high == pytest.approx(values.max(), abs=close)
        assert tensor.mean == pytest.approx(values.mean(), abs=close)
        assert tensor.rms == pytest.approx(np.sqrt(np.square(values).mean()), abs=close)
        assert tensor.count == values.size


def test_operators_and_the_widest(result: StatisticsResult) -> None:
    operators = {tensor.name: tensor.op for tensor in result.tensors}
    assert operators["x"] == "input"
    assert operators["c1"] == "Conv"
    widths = {t.name: (t.high or 0) - (t.low or 0) for t in result.tensors}
    assert result.widest == sorted(widths, key=lambda name: -widths[name])[: len(result.widest)]
    assert 1 <= len(result.widest) <= 5


def test_the_table(folder: Path, result: StatisticsResult) -> None:
    done = run(folder / "cnn.onnx", "--data", folder / "rows.npz")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["value", "op", "low", "high", "mean", "rms", "count"]
    rows = lines[2:-2]
    assert [row.split()[0] for row in rows] == [tensor.name for tensor in result.tensors]
    marked = {row.split()[0] for row in rows if row.endswith("widest")}
    assert marked == set(result.widest)
    assert lines[-1].endswith(f"over 20 rows of {folder / 'rows.npz'}")


def test_json_and_the_file_say_the_same(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "statistics.json"
    arguments = (folder / "cnn.onnx", "--data", folder / "recipe.toml", "--names", "c?", "-o")
    done = run(*arguments, output, "--json")
    assert done.exit_code == 0, done.output
    shown, written = json.loads(done.stdout), json.loads(output.read_text("utf-8"))
    assert shown == written
    assert StatisticsResult.model_validate(written).rows == 12
    assert [tensor["name"] for tensor in shown["tensors"]] == ["c1", "c2", "c3"]
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.json"]


def test_memory_changes_no_figure(folder: Path, tmp_path: Path, result: StatisticsResult) -> None:
    done = run(
        *(folder / "cnn.onnx", "--data", folder / "rows.npz", "--json"),
        *("--memory", "20 kB", "--scratch", tmp_path),
    )
    assert StatisticsResult.model_validate_json(done.stdout) == result
    assert not any(tmp_path.iterdir())


def test_options_reach_the_work(
    folder: Path, result: StatisticsResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def in_this_process(*arguments: Any, **options: Any) -> Statistics:
        asked.update(options)
        return collect_sharded(*arguments)

    monkeypatch.setattr(sharding, "collect_sharded", in_this_process)
    done = run(
        *(folder / "cnn.onnx", "--data", folder / "rows.npz", "--json", "--jobs", "3"),
        *("--engine", "dask://head:8786", "--memory", "2GB", "--scratch", folder),
    )
    assert StatisticsResult.model_validate_json(done.stdout) == result
    del asked["progress"]
    assert asked == {
        "jobs": 3,
        "engine": "dask://head:8786",
        "memory": 2_000_000_000,
        "scratch": folder,
        "file": folder / "cnn.onnx",
    }


def test_an_array_of_another_name(folder: Path) -> None:
    arguments = ("--data", folder / "two.npz", "--names", "x", "--json", "--input", "x=second")
    done = run(folder / "cnn.onnx", *arguments)
    assert json.loads(done.stdout)["tensors"][0]["mean"] == pytest.approx(100, abs=1)


def test_values_that_are_watched() -> None:
    model = from_text(MIXED)
    assert chosen_values(model) == ["x", "scaled", "kf", "column", "y"]
    assert chosen_values(model, ["k", "*shape", "y"]) == ["k", "y", "shape"]


def test_a_value_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    model = from_text(MIXED)
    model.ir.graph.node(1).outputs[0].name = "a[0]"
    assert chosen_values(model, ["a[0]"]) == ["a[0]"]


def test_integers_are_counted_where_they_are_named(tmp_path: Path) -> None:
    file = from_text(MIXED).save(tmp_path / "mixed.onnx")[0]
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 4), np.float32), k=np.array([1, 5, 3]))
    found = api.statistics(file, data=tmp_path / "rows.npz", names=["k", "y"])
    low, high, mean = found.tensors[0].low, found.tensors[0].high, found.tensors[0].mean
    assert (low, high, mean) == (1, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "{}/absent.npz"], "no such file or folder"),
        (["--data", "{}/rows.npz", "--names", "c11"], "has no value 'c11'; did you mean 'c1'?"),
        (["--data", "{}/rows.npz", "--engine", "http://a:1"], "expected dask://host:port"),
        (["--data", "{}/rows.npz", "-o", "out.txt"], "expected a name that ends in .json"),
        (["--data", "{}/rows.npz", "--jobs", "0"], "--jobs"),
        (["--data", "{}/rows.npz", "--memory", "2 apples"], "expected bytes such as 2GB"),
        (["--data", "{}/rows.npz", "--input", "x"], "expected input=array, got 'x'"),
        (["--data", "{}/recipe.toml", "--input", "x=x"], "the recipe names the arrays itself"),
        (["--data", "{}/validation.toml"], "the recipe names no rows to calibrate on"),
        ([], "--data"),
    ],
)
def test_refuses(arguments: list[str], text: str, folder: Path) -> None:
    done = run(folder / "cnn.onnx", *(each.format(folder) for each in arguments))
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("1.5 GiB", 1_610_612_736),
        ("512mib", 536_870_912),
        ("10kB", 10_000),
        ("1TB", 10**12),
        ("64 B", 64),
        ("1000000", 1_000_000),
    ],
)
def test_bytes(text: str, size: int) -> None:
    assert bytes_option(text) == size


@pytest.mark.parametrize("text", ["", "GB", "2 XB", "-1GB", "0", "1e9", "2,5GB", "inf"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected bytes such as 2GB"):
        bytes_option(text)


def test_inputs() -> None:
    assert input_option("a=b=c") == ("a=b", "c")
    for text in ("a", "=a", "a="):
        with pytest.raises(click.BadParameter, match="expected input=array"):
            input_option(text)


def test_the_model_is_not_changed() -> None:
    model = from_text(MIXED)
    before = model.digest
    chosen_values(model)
    assert Model(model.ir).digest == before
