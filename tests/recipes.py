"""A small recipe that builds in a second or two: a small CNN, random rows, few timed runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecompress.recipe import Recipe
from edgecompress.report.data import Report
from tests.models import small_cnn

RECIPE: Mapping[str, Any] = {
    "source": {"model": "cnn.onnx"},
    "data": {"path": "rows.npz"},
    "pass": [{"name": "quantize", "bias_correction": False}],
    "target": {"name": "host", "runs": 5},
}
UNREACHABLE: Mapping[str, Any] = {"name": "android-cpu"}
"""A target that nothing is measured on, so that a build is faster still."""

DELIVERED = {"model.onnx", "manifest.json", "report.json", "report.html", "junit.xml"}
BROKEN_OFF = {"report.json", "report.html", "junit.xml"}


@dataclass(frozen=True)
class Built:
    """A build that passed, its folder, and the labels of its progress in the order they came."""

    folder: Path
    report: Report
    labels: tuple[str, ...]

    @property
    def output(self) -> Path:
        return self.folder / "out"


def save_inputs(folder: Path) -> Path:
    """``cnn.onnx`` and ``rows.npz``, the files that :data:`RECIPE` names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    small_cnn().save(folder / "cnn.onnx")
    np.savez(
        folder / "rows.npz",
        x=rng.normal(0, 1, (32, 3, 16, 16)).astype(np.float32),
        digits=rng.integers(0, 10, 32),
    )
    return folder


def tables(**changes: Any) -> dict[str, Any]:
    """:data:`RECIPE` with some tables replaced; None leaves one out."""
    return {key: value for key, value in {**RECIPE, **changes}.items() if value is not None}


def recipe(folder: Path, **changes: Any) -> Recipe:
    """:func:`tables` as a recipe in ``folder``."""
    return Recipe.from_dict(tables(**changes), base=folder)


def write_recipe(folder: Path, **changes: Any) -> Path:
    """:func:`tables` as a file in ``folder``."""
    file = folder / "recipe.json"
    file.write_text(json.dumps(tables(**changes)), encoding="utf-8")
    return file


def names(folder: Path) -> set[str]:
    """Names of what lies in a folder; empty where there is no folder."""
    return {file.name for file in folder.iterdir()} if folder.exists() else set()
