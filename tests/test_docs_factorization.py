"""The page about factorization names the options that the pass has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edgecompress.graph_pass import pass_class
from edgecompress.recipe import load_recipe
from edgecompress.report import format as fmt

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "examples" / "factorize").glob("*.toml"))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in (None, ()) else fmt.plain(value)


def test_the_table_of_options_is_that_of_the_pass() -> None:
    text = (ROOT / "docs" / "factorization.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| ([^|]+?) \| ", text.split("## Options")[1], re.MULTILINE)
    options = {
        field.name: _shown(field.default)
        for field in dataclasses.fields(pass_class("factorize"))
        if field.name not in ("ops", "nodes")
    }
    assert dict(told) == options


@pytest.mark.parametrize("file", RECIPES, ids=[file.stem for file in RECIPES])
def test_an_example_loads(file: Path) -> None:
    recipe = load_recipe(file)
    names = [step.name for step in recipe.passes]
    assert names[:2] == ["cleanup", "factorize"]
    assert {"size_ratio", "metric_drop"} <= recipe.budget.limits().keys()
    for folder in (recipe.output, recipe.cache):
        assert folder is not None
        assert folder.resolve().relative_to(ROOT).parts[0] in ("out", ".edgecompress")


def test_examples_do_not_share_an_output_folder() -> None:
    everywhere = list((ROOT / "examples").rglob("*.toml"))
    assert len({load_recipe(file).output for file in everywhere}) == len(everywhere)
