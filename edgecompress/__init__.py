"""edgecompress: compress models for a named device, and prove by measurement that they fit.

The verbs of the command line are functions here: ``edgecompress.build("recipe.toml")``. The verbs
``targets``, ``passes`` and ``doctor`` are in :mod:`edgecompress.api` only, since modules of this
package bear their names.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress.api import (
        build,
        compare,
        compress,
        export,
        init,
        inspect,
        profile,
        schema,
        sensitivity,
        validate,
    )
    from edgecompress.model import Model
    from edgecompress.recipe import Recipe, load_recipe

__all__ = [
    "init",
    "inspect",
    "export",
    "build",
    "compress",
    "profile",
    "validate",
    "compare",
    "sensitivity",
    "schema",
    "Model",
    "Recipe",
    "load_recipe",
    "__version__",
]

# onnxruntime's wheels report usage by default since 1.29; the switch is read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_ELSEWHERE = {
    "Model": "edgecompress.model",
    "Recipe": "edgecompress.recipe",
    "load_recipe": "edgecompress.recipe",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "edgecompress.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
