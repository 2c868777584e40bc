"""The bridge: an ONNX graph, or a slice of it, as a differentiable torch module.

One function per ONNX operator, chosen by (domain, operator, opset), one file per family; see
:mod:`edgecompress.torchgraph.registry` for how one is added.
"""

import importlib
import pkgutil

from edgecompress.torchgraph.module import TorchGraph, to_torch
from edgecompress.torchgraph.registry import has_translation, is_supported, supported_operators
from edgecompress.torchgraph.values import as_tensors

__all__ = [
    "TorchGraph",
    "as_tensors",
    "has_translation",
    "is_supported",
    "supported_operators",
    "to_torch",
]

# Importing a family registers its operators.
for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")
