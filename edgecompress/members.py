"""Members of an open family (passes, runtimes): one file each, found by listing the folder.

Other packages add members by entry points in the group of the same name, e.g.
``[project.entry-points."edgecompress.passes"]``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from edgecompress.errors import InputError, nearest

__all__ = ["names", "load"]

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Names of all members, own and from entry points, sorted."""
    folder = importlib.import_module(package).__path__
    own = {m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_")}
    return sorted(own | {point.name for point in entry_points(group=package)})


def load(
    package: str,
    name: str,
    base: type[T],
    refuse: Callable[[str], InputError],
    attribute: str = "name",
) -> type[T]:
    """The class of member ``name``: the subclass of ``base`` whose ``name`` is that name.

    Args:
        package: ``edgecompress.passes`` or ``edgecompress.runtimes``; also the entry-point group.
        name: Name of the file without ``.py``, or of the entry point.
        base: Class that members derive from.
        refuse: Makes the error for an unknown or broken member from its message.
        attribute: What classes of this family call their name.
    """
    known = names(package)
    if name not in known:
        raise refuse(f"unknown name {name!r}; {nearest(name, known)}")
    for point in entry_points(group=package):
        if point.name == name:
            module_name = point.module
            break
    else:
        module_name = f"{package}.{name}"
    module = importlib.import_module(module_name)
    for candidate in vars(module).values():
        if (
            isinstance(candidate, type)
            and issubclass(candidate, base)
            and candidate is not base
            and getattr(candidate, attribute, None) == name
        ):
            return candidate
    raise refuse(f"{module_name} defines no {base.__name__} with {attribute} = {name!r}")
