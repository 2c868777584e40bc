"""Fixtures for the whole suite. Importing edgecompress first turns the runtime's telemetry off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

import edgecompress  # noqa: F401

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
