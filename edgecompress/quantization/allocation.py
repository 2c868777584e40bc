"""Which format each layer gets: an integer program over the layers' expected losses and costs.

One format is chosen for each item, as in HAWQ-V3 (Yao et al., ICML 2021, arXiv 2011.10680,
section 3.3)::

    min   sum of loss[i, f] x[i, f]
    s.t.  sum over f of x[i, f] = 1                          for each item i
          sum of bytes[i, f] x[i, f] <= bytes, and the same for time, loss and operations in float
          x binary

Any of the costs can be what is minimised. It is solved exactly by HiGHS (``scipy.optimize.milp``).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from edgecompress.errors import MissingDependencyError, PassError

__all__ = ["Allocation", "Choice", "Cost", "Limits", "allocate"]

Cost = Literal["loss", "bytes", "ms", "float_macs"]

_RANKING: tuple[Cost, ...] = ("loss", "ms", "bytes")
_COSTS: tuple[Cost, ...] = (*_RANKING, "float_macs")
# HiGHS compares in absolute terms, to 1e-6: with the largest number of a row at this value that is
# 1e-12 of it, less than one byte of any model.
_LARGEST = 1e6
_SLACK = 1e-11
_EQUAL = 1e-9


@dataclass(frozen=True)
class Choice:
    """One format of an item, and what it costs.

    Attributes:
        format: Its name.
        loss: Expected loss that it brings about; 0 for float.
        bytes: Of the item in the file.
        ms: Time of the item in one inference, measured or estimated, in any one unit.
        float_macs: Multiply-accumulates of the item that stay in float.
    """

    format: str
    loss: float
    bytes: int = 0
    ms: float = 0.0
    float_macs: float = 0.0


@dataclass(frozen=True)
class Limits:
    """The most that all items together may cost; None where it does not matter."""

    loss: float | None = None
    bytes: int | None = None
    ms: float | None = None
    float_macs: float | None = None


@dataclass(frozen=True)
class Allocation:
    """What was chosen.

    Attributes:
        formats: Item -> format.
        loss: Sum of the expected losses.
        bytes: Sum over the items.
        ms: Sum over the items.
        float_macs: Sum over the items.
    """

    formats: Mapping[str, str]
    loss: float
    bytes: int
    ms: float
    float_macs: float


def allocate(
    items: Mapping[str, Sequence[Choice]],
    limits: Limits | None = None,
    *,
    minimise: Cost = "loss",
    where: str = "mixed precision",
) -> Allocation:
    """Choose one format for each item, so that a cost is least and no limit is passed.

    Where several choices are equally good (to nine digits of what they cost above the least of each
    item), the one that takes least time is taken, then the smallest. The result does not depend on
    the order of the items.

    Args:
        items: Choices of each item; costs are finite and not negative.
        limits: On the sums. Sums of bytes are held exactly, others to eleven digits.
        minimise: The cost that is to be least.
        where: What to call the work in errors.

    Raises:
        PassError: No choice keeps the limits; it says how far down one can get.
        MissingDependencyError: scipy is not installed.
    """
    limits = limits or Limits()
    names = sorted(items)
    empty = [name for name in names if not items[name]]
    if empty:
        raise ValueError(f"there is no format to choose for {empty[0]!r}")
    program = _Program([tuple(items[name]) for name in names])
    bounds: dict[Cost, float] = {
        cost: limit for cost, limit in _plain(limits).items() if limit is not None
    }
    chosen = program.solve(minimise, bounds)
    if chosen is None:
        raise _impossible(program, bounds, where)
    ranking = [minimise, *(cost for cost in _RANKING if cost != minimise)]
    for cost, following in itertools.pairwise(ranking):
        best = program.total(cost, chosen)
        equal = best + _EQUAL * (best - program.least(cost))
        bounds[cost] = min(bounds.get(cost, math.inf), equal)
        chosen = program.solve(following, bounds) or chosen
    return Allocation(
        formats={name: items[name][i].format for name, i in zip(names, chosen, strict=True)},
        loss=program.total("loss", chosen),
        bytes=round(program.total("bytes", chosen)),
        ms=program.total("ms", chosen),
        float_macs=program.total("float_macs", chosen),
    )


def _plain(limits: Limits) -> dict[Cost, float | None]:
    return {cost: asdict(limits)[cost] for cost in _COSTS}


class _Program:
    """Items with their choices, as the columns of an integer program."""

    def __init__(self, items: Sequence[Sequence[Choice]]) -> None:
        self._items = items
        self._item_of = np.repeat(np.arange(len(items)), [len(choices) for choices in items])
        self._above: dict[Cost, Any] = {}  # costs above the least of each item
        for cost in _COSTS:
            numbers = [np.array([getattr(c, cost) for c in choices], float) for choices in items]
            if any(not np.isfinite(each).all() or (each < 0).any() for each in numbers):
                raise ValueError(f"expected finite costs that are not negative as {cost}")
            self._above[cost] = np.concatenate([*(n - n.min() for n in numbers), np.zeros(0)])

    def total(self, cost: Cost, chosen: Sequence[int]) -> float:
        """The sum of a cost, rounded once."""
        return math.fsum(
            getattr(choices[i], cost) for choices, i in zip(self._items, chosen, strict=True)
        )

    def least(self, cost: Cost) -> float:
        """The smallest sum of a cost without any limit."""
        return math.fsum(min(getattr(c, cost) for c in choices) for choices in self._items)

    def solve(self, minimise: Cost, bounds: Mapping[Cost, float]) -> list[int] | None:
        """The number of each item's choice, or None where no choice keeps the bounds."""
        if not self._items:
            return [] if all(bound >= 0 for bound in bounds.values()) else None
        optimize, sparse = _scipy()
        columns = len(self._item_of)
        one_each = sparse.csr_array(
            (np.ones(columns), (self._item_of, np.arange(columns))),
            shape=(len(self._items), columns),
        )
        constraints = [optimize.LinearConstraint(one_each, 1, 1)]
        for cost, bound in bounds.items():
            row, unit = _scaled(self._above[cost])
            room = (bound - self.least(cost)) * unit
            constraints.append(optimize.LinearConstraint(row[None, :], -np.inf, room))
        with _unheard():
            found = optimize.milp(
                _scaled(self._above[minimise])[0],
                constraints=constraints,
                integrality=np.ones(columns),
                bounds=optimize.Bounds(0, 1),
                options={"mip_rel_gap": 0.0},
            )
        if found.x is None:
            return None
        chosen = self._rounded(found.x)
        return chosen if self._keeps(chosen, bounds) else None

    def _rounded(self, x: Any) -> list[int]:
        starts = np.flatnonzero(np.diff(self._item_of, prepend=-1))
        return [int(np.argmax(part)) for part in np.split(x, starts[1:])]

    def _keeps(self, chosen: Sequence[int], bounds: Mapping[Cost, float]) -> bool:
        return all(
            self.total(cost, chosen) <= bound + _SLACK * max(bound, self._above[cost].max())
            for cost, bound in bounds.items()
        )


def _scaled(numbers: Any) -> tuple[Any, float]:
    """Costs whose largest is a fixed number, and the factor that made it so."""
    largest = float(numbers.max())
    unit = _LARGEST / largest if largest > 0 else 1.0
    return numbers * unit, unit


def _impossible(program: _Program, bounds: Mapping[Cost, float], where: str) -> PassError:
    """What is in the way: one limit that nothing reaches, or several that exclude one another."""
    for cost, bound in bounds.items():
        least = program.least(cost)
        if least > bound:
            return PassError(
                f"no choice of formats keeps {_written(cost, bound)}: the least that can be "
                f"reached is {_written(cost, least)}",
                where=where,
                cure="allow more, or more formats",
            )
    listed = " and ".join(_written(cost, bound) for cost, bound in bounds.items())
    for cost in reversed(_RANKING):
        others = {other: bound for other, bound in bounds.items() if other != cost}
        chosen = program.solve(cost, others) if cost in bounds else None
        if chosen is not None:
            least = program.total(cost, chosen)
            return PassError(
                f"no choice of formats keeps {listed} at once: within the other limits the least "
                f"is {_written(cost, least)}",
                where=where,
                cure="allow more of one of them, or more formats",
            )
    return PassError(
        f"no choice of formats keeps {listed} at once",
        where=where,
        cure="allow more of one of them, or more formats",
    )


def _written(cost: Cost, value: float) -> str:
    """A cost with its unit; whole bytes, since that is what a limit is compared with."""
    if cost == "bytes":
        return f"{math.ceil(value):,} bytes of weights"
    if cost == "ms":
        return f"a time of {value:.4g}"
    if cost == "loss":
        return f"an expected loss of {value:.4g}"
    return f"{value:,.0f} multiply-accumulates in float"


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep stdout clean of the lines that HiGHS prints there, whatever it is told."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _scipy() -> tuple[Any, Any]:
    try:
        return importlib.import_module("scipy.optimize"), importlib.import_module("scipy.sparse")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("scipy", "choosing formats under a budget", "mixed") from error
