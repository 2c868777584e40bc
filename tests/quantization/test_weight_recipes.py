"""The example recipes with weights of 4 bits."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecompress.recipe import load_recipe
from edgecompress.target import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["minilm", "llama"])
def test_a_recipe_loads(name: str) -> None:
    recipe = load_recipe(EXAMPLES / name / "int4.toml")
    assert [step.name for step in recipe.passes] == ["cleanup", "quantize_weights"]
    assert load(recipe.target.name).weight_only is not None
    assert recipe.output is not None
    assert recipe.output.resolve() == (EXAMPLES.parent / "out" / f"{name}_int4")


def test_rows_of_the_language_model(shared: Callable[[str], Path]) -> None:
    shared("llama10m")
    pytest.importorskip("tokenizers")
    rows = runpy.run_path(str(EXAMPLES / "llama" / "wikitext.py"))["rows"]
    seen, unseen = rows("calibration"), rows("validation")
    assert seen["input_ids"].shape == seen["attention_mask"].shape == (128, 256)
    assert unseen["input_ids"].shape[1] == 256
    assert len(unseen["input_ids"]) > 30
