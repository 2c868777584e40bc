"""What the warm process has done before it is forked: imported all, and built once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from edgecompress import api, pipeline
from edgecompress.cli import build, compress, inspect, main  # noqa: F401
from tests.recipes import UNREACHABLE, recipe, save_inputs

torch.set_num_threads(1)  # a pool of threads would not live on in the forked process
with tempfile.TemporaryDirectory(prefix="warm-") as name:
    folder = save_inputs(Path(name))
    passes = [{"name": "cleanup"}, {"name": "quantize"}]
    warm = recipe(folder, target=UNREACHABLE, **{"pass": passes})
    pipeline.build(warm, use_cache=False)
    api.inspect(folder / "cnn.onnx")
