"""What went wrong in a worker, said in words that lead to the cure."""

from __future__ import annotations

import re
import signal

from edgecompress.errors import MeasurementError

__all__ = ["RuntimeCrashError", "refusal", "death", "no_answer", "not_an_answer", "short"]

_LONGEST = 300
# The words of onnxruntime, OpenVINO, MNN, numpy and the C++ library.
_MEMORY = re.compile(
    r"bad_alloc|failed to allocate|out of memory|cannot allocate memory|unable to allocate|"
    r"not enough memory|alloc memory error",
    re.IGNORECASE,
)
_INPUTS = re.compile(
    r"invalid rank|invalid dimensions|invalid (input|feed)|required inputs|"
    r"unexpected input data type|input shape|incompatible (shape|dimensions)|"
    r"is (not|in)compatible with|dimension mismatch|cannot set tensor",
    re.IGNORECASE,
)
_CRASHES = frozenset(
    {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS", "SIGSTKFLT"}
)
_SHELL = 128  # what a shell adds to the number of the signal that ended its command
_WINDOWS_EXCEPTION = 0xC0000000


class RuntimeCrashError(MeasurementError):
    """The runtime took its process down with it, as by a segmentation fault."""


def refusal(who: str, do: str, text: str, kind: str, where: str) -> MeasurementError:
    """A worker's answer that it could not do what it was asked.

    Args:
        who: The runtime.
        do: The request, e.g. ``load``.
        text: What the runtime said.
        kind: Class of the exception that it raised.
        where: The model.
    """
    if kind == "MemoryError" or _MEMORY.search(text):
        return MeasurementError(
            f"{who} ran out of memory ({do}): {short(text)}",
            where=where,
            cure="free some memory, raise its limit, or take a smaller batch or input",
        )
    cure = "check that the file is whole and that the inputs fit it"
    if do in ("run", "outputs", "feed") and _INPUTS.search(text):
        cure = "give inputs of the types and shapes that the model takes; inspect shows them"
    return MeasurementError(f"{who} could not {do} it: {short(text)}", where=where, cure=cure)


def death(
    do: str, code: int, tail: str, where: str, out_of_memory: str | None = None
) -> MeasurementError:
    """The end of a worker that owed an answer.

    Args:
        do: The request.
        code: What the system says of its end: an exit code, or a signal's number below zero.
        tail: The last lines of its standard error.
        where: The model.
        out_of_memory: How much it held of how much there was, where the system killed it for that.
    """
    said = f"; its last lines: {tail}" if tail else ""
    if out_of_memory is not None:
        return MeasurementError(
            f"it needs more memory than there is ({do}): {out_of_memory}",
            where=where,
            cure="free some memory, raise its limit, or take a smaller batch or input",
        )
    how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with code {code}"
    if _MEMORY.search(tail):
        return MeasurementError(
            f"the worker ran out of memory and {how} ({do}){said}",
            where=where,
            cure="free some memory, raise its limit, or take a smaller batch or input",
        )
    what = f"the worker {how} ({do}){said}"
    if _crashed(code):
        return RuntimeCrashError(what, where=where)
    cure = None
    if code < 0 and _signal(-code) == "SIGKILL":
        cure = "the system may have run out of memory; free some, or take a smaller batch"
    return MeasurementError(what, where=where, cure=cure)


def _crashed(code: int) -> bool:
    number = -code if code < 0 else code - _SHELL
    return _signal(number) in _CRASHES or code >= _WINDOWS_EXCEPTION


def no_answer(do: str, seconds: float, where: str) -> MeasurementError:
    """A worker that hangs, or takes too long."""
    return MeasurementError(
        f"the worker did not answer within {seconds:g} s ({do})",
        where=where,
        cure="raise timeout_seconds in the target's [measurement] table",
    )


def not_an_answer(do: str, line: str, where: str) -> MeasurementError:
    """A worker that says something, but no JSON object."""
    return MeasurementError(
        f"the worker's answer is not a JSON object ({do}): {short(line)!r}",
        where=where,
        cure="check that nothing else writes to its standard output, such as a shell's start-up",
    )


def short(text: str) -> str:
    """The first line that says something, cut where it is long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one, or of another system
        return f"signal {number}"
