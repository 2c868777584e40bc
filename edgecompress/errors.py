"""Every error that a user can meet.

::

    EdgeCompressError
    ├── InputError (exit 2)              something that was handed in cannot be used
    │   ├── ModelError                   an ONNX file: missing, broken, unsafe or unsupported
    │   │   └── UnsupportedOperatorError operators that torchgraph or a runtime does not know
    │   ├── SourceError                  a torch module or exported program
    │   ├── DataError                    calibration or validation data
    │   ├── RecipeError                  a recipe or an option
    │   ├── TargetError                  a target profile
    │   ├── OutputError                  the output folder
    │   └── MissingDependencyError       an optional package that is not installed
    └── BuildError (exit 1)              the inputs are fine, the work failed
        ├── PassError                    a pass could not do what was asked
        ├── ExportMismatchError          the exported graph computes something else than torch
        ├── MeasurementError             the runtime could not run the file
        │   └── RuntimeCrashError        it took its process down (edgecompress.runtimes)
        └── BudgetError                  a budget was not met

Each one says what was expected, what came, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "EdgeCompressError",
    "InputError",
    "ModelError",
    "UnsupportedOperatorError",
    "SourceError",
    "DataError",
    "RecipeError",
    "TargetError",
    "OutputError",
    "MissingDependencyError",
    "BuildError",
    "PassError",
    "ExportMismatchError",
    "MeasurementError",
    "BudgetError",
    "nearest",
]


class EdgeCompressError(Exception):
    """Base of all errors that are shown to the user without a traceback.

    Args:
        what: One sentence: what is wrong, with what was expected and what came.
        where: The file, option, node or row it is about.
        cure: The next step, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, cure: str | None = None) -> None:
        self.what = what
        self.where = where
        self.cure = cure
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.cure}" if self.cure else text

    def as_json(self) -> dict[str, str | int | None]:
        """The error as the ``--json`` output carries it."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "cure": self.cure,
            "exit_code": self.exit_code,
        }


class InputError(EdgeCompressError):
    """Something that was handed in cannot be used."""

    exit_code = 2


class ModelError(InputError):
    """An ONNX file is missing, broken, unsafe or unsupported."""


class UnsupportedOperatorError(ModelError):
    """Operators that are not supported, all of them at once.

    Args:
        operators: ``domain::op (opset n)`` strings, or any other short names.
    """

    def __init__(
        self,
        what: str,
        operators: Iterable[str],
        *,
        where: str | None = None,
        cure: str | None = None,
    ) -> None:
        self.operators = tuple(sorted(set(operators)))
        super().__init__(f"{what}: {', '.join(self.operators)}", where=where, cure=cure)


class SourceError(InputError):
    """A torch module, exported program or checkpoint cannot be turned into a model."""


class DataError(InputError):
    """Calibration or validation data do not fit the model."""


class RecipeError(InputError):
    """A recipe or an option on the command line is wrong."""


class TargetError(InputError):
    """A target profile is unknown or malformed."""


class OutputError(InputError):
    """The output cannot be written."""


class MissingDependencyError(InputError):
    """An optional package is not installed; the cure is the command that brings it."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            cure=f'pip install "edgecompress[{extra}]"',
        )


class BuildError(EdgeCompressError):
    """The inputs are fine, but the work failed."""


class PassError(BuildError):
    """A pass could not do what was asked of it."""


class ExportMismatchError(BuildError):
    """The exported graph computes something else than the torch module."""


class MeasurementError(BuildError):
    """The runtime could not load, run or measure a file."""


class BudgetError(BuildError):
    """A budget was not met."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'mse'?``, with the list of all known words behind it."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}" if known else hint.strip()
