"""The Python API: one function for each verb of the command line, of the same name.

Importing it loads neither torch nor onnx: each function imports what it needs.
"""

from edgecompress.api.judging import compare, validate
from edgecompress.api.looking import (
    doctor,
    inspect,
    passes,
    schema,
    sensitivity,
    statistics,
    targets,
)
from edgecompress.api.making import build, compress, export, init
from edgecompress.api.profiling import profile

__all__ = [
    "init",
    "inspect",
    "export",
    "build",
    "compress",
    "profile",
    "validate",
    "compare",
    "statistics",
    "sensitivity",
    "targets",
    "passes",
    "schema",
    "doctor",
]
