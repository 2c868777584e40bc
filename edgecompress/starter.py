"""The recipe that ``edgecompress init`` writes: complete, commented, and ready to be edited."""

from __future__ import annotations

import json
import os
from pathlib import Path

from edgecompress.errors import InputError
from edgecompress.references import is_reference

__all__ = ["starter_recipe", "relative_source"]


def starter_recipe(*, model: str, target: str = "host", data: str | None = None) -> str:
    """Text of a recipe in TOML.

    Args:
        model: As ``[source] model``.
        target: Name of the target.
        data: As ``[data] path``; without it the tables and passes that need it are commented out.
    """
    has_data = data is not None
    return f"""\
# edgecompress recipe. Paths are relative to this file.
# Check it with `edgecompress build --dry-run`; all keys: `edgecompress schema`.

[source]
model = {_quoted(model)}
# opset = 20                  # for models that are exported from torch

# Rows to calibrate on, and others, disjoint from them, to measure the error on.
{_block(_data(data), has_data)}
# What "still good" means: with labels top1 or top5; without, likeness to the float model.
{_block(_METRIC, has_data)}
# Passes run in this order; `edgecompress passes NAME` shows the options of one.
[[pass]]
name = "cleanup"

{_block(_SEARCH, has_data)}
[target]
# `edgecompress targets` lists them; "host" is this machine's CPU.
name = {_quoted(target)}
# threads = 1
# allow_estimate = false      # true: an estimate may pass a budget where nothing can be measured

# A build that does not keep to its budgets fails. Ratios are to the float model.
[budget]
# latency_ms = 5.0
# latency_ratio = 0.6
# memory_mb = 100
# size_mb = 3.0
# size_ratio = 0.3
{"" if has_data else "# "}metric_drop = 0.01

[build]
output = "out"
# cache = ".edgecompress/cache"   # false: keep no finished steps
# seed = 0
"""


_METRIC = """\
[metric]
name = "cosine"
"""

_SEARCH = """\
# Ways to compress that suit the target are tried behind these passes, judged and measured, and the
# best that keeps the budgets is delivered. Without this table, the passes alone say what is.
[search]
# objective = "latency"       # or "size"
# candidates = ["static", "equalized", "mixed", "dynamic", "weights8", "weights4", "half"]
# max_minutes = 30            # then the best so far is delivered
# give_back = true            # nodes that got slower, or lost too much, go back to float
"""


def _data(path: str | None) -> str:
    return f"""\
[data]
# An .npz or .npy file, a folder of images, or file.py:function.
path = {_quoted(path or "calibration.npz")}
# labels = "labels"           # name of the array of labels in the .npz file
# validation_share = 0.5
# batch_size = 16
# What turns raw images into the input: x * scale + offset, then (x - mean) / std.
# preprocess = {{ resize = 224, scale = 0.00784314, offset = -1.0 }}
"""


def _block(text: str, active: bool) -> str:
    """The text as it is, or each line of it as a comment."""
    if active:
        return text
    return "".join(line if line.startswith("#") else f"# {line}" for line in text.splitlines(True))


def _quoted(text: str) -> str:
    """A TOML basic string: the same as JSON's, but for the character DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def relative_source(text: str, folder: Path, refuse: type[InputError]) -> str:
    """A path or reference as a recipe in ``folder`` has to write it.

    Args:
        text: Relative to the current folder, or absolute, or ``package.module:name``.
        folder: The recipe's folder.
        refuse: The error where there is no such file or folder.

    Raises:
        InputError: As ``refuse``.
    """
    place, colon, name = text.rpartition(":") if is_reference(text) else (text, "", "")
    if colon and not place.endswith(".py"):
        return text
    if not Path(place).expanduser().exists():
        raise refuse("no such file", where=place, cure="check the path")
    absolute = Path(place).expanduser().resolve()
    try:
        relative = Path(os.path.relpath(absolute, folder.resolve())).as_posix()
    except ValueError:  # another drive
        relative = absolute.as_posix()
    return f"{relative}{colon}{name}"
