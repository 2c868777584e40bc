"""Finished steps, kept under the digest of all that went into them.

A key covers the model, the pass with its options, the data, the target's constraints, the seed, the
versions of the libraries and our own source code. So a hit is the step's own result, and an
interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgecompress import files
from edgecompress.errors import InputError
from edgecompress.graph_pass import Applied, Change, Skip
from edgecompress.model import Model

__all__ = ["StepCache", "digest_of", "versions"]

_LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of edgecompress and of the libraries that a result depends on."""
    from edgecompress import __version__

    return {"edgecompress": __version__, **{name: version(name) for name in _LIBRARIES}}


@cache
def _source_digest() -> str:
    """SHA-256 of this package's own source, so that a changed pass never meets an old result."""
    sha = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted((*folder.rglob("*.py"), *(folder / "passes").resolve().glob("*.py"))):
        sha.update(file.read_bytes())
    return sha.hexdigest()


def digest_of(**parts: Any) -> str:
    """Key of a result: SHA-256 over plain data, library versions and our own source."""
    whole = {**parts, "versions": versions(), "source": _source_digest()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


class StepCache:
    """A folder of results; with ``folder=None`` it remembers nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def has_step(self, key: str) -> bool:
        """Whether a step's result is there."""
        return self._folder is not None and (self._folder / key / "manifest.json").is_file()

    def step(self, key: str, base: Model) -> Applied | None:
        """A step's result, or None where it is not there or cannot be read.

        Args:
            key: See :func:`digest_of`.
            base: The model that went into the step; returned where the step changed nothing.
        """
        if self._folder is None or not self.has_step(key):
            return None
        place = self._folder / key
        try:
            facts = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
            model = base
            if facts["has_model"]:
                model = Model.load(place / "model.onnx")
                model.path = base.path
                model.steps = (*base.steps, facts["step"])
            return Applied(
                model=model,
                changed=tuple(Change(**c) for c in facts["changed"]),
                skipped=tuple(Skip(**s) for s in facts["skipped"]),
                claimed=tuple(facts["claimed"]),
                notes=facts["notes"],
            )
        except (OSError, ValueError, KeyError, TypeError, InputError):
            # Damaged by something outside of us; the step is simply run again.
            shutil.rmtree(place, ignore_errors=True)
            return None

    def keep_step(self, key: str, name: str, base: Model, applied: Applied) -> None:
        """Keep a step's result."""
        if self._folder is None:
            return
        facts = {
            "step": name,
            "has_model": applied.model is not base,
            "changed": [asdict(c) for c in applied.changed],
            "skipped": [asdict(s) for s in applied.skipped],
            "claimed": list(applied.claimed),
            "notes": dict(applied.notes),
        }
        with files.folder_aside(self._folder / key) as aside:
            if facts["has_model"]:
                applied.model.save(aside / "model.onnx")
            (aside / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")

    def value(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Plain data under ``key``: read, or computed and kept."""
        if self._folder is None:
            return compute()
        file = self._folder / f"{key}.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            computed = compute()
            files.write_text(file, json.dumps(computed))
            return computed
