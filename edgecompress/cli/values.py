"""Values that options take: passes with their options, budgets, shapes, inputs, bytes."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import click

__all__ = [
    "pass_option",
    "budget_option",
    "shape_option",
    "shapes_option",
    "dims_option",
    "input_option",
    "text_option",
    "bytes_option",
    "as_mapping",
]

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


def pass_option(value: str) -> tuple[str, dict[str, Any]]:
    """``quantize`` or ``quantize:method=mse,per_channel=false``: a pass and its options."""
    name, _, rest = value.partition(":")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else []:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"expected option=value, got {item!r} in {value!r}")
        options[key.strip()] = _literal(text.strip())
    if not name:
        raise click.BadParameter(f"expected the name of a pass first, got {value!r}")
    return name, options


def budget_option(value: str) -> tuple[str, float]:
    """``size_mb=3``: a budget and its limit."""
    name, _, text = value.partition("=")
    try:
        return name.strip(), float(text)
    except ValueError:
        raise click.BadParameter(f"expected name=number such as size_mb=3, got {value!r}") from None


def shape_option(value: str) -> tuple[str, tuple[int, ...]]:
    """``input=1x3x224x224``, or ``input=`` for a scalar: an input and its dimensions."""
    name, equals, text = value.rpartition("=")
    dims = text.split("x") if text else []
    if not equals or not name or not all(d.isascii() and d.isdigit() for d in dims):
        raise click.BadParameter(f"expected input=1x3x224x224, got {value!r}")
    return name, tuple(map(int, dims))


def shapes_option(value: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """``input=1x16,1x64``: an input and one or several shapes."""
    name, _, text = value.rpartition("=")
    return name or value, tuple(shape_option(f"{name}={each}")[1] for each in text.split(","))


def dims_option(value: str) -> tuple[str, tuple[int, ...]]:
    """``sequence=16,64,128``: a symbolic dimension and one or several numbers."""
    name, equals, text = value.rpartition("=")
    numbers = text.split(",")
    if not (equals and name and all(n.isascii() and n.isdigit() and int(n) for n in numbers)):
        raise click.BadParameter(f"expected dimension=16,64,128, got {value!r}")
    return name, tuple(map(int, numbers))


def input_option(value: str) -> tuple[str, str]:
    """``tokens=input_ids``: an input and the array that feeds it."""
    name, equals, array = value.rpartition("=")
    if not (equals and name and array):
        raise click.BadParameter(f"expected input=array, got {value!r}")
    return name, array


def text_option(value: str) -> tuple[str, Any]:
    """``max_length=128``: an option of rows that are text."""
    key, equals, given = value.partition("=")
    if not (equals and key and given):
        raise click.BadParameter(f"expected key=value, such as max_length=128, got {value!r}")
    return key, {"true": True, "false": False}.get(given, int(given) if given.isdigit() else given)


def bytes_option(value: str) -> int:
    """``2GB``, ``512MiB`` or ``1000000``: a number of bytes, in decimal or binary units."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", value.strip().lower())
    size = round(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if size < 1:
        raise click.BadParameter(f"expected bytes such as 2GB, 512MiB or 1000000, got {value!r}")
    return size


def as_mapping(
    context: click.Context, parameter: click.Parameter, pairs: tuple[tuple[str, Any], ...]
) -> dict[str, Any]:
    """Callback that makes a dictionary of repeated options, and refuses a name given twice."""
    names = [name for name, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise click.BadParameter(f"given twice: {', '.join(sorted(twice))}", context, parameter)
    return dict(pairs)


def _literal(text: str) -> Any:
    """Booleans and numbers as such, everything else as text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    number = isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if number else text
