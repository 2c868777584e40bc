"""The models, their calibration rows, and the rows that judge them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from _common import DATA, REPOSITORY

if TYPE_CHECKING:
    from edgecompress import Recipe
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.data.parts import Batch

__all__ = ["HOME", "LEFT_OUT", "SUBJECTS", "Subject", "UnavailableError", "prepare"]

HOME = REPOSITORY / ".benchmark-peers" / "factorization"
"""Cleaned float files and finished runs; git ignores it."""

LEFT_OUT = {"squeezenet": "there is no file of it among the models of this project"}

_SENTENCES = 1200
_WINDOWS = 128
_IMAGES = {"resnet20": 512, "resnet56": 512, "mobilenet_v1": 100}
_TITLES = {
    "llama10m": "Llama layout, 10M, WikiText-2",
    "minilm": "all-MiniLM-L6-v2, STS-B dev",
    "resnet20": "ResNet-20, CIFAR-10",
    "resnet56": "ResNet-56, CIFAR-10",
    "mobilenet_v1": "MobileNet v1 0.75, ImageNet",
}


class UnavailableError(Exception):
    """A model that this machine does not have; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A float model with its rows.

    Attributes:
        name: Key in :data:`SUBJECTS`.
        source: The float file behind the pass ``cleanup``, which all start from.
        recipe: Its data tables; the source in it is ``source``.
        quick: With few rows.
    """

    name: str
    source: Path
    recipe: Recipe
    quick: bool = False

    @property
    def title(self) -> str:
        """As people say it."""
        return _TITLES[self.name]

    @cached_property
    def data(self) -> CalibrationSet:
        """The rows of both splits."""
        return opened(self.recipe)

    @cached_property
    def digest(self) -> str:
        """Of the float file and of all rows."""
        sha = hashlib.sha256(self.source.read_bytes())
        sha.update(f"{self.data.digest} {self.quick}".encode())
        return sha.hexdigest()

    def rows(self) -> str:
        """What it is calibrated and judged on, for people."""
        tokens = "" if self.tokens is None else f" ({self.tokens:,} tokens)"
        return (
            f"{self.data.calibration_rows} calibration rows{tokens}, "
            f"{self.data.validation_rows} validation rows"
        )

    @cached_property
    def tokens(self) -> int | None:
        """Of the calibration rows; None for images."""
        if self.name not in _TEXTS:
            return None
        batches = self.data.batches("calibration")
        return sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)

    def validation(self) -> Iterator[Batch]:
        """The rows that judge, few at once: a language model's outputs are large."""
        return self.data.batches("validation", 8 if self.name == "llama10m" else 32)

    def other_text(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Windows of a text of another kind than all calibration rows; language models only."""
        return _windows_of_sentences(8 if self.quick else 64)


_TEXTS = ("llama10m", "minilm")


def opened(recipe: Recipe) -> CalibrationSet:
    """The rows of a recipe whose source is an ONNX file."""
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.model import Model

    assert recipe.data is not None
    signature = Model.load(recipe.base / recipe.source.model).signature
    return CalibrationSet.open(recipe.data, signature, base=recipe.base, seed=recipe.build.seed)


def prepare(name: str, *, quick: bool, rows: int | None = None) -> Subject:
    """Open a model; texts are exported to ONNX and all are cleaned up once.

    Args:
        name: Key in :data:`SUBJECTS`.
        quick: Few rows, to see that the programs work.
        rows: Other than the usual number of calibration rows.

    Raises:
        UnavailableError: The model comes from a package that is not installed.
    """
    from quantization.models import HOME as EXPORTS
    from quantization.models import MODELS
    from quantization.models import UnavailableError as NotInstalledError

    from edgecompress import Recipe

    folder = EXPORTS / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        recipe = MODELS[name].recipe(folder)
    except NotInstalledError as error:
        raise UnavailableError(str(error)) from error
    tables = recipe.as_dict()
    SUBJECTS[name](tables["data"])
    if quick:
        tables["data"]["calibration"]["rows"] = 32
        tables["data"]["validation"]["rows"] = 32
    elif rows is not None:
        tables["data"]["calibration"]["rows"] = rows
    clean = _cleaned(recipe.base / recipe.source.model, HOME / "models" / name / "float.onnx")
    tables["source"] = {"model": os.fspath(clean)}
    return Subject(name, clean, Recipe.from_dict(tables, base=recipe.base, where=name), quick)


def _cleaned(source: Path, file: Path) -> Path:
    from edgecompress.graph_pass import Context, make_pass, run_pass
    from edgecompress.model import Model

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name("partial.onnx")
        run_pass(make_pass("cleanup", {}), Model.load(source), Context()).model.save(partial)
        partial.replace(file)
    return file


def _sentences(tables: dict[str, Any]) -> None:
    tables["calibration"] |= {"rows": _SENTENCES}


def _windows(tables: dict[str, Any]) -> None:
    tables["calibration"] |= {"rows": _WINDOWS}
    tables["validation"].pop("rows", None)


def _images(count: int) -> Callable[[dict[str, Any]], None]:
    def change(tables: dict[str, Any]) -> None:
        tables["calibration"] |= {"rows": count}

    return change


SUBJECTS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "llama10m": _windows,
    "minilm": _sentences,
    **{name: _images(count) for name, count in _IMAGES.items()},
}
"""What each changes in the data tables that :mod:`quantization.models` has."""


def _windows_of_sentences(most: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The different sentences of STS-B dev, joined, in windows of 256 tokens."""
    import csv

    from tokenizers import Tokenizer

    with (DATA / "sts-dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = dict.fromkeys(text for row in rows for text in row[5:7])
    tokenizer = Tokenizer.from_file(os.fspath(DATA / "llama10m" / "tokenizer.json"))
    tokens = tokenizer.encode("\n".join(sentences), add_special_tokens=False).ids
    length = 256
    ids = np.array(tokens[: len(tokens) // length * length], np.int64).reshape(-1, length)[:most]
    for start in range(0, len(ids), 8):
        part = ids[start : start + 8]
        yield {"input_ids": part, "attention_mask": np.ones_like(part)}
