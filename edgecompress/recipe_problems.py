"""What is wrong with a recipe, in words: each problem with its place and its cure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgecompress.errors import RecipeError, nearest

__all__ = ["Problem", "explain", "refuse"]


# pydantic's words, and those of the rest of our errors; in this order.
_WORDS = {
    "Input should be greater": "expected a number greater",
    "Input should be less": "expected a number less",
    "Input should be": "expected",
    "a valid ": "a ",
    "a integer": "an integer",
}


class Problem(NamedTuple):
    """One thing that is wrong: where, what, and what to do about it."""

    place: str
    what: str
    cure: str | None = None


def refuse(problems: Sequence[Problem], where: str | None) -> RecipeError:
    """One error for all problems of a recipe called ``where``."""
    if len(problems) == 1:
        place, what, cure = problems[0]
        return RecipeError(what, where=f"{where}: {place}" if where else place, cure=cure)
    lines = [f"{len(problems)} problems", *(f"  {place}: {what}" for place, what, _ in problems)]
    cures = dict.fromkeys(problem.cure for problem in problems if problem.cure)
    return RecipeError("\n".join(lines), where=where, cure="; ".join(cures) or None)


def explain(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]
) -> list[Problem]:
    """The problems that pydantic found in ``data`` for ``model``, one for each place."""
    by_place: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        by_place.setdefault(_place(detail, data), []).append(detail)
    return [_explain(place, details, model) for place, details in by_place.items()]


def _place(detail: ErrorDetails, data: Any) -> tuple[int | str, ...]:
    """Where in ``data`` it is: pydantic's location without the names of union members."""
    place: list[int | str] = []
    for part in detail["loc"]:
        by_name = isinstance(data, Mapping) and part in data
        by_number = isinstance(data, list | tuple) and part in range(len(data))
        if by_name or by_number:
            data = data[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        place.append(part)
    return tuple(place)


def _explain(
    place: tuple[int | str, ...], details: list[ErrorDetails], model: type[BaseModel]
) -> Problem:
    dotted, kind = _dotted(place), details[0]["type"]
    if kind == "extra_forbidden":
        hint = nearest(str(place[-1]), _known_keys(model, place[:-1]))
        what = f"unknown key {str(place[-1])!r}; {hint}"
        return Problem(_dotted(place[:-1]) or "top level", what)
    if kind == "missing":
        return Problem(dotted, "is missing", f"add {dotted} to the recipe")
    messages = " or ".join(dict.fromkeys(_message(detail) for detail in details))
    came = details[0]["input"]
    if "got " not in messages and not isinstance(came, Mapping):
        messages += f", got {came!r:.60}"
    return Problem(dotted or "recipe", messages)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "expected a table"
    message = detail["msg"].removeprefix("Value error, ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return f"{message[:1].lower()}{message[1:]}"


def _dotted(place: Sequence[int | str]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    return "".join(parts).removeprefix(".")


def _known_keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Keys of the table at ``place``; none where that is no table of ours."""
    for part in place:
        field = model.model_fields.get(str(part))
        if field is None:  # a name that the user chose, in a table of tables
            continue
        inner = _model_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
