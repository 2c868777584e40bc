"""Independent calls: in this process, in processes of this machine, or on a cluster.

A function of a module and its argument travel to a worker as pickles, so workers need the same
versions of Python and of this package. Whoever can reach a cluster can run code on it, and on those
who take its answers: use only clusters that you trust.

====================  ==============================================================
``None``              this process where ``jobs`` is 1, else processes of this machine
``dask://host:port``  the scheduler of a Dask cluster
``ray://host:port``   the client port of a Ray cluster
``ray://local``       a Ray cluster on this machine, which ends with the work
====================  ==============================================================
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from edgecompress.errors import (
    BuildError,
    EdgeCompressError,
    RecipeError,
)
from edgecompress.parallel.pools import on_dask, on_ray, on_this_machine
from edgecompress.progress import Progress, silent

__all__ = ["check_engine", "run"]

A = TypeVar("A")
R = TypeVar("R")


def run(
    function: Callable[[A], R],
    arguments: Sequence[A],
    *,
    jobs: int = 1,
    engine: str | None = None,
    label: str = "task",
    progress: Progress = silent,
) -> list[R]:
    """``[function(a) for a in arguments]``, wherever the calls run.

    Args:
        function: A function of a module.
        arguments: One for each call.
        jobs: Processes on this machine; a cluster decides for itself.
        engine: See the table above.
        label: What one call is, in errors and progress.
        progress: Told after each call.

    Raises:
        EdgeCompressError: The first one that a call raised, as it was raised there.
        BuildError: A call failed otherwise, a worker died, or the cluster cannot be reached.
        RecipeError: ``jobs`` or ``engine`` is wrong.
        MissingDependencyError: The package that the engine needs is not installed.
    """
    if jobs < 1:
        raise RecipeError(f"expected a number from 1, got {jobs}", where="jobs")
    total = len(arguments)
    if engine is None and (jobs == 1 or total < 2):
        results = []
        for done, argument in enumerate(arguments, 1):
            results.append(function(argument))
            progress(label, done, total)
        return results
    start, address = _starter(engine)
    calls = [(i, pickle.dumps((function, each))) for i, each in enumerate(arguments)]
    found: dict[int, R] = {}
    with contextlib.closing(start(_called, calls, min(jobs, total), address)) as answers:
        for answer in answers:
            if isinstance(answer, _Failure):
                raise answer.error(f"{label} {answer.number + 1} of {total}")
            found[answer.number] = answer.value
            progress(label, len(found), total)
    return [found[i] for i in range(total)]


def check_engine(engine: str | None) -> None:
    """See that ``engine`` is of a known form.

    Raises:
        RecipeError: It is not.
    """
    _starter(engine)


@dataclass(frozen=True)
class _Value(Generic[R]):
    """What a call returned."""

    number: int
    value: R


@dataclass(frozen=True)
class _Failure:
    """What a call raised, in parts: errors whose classes take other arguments do not unpickle."""

    number: int
    kind: type[EdgeCompressError] | None
    fields: dict[str, Any]
    text: str
    trace: str

    @classmethod
    def of(cls, number: int, error: Exception) -> _Failure:
        known = isinstance(error, EdgeCompressError)
        return cls(
            number,
            type(error) if isinstance(error, EdgeCompressError) else None,
            dict(vars(error)) if known else {},
            str(error) if known else f"{type(error).__name__}: {error}",
            traceback.format_exc(),
        )

    def error(self, where: str) -> EdgeCompressError:
        """The error as it was raised, or one that names the call; its cause is the traceback."""
        if self.kind is None:
            error: EdgeCompressError = BuildError(
                f"failed: {self.text}",
                where=where,
                cure="run it again with one job and no engine, where --debug shows the traceback",
            )
        else:
            error = self.kind.__new__(self.kind, self.text)
            vars(error).update(self.fields)
        error.__cause__ = _WorkerTracebackError(self.trace)
        return error


class _WorkerTracebackError(Exception):
    """Where a call failed, as the worker saw it; shown by ``--debug``."""

    def __str__(self) -> str:
        return f"in the worker\n{self.args[0]}"


def _called(number: int, payload: bytes) -> _Value[Any] | _Failure:
    """In the worker: do a call. It comes as bytes, so a scheduler need not import what it is of."""
    # A print in the user's own code must not mix with the result on stdout.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            function, argument = pickle.loads(payload)
            return _Value(number, function(argument))
        except Exception as error:
            return _Failure.of(number, error)


_Start = Callable[..., Generator[_Value[Any] | _Failure, None, None]]


def _starter(engine: str | None) -> tuple[_Start, str]:
    if engine is None:
        return on_this_machine, ""
    if engine == "ray://local":
        return on_ray, "local"
    starters = {"dask": on_dask, "ray": on_ray}
    url = urlsplit(engine)
    try:
        whole = url.hostname and url.port and url.netloc == engine.partition("://")[2]
    except ValueError:  # the port is no number, or too large
        whole = None
    if url.scheme not in starters or not whole:
        raise RecipeError(
            f"expected dask://host:port, ray://host:port or ray://local, got {engine!r}",
            where="engine",
            cure="leave it out to work on this machine",
        )
    return starters[url.scheme], url.netloc
