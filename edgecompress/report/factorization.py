"""What a step's notes tell of a factorization.

Notes come back from caches and from JSON of other versions, so whatever is missing or is no number
is left out rather than refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecompress.report.data import Report, StepReport

__all__ = ["BlockErrors", "Factorization", "RankedLayer", "other_notes", "read", "steps"]

NOTE = "factorization"
"""Key of a step's notes under which all this stands."""

_PRODUCTS = ("matrix", "output")  # forms that are two factors of the weight as a matrix


@dataclass(frozen=True)
class RankedLayer:
    """A layer and what became of it.

    Attributes:
        name: Of its node.
        op: Its operator.
        kind: Form of its factors, or ``dense``.
        shape: Rows and columns of its weight as a matrix.
        ranks: One, or two of a Tucker form; () where it stayed dense.
        full_rank: The largest rank; None where ranks are not those of the weight as a matrix.
        break_even: The rank at which nothing is saved; None as before.
        share: Elements of its factors over those of its weight, which for two factors is the rank
            over the one at which nothing is saved; None where it is not known.
        error: Predicted squared error of its output over the output's power.
        spectrum: (rank over the largest rank, remaining relative error), by rank.
        seconds: Of the dense layer and of its factors.
    """

    name: str
    op: str
    kind: str
    shape: tuple[int, int] | None
    ranks: tuple[int, ...]
    full_rank: float | None
    break_even: float | None
    share: float | None
    error: float | None
    spectrum: tuple[tuple[float, float], ...]
    seconds: tuple[float, float] | None

    @property
    def rank_text(self) -> str:
        """The rank, both of a Tucker form, or ``dense``."""
        return ", ".join(map(str, self.ranks)) or "dense"


@dataclass(frozen=True)
class BlockErrors:
    """Squared error of a block's output over its power, by objective, ``refined`` among them.

    Attributes:
        name: Of the block.
        errors: By objective.
        rolled_back: Whether its refinement was undone.
        reason: Why it was, or why there was none.
    """

    name: str
    errors: Mapping[str, float]
    rolled_back: bool
    reason: str


@dataclass(frozen=True)
class Factorization:
    """A step's factorization; ``parameters`` and ``macs`` are of its candidates, before and after.

    Layers and blocks are in graph order.
    """

    settings: Mapping[str, Any]
    parameters: tuple[float, float] | None
    macs: tuple[float, float] | None
    layers: tuple[RankedLayer, ...]
    blocks: tuple[BlockErrors, ...]

    @property
    def factorized(self) -> list[RankedLayer]:
        """The layers that did not stay dense."""
        return [layer for layer in self.layers if layer.ranks]

    @property
    def objectives(self) -> list[str]:
        """All objectives that errors are known of, ``refined`` last."""
        found = dict.fromkeys(name for block in self.blocks for name in block.errors)
        return sorted(found, key=lambda name: name == "refined")


def steps(report: Report) -> list[tuple[StepReport, Factorization]]:
    """Steps that factorized, those included that were rolled back: the picture tells why."""
    found = [(step, read(step.notes)) for step in report.steps]
    return [(step, told) for step, told in found if told is not None]


def other_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Notes without those that the picture shows."""
    return {key: value for key, value in notes.items() if key != NOTE}


def read(notes: Mapping[str, Any]) -> Factorization | None:
    """The factorization of a step's notes, or None where there is nothing to show."""
    told = notes.get(NOTE)
    if not isinstance(told, Mapping):
        return None
    layers = tuple(_layer(each) for each in _mappings(told.get("layers")))
    blocks = tuple(_block(each) for each in _mappings(told.get("blocks")))
    if not layers and not blocks:
        return None
    settings = {key: told[key] for key in ("objective", "keep", "budget", "ranks") if key in told}
    return Factorization(
        settings, _pair(told.get("parameters")), _pair(told.get("macs")), layers, blocks
    )


def _layer(told: Mapping[str, Any]) -> RankedLayer:
    kind = str(told.get("kind") or "dense")
    ranks = _ranks(told.get("rank")) if kind != "dense" else ()
    shape = _pair(told.get("shape"))
    sides = (round(shape[0]), round(shape[1])) if shape else None
    full, even = (_number(told.get(key)) for key in ("full_rank", "break_even"))
    if sides and min(sides) > 0:
        full = full or min(sides)
        even = even or sides[0] * sides[1] / sum(sides)
    has_matrix_rank = kind in _PRODUCTS or not ranks
    points = [_pair(point) for point in _sequence(told.get("spectrum"))]
    return RankedLayer(
        name=str(told.get("layer") or "unnamed"),
        op=str(told.get("op") or ""),
        kind=kind if ranks else "dense",
        shape=sides,
        ranks=ranks,
        full_rank=full if has_matrix_rank else None,
        break_even=even if has_matrix_rank else None,
        share=_share(ranks, even if has_matrix_rank else None, _pair(told.get("parameters"))),
        error=_number(told.get("error")),
        spectrum=tuple(sorted(point for point in points if point is not None)),
        seconds=_pair(told.get("seconds")),
    )


def _ranks(told: object) -> tuple[int, ...]:
    each = told if isinstance(told, Sequence) and not isinstance(told, str) else [told]
    known = [rank for value in each if (rank := _number(value)) is not None]
    return tuple(round(rank) for rank in known if rank > 0)


def _share(
    ranks: tuple[int, ...], even: float | None, parameters: tuple[float, float] | None
) -> float | None:
    if not ranks:
        return 1.0
    if parameters is not None and parameters[0] > 0:
        return parameters[1] / parameters[0]
    return ranks[0] / even if even else None


def _block(told: Mapping[str, Any]) -> BlockErrors:
    given, refinement = told.get("errors"), told.get("refinement")
    errors = {
        str(name): error
        for name, value in (given.items() if isinstance(given, Mapping) else ())
        if (error := _number(value)) is not None
    }
    judged = refinement if isinstance(refinement, Mapping) else {}
    return BlockErrors(
        str(told.get("block") or "unnamed"),
        errors,
        judged.get("kept") is False and judged.get("steps") != 0,
        str(judged.get("reason") or ""),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else ()


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [each for each in _sequence(value) if isinstance(each, Mapping)]


def _pair(value: object) -> tuple[float, float] | None:
    found = [_number(each) for each in _sequence(value)]
    if len(found) != 2 or found[0] is None or found[1] is None:
        return None
    return found[0], found[1]
