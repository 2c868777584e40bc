"""Finished steps, kept under the digest of all that went into them.

A key covers the model, the pass with its options, the data, the target's constraints, the seed, the
versions of the libraries and our own source code. So a hit is the step's own result, and an
interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgecompress import files
from edgecompress.errors import InputError, OutputError
from edgecompress.graph_pass import Applied, Change, Skip
from edgecompress.model import Model

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

__all__ = ["StepCache", "code_of", "digest_of", "source_files", "versions"]

_FACTS, _MODEL = "manifest.json", "model.onnx"  # manifest.json moves in last: see files
_LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
_EXTRAS = ("scipy",)


@cache
def versions() -> dict[str, str]:
    """Versions of edgecompress and of the libraries that a result depends on."""
    from edgecompress import __version__

    found = {"edgecompress": __version__, **{name: version(name) for name in _LIBRARIES}}
    for name in _EXTRAS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def source_files() -> list[Path]:
    """All Python files of this package, passes included."""
    folder = Path(__file__).parent
    return sorted({*folder.rglob("*.py"), *(folder / "passes").glob("*.py")})


@cache
def _source_digest() -> str:
    """SHA-256 of this package's own source, so that a changed pass never meets an old result."""
    sha = hashlib.sha256()
    for file in source_files():
        sha.update(file.read_bytes())
    return sha.hexdigest()


@cache
def code_of(cls: type) -> str:
    """SHA-256 of the file that defines a class: passes may come from other packages."""
    file = inspect.getsourcefile(cls)
    return "" if file is None else files.sha256_file(Path(file))


def digest_of(**parts: Any) -> str:
    """Key of a result: SHA-256 over plain data, library versions and our own source."""
    whole = {**parts, "versions": versions(), "source": _source_digest()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


class StepCache:
    """A folder of results; with ``folder=None`` it remembers nothing.

    What something outside of us has damaged counts as absent, and is written again. Where results
    cannot be kept, as on a full disk, the work goes on without.

    Attributes:
        trouble: Why something could not be kept, or None.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.trouble: str | None = None

    def tidy(self) -> None:
        """Finish or remove what processes that were killed have left."""
        if self._folder is not None:
            files.finish_all(self._folder)

    def step(self, key: str, base: Model) -> Applied | None:
        """A step's result, or None where it is not there or is damaged.

        Args:
            key: See :func:`digest_of`.
            base: The model that went into the step; returned where the step changed nothing.
        """
        if self._folder is None:
            return None
        place = self._folder / key
        try:
            facts = json.loads((place / _FACTS).read_text(encoding="utf-8"))
            model = base
            if facts["digest"] is not None:
                model = Model.load(place / _MODEL)
                model.path = base.path
                model.steps = (*base.steps, facts["step"])
                if model.digest != facts["digest"]:
                    return None
            return Applied(
                model=model,
                changed=tuple(Change(**c) for c in facts["changed"]),
                skipped=tuple(Skip(**s) for s in facts["skipped"]),
                claimed=tuple(facts["claimed"]),
                notes=facts["notes"],
            )
        except (OSError, ValueError, KeyError, TypeError, InputError):
            return None

    def keep_step(self, key: str, name: str, base: Model, applied: Applied) -> None:
        """Keep a step's result.

        Raises:
            OutputError: There cannot be such a folder.
        """
        if self._folder is None:
            return
        changed = applied.model is not base
        facts = {
            "step": name,
            "digest": applied.model.digest if changed else None,
            "changed": [asdict(c) for c in applied.changed],
            "skipped": [asdict(s) for s in applied.skipped],
            "claimed": list(applied.claimed),
            "notes": dict(applied.notes),
        }
        with self._keeping(self._folder), files.folder_aside(self._folder / key) as aside:
            if changed:
                applied.model.save(aside / _MODEL)
            files.write_text(aside / _FACTS, json.dumps(facts))

    def value(self, key: str, kind: type[T], compute: Callable[[], T]) -> T:
        """A flat dataclass under ``key``: read, or computed and kept.

        Raises:
            OutputError: There cannot be such a folder.
        """
        if self._folder is None:
            return compute()
        file = self._folder / f"{key}.json"
        try:
            return kind(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            computed = compute()
            with self._keeping(self._folder):
                files.write_text(file, json.dumps(asdict(computed)))
            return computed

    @contextmanager
    def _keeping(self, folder: Path) -> Iterator[None]:
        """Remember why something cannot be kept; refuse a folder that is a file."""
        try:
            yield
        except OutputError as error:
            if any(each.exists() and not each.is_dir() for each in (folder, *folder.parents)):
                raise OutputError(
                    f"finished steps cannot be kept: {error.what}",
                    where=str(folder),
                    cure="name another folder in [build] cache, or build with --no-cache",
                ) from error
            self.trouble = f"finished steps are not kept in {folder}: {error.what}"
