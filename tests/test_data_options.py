"""Options of the command line as tables of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.data.calibration import DataSpec
from edgecompress.data_options import data_table, validation_rows
from edgecompress.errors import DataError, RecipeError
from tests.models import from_text
from tests.texts import save_lines, save_tokenizer

MODEL = """<ir_version: 10, opset_import: ["": 20]>
agraph (int64[N, L] input_ids) => (int64[N, L] y) { y = Identity(input_ids) }"""


def test_text_options_become_a_table(tmp_path: Path) -> None:
    text = {"texts": "6,7", "header": False, "max_length": 32, "tokenizer": "here"}
    table = data_table("train.csv", "dev.csv", "5", None, text)
    rows = {"texts": ["6", "7"], "header": False, "labels": "5"}
    assert table == {
        "max_length": 32,
        "tokenizer": "here",
        "calibration": {"path": "train.csv", **rows},
        "validation": {"path": "dev.csv", **rows},
    }
    spec = DataSpec(**table)
    assert spec.validation is not None
    assert spec.validation.texts == ("6", "7")
    with pytest.raises(DataError, match="no rows to calibrate on"):
        data_table(None, None, None, None, text)


def test_paths_of_a_recipe_start_from_here(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[source]\nmodel = "m.onnx"\n[data]\npath = "x.txt"\ntokenizer = "model"\n'
    )
    table = data_table(tmp_path / "recipe.toml", None, None, None)
    assert table is not None
    assert (table["path"], table["tokenizer"]) == (str(tmp_path / "x.txt"), str(tmp_path / "model"))


def test_all_rows_of_a_text_validate(tmp_path: Path) -> None:
    file = save_lines(tmp_path / "x.tsv", "0\ta b\tc", "1\tc\td")
    folder = save_tokenizer(tmp_path / "model")
    text: dict[str, Any] = {"texts": [2, 3]}
    rows, metric = validation_rows(
        file, None, from_text(MODEL), 4, labels="1", text=text, folder=folder
    )
    assert rows is not None
    assert metric is not None
    assert (rows.validation_rows, rows.batch_size, metric.name) == (4, 4, "spearman")


def test_refused_options(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.validation: unknown key 'txt'; did you mean 'te"):
        validation_rows("x.tsv", None, from_text(MODEL), text={"txt": 1})
