"""The languages that a recipe may be written in, and their syntax errors with line and column."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgecompress.errors import MissingDependencyError, RecipeError

__all__ = ["SUFFIXES", "is_recipe", "read_tables"]

SUFFIXES = (".toml", ".json", ".yaml", ".yml")
"""How the names of recipes end."""


def read_tables(file: Path) -> Mapping[str, Any]:
    """The tables in a ``.toml``, ``.json``, ``.yaml`` or ``.yml`` file.

    Raises:
        RecipeError: The file is missing, of another kind, or has a syntax error.
        MissingDependencyError: It is YAML, and PyYAML is not installed.
    """
    readers = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(file.suffix.lower())
    if reader is None or file.is_dir():
        got = "a folder" if file.is_dir() else f"the suffix {file.suffix!r}"
        raise RecipeError(
            f"expected a recipe ({', '.join(readers)}), got {got}",
            where=str(file),
            cure="`edgecompress init MODEL` writes a recipe; `compress` needs none",
        )
    if not file.is_file():
        raise RecipeError(
            "no such file", where=str(file), cure="`edgecompress init MODEL` writes a recipe"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError("is not UTF-8 text", where=str(file), cure="save it as UTF-8") from error
    except OSError as error:
        raise RecipeError(f"cannot be read: {error.strerror}", where=str(file)) from error
    try:
        data = reader(text, file)
    except RecursionError as error:
        raise RecipeError("is nested too deeply", where=str(file)) from error
    if not isinstance(data, Mapping):
        raise RecipeError(f"expected tables, got {type(data).__name__}", where=str(file))
    return data


def _toml(text: str, file: Path) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # tomllib says "... (at line 3, column 5)"
        raise RecipeError(f"is not valid TOML: {error}", where=str(file)) from error


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"is not valid JSON: {error.msg} (at line {error.lineno}, column {error.colno})"
        raise RecipeError(what, where=str(file)) from error


def _yaml(text: str, file: Path) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependencyError("pyyaml", f"the recipe {file.name}", "yaml") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise RecipeError(f"is not valid YAML: {problem}{place}", where=str(file)) from error


def is_recipe(path: str | os.PathLike[str]) -> bool:
    """Whether a path is named like a recipe."""
    return Path(path).suffix.lower() in SUFFIXES
