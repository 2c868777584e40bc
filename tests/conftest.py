"""Fixtures for the whole suite. Importing edgecompress first turns the runtime's telemetry off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import edgecompress  # noqa: F401

if TYPE_CHECKING:
    from tests.recipes import Built

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"

settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a real model or data file; skips where the folder is absent."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(
                f"../shared/data/{name} is absent: real models and data are not in this repository"
            )
        return SHARED / name

    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One small build, measured on this machine, that many tests look at and none changes."""
    from edgecompress import pipeline
    from tests.recipes import Built, recipe, save_inputs

    folder = save_inputs(tmp_path_factory.mktemp("built"))
    labels: list[str] = []

    def progress(label: str, done: int, total: int) -> None:
        if label not in labels[-1:]:
            labels.append(label)

    budget = {"metric_drop": 0.1, "size_mb": 1, "memory_mb": 2000}
    report = pipeline.build(recipe(folder, budget=budget), progress=progress)
    return Built(folder, report, tuple(labels))
