"""The example recipes name real models and data, so most of this skips where those are absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edgecompress
from edgecompress.data.calibration import CalibrationSet
from edgecompress.metrics import make_metric
from edgecompress.model import Model
from edgecompress.recipe import Recipe, load_recipe
from edgecompress.results import Plan
from edgecompress.target import load, names

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RECIPES = sorted(EXAMPLES.glob("*.toml"))
ROWS = {
    "mobilenet_v1_imagenet": (100, 400),
    "mobilenet_v2_cifar10": (100, 1000),
    "resnet20_cifar10": (100, 5000),
}

each_recipe = pytest.mark.parametrize("file", RECIPES, ids=[file.stem for file in RECIPES])


@each_recipe
def test_a_recipe_loads(file: Path) -> None:
    recipe = load_recipe(file)
    assert [step.name for step in recipe.passes] == ["cleanup", "quantize"]
    assert recipe.target.name in names()
    assert load(recipe.target.name).int8 is not None
    assert recipe.budget.limits().keys() == {"size_ratio", "latency_ratio", "metric_drop"}
    # Results and cache lie where git ignores them.
    for folder in (recipe.output, recipe.cache):
        assert folder is not None
        assert folder.resolve().relative_to(EXAMPLES.parent).parts[0] in ("out", ".edgecompress")


def test_recipes_do_not_share_an_output_folder() -> None:
    assert len({load_recipe(file).output for file in RECIPES}) == len(RECIPES)


@each_recipe
def test_its_model_rows_and_metric_fit(file: Path, shared: Callable[[str], Path]) -> None:
    recipe = load_recipe(file)
    model, data = _opened(recipe, shared)
    assert (data.calibration_rows, data.validation_rows) == ROWS[file.stem]
    batch = next(data.batches("validation", 2))
    assert batch.inputs["input"].shape[1:] == model.signature.inputs[0].shape[1:]
    # Preprocessed as the model was trained: about centred, and of the size of one.
    assert abs(batch.inputs["input"].mean()) < 1.5
    assert 0.2 < batch.inputs["input"].std() < 2
    metric = make_metric(recipe.metric, base=recipe.base, data=data)
    metric.check(data)
    assert metric.name == "top1"


@pytest.mark.slow
def test_resnet20_builds_within_size_and_accuracy(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    shared("resnet20_cifar10.onnx")
    report = edgecompress.build(
        EXAMPLES / "resnet20_cifar10.toml", output=tmp_path / "out", use_cache=False
    )
    assert not isinstance(report, Plan)
    verdicts = {verdict.name: verdict for verdict in report.budgets}
    assert verdicts["size_ratio"].passed
    assert verdicts["metric_drop"].passed
    assert verdicts["latency_ratio"].basis == "measured"
    assert report.coverage is not None
    assert report.coverage.fused == report.coverage.claimed > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "minilm", "minilm_int8"])
def test_factorized_models_build_within_size_and_accuracy(
    shared: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    shared("cifar10.npz")
    report = edgecompress.build(
        EXAMPLES / "factorize" / f"{name}.toml", output=tmp_path / "out", use_cache=False
    )
    assert not isinstance(report, Plan)
    verdicts = {verdict.name: verdict for verdict in report.budgets}
    assert verdicts["size_ratio"].passed
    assert verdicts["metric_drop"].passed


def _opened(recipe: Recipe, shared: Callable[[str], Path]) -> tuple[Model, CalibrationSet]:
    shared(Path(recipe.source.model).name)
    shared("imagenet")
    shared("cifar10.npz")
    model = Model.load(recipe.base / recipe.source.model)
    assert recipe.data is not None
    data = CalibrationSet.open(
        recipe.data, model.signature, base=recipe.base, seed=recipe.build.seed
    )
    return model, data
