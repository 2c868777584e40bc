"""References to the user's Python: ``path/to/file.py:name`` and ``package.module:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgecompress.errors import InputError, nearest

__all__ = ["load_callable", "is_reference", "user_line"]


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form ``file.py:name`` or ``package.module:name``."""
    place, colon, name = text.rpartition(":")
    module = place.endswith(".py") or all(part.isidentifier() for part in place.split("."))
    return bool(colon) and module and name.isidentifier()


def load_callable(reference: str, *, base: Path, refuse: type[InputError]) -> Callable[..., Any]:
    """Import the callable that a recipe or option names.

    A file is imported afresh at each call, with its folder first on ``sys.path`` meanwhile, as
    ``python file.py`` would have it; so it may import its neighbours at its top level.

    Args:
        reference: ``path/to/file.py:name`` or ``package.module:name``.
        base: Folder that relative file paths start from.
        refuse: The error to raise: the one that fits what the callable is for.

    Raises:
        InputError: As ``refuse``: no such file, module or name, not callable, or the user's code
            failed while it was imported.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise refuse(
            f"expected 'path/to/file.py:name' or 'package.module:name', got {reference!r}",
            cure="name the function behind a colon",
        )
    module = _from_file(place, base, refuse) if place.endswith(".py") else _module(place, refuse)
    if not hasattr(module, name):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise refuse(f"defines no {name!r}; {nearest(name, known)}".rstrip("; "), where=place)
    found = getattr(module, name)
    if not callable(found):
        raise refuse(
            f"expected {name!r} to be callable, got {type(found).__name__}",
            where=place,
            cure="name a function or a class",
        )
    return found  # type: ignore[no-any-return]


def user_line(error: BaseException, file: str | None = None) -> str:
    """Where an error left the user's code, as ``file:line``.

    Args:
        error: The caught exception.
        file: The user's file, if known; the innermost line in it wins over lines of libraries.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    trace = traceback.extract_tb(error.__traceback__)
    frames = [f for f in trace if f.filename != __file__ and "importlib" not in f.filename]
    own = [f for f in frames if f.filename == file] or frames
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "unknown line"


def _from_file(place: str, base: Path, refuse: type[InputError]) -> ModuleType:
    path = base / Path(place).expanduser()
    if not path.is_file():
        raise refuse("no such file", where=str(path), cure="check the path before the colon")
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_edgecompress_{path.stem}_{digest}", path)
    if spec is None or spec.loader is None:
        raise refuse("cannot be imported as Python", where=str(path))
    module = importlib.util.module_from_spec(spec)
    with _first_on_path(path.parent):
        sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[spec.name]
            raise _failed_import(error, str(path), refuse) from error
    return module


def _module(place: str, refuse: type[InputError]) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise refuse(
            f"expected a .py file or a module before the colon, got {place!r}",
            cure="write path/to/file.py:name or package.module:name",
        )
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise refuse(
                f"no module named {error.name!r}",
                where=place,
                cure="install it, or name the file: path/to/file.py:name",
            ) from error
        raise _failed_import(error, place, refuse) from error
    except (Exception, SystemExit) as error:
        raise _failed_import(error, place, refuse) from error


def _failed_import(error: BaseException, place: str, refuse: type[InputError]) -> InputError:
    what = (str(error).strip().splitlines() or [""])[0]
    return refuse(
        f"failed while it was imported: {type(error).__name__}: {what}".rstrip(": "),
        where=user_line(error, place),
        cure=f"make `python {place}` run" if place.endswith(".py") else "make the module import",
    )


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
