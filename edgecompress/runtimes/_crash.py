"""Which node of a model takes the runtime down.

A crash has no traceback that names a node. So the file is cut: of the graph's nodes in their order
the first few, with all values that the rest would need as outputs. The shortest beginning that
crashes ends with the culprit, and bisection finds it in a few fresh processes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import MeasurementError
from edgecompress.runtimes._faults import RuntimeCrashError

if TYPE_CHECKING:
    import onnx

__all__ = ["Attempt", "named_crash", "beginning"]

Attempt = Callable[[Path], object]
"""Loads a model file in a fresh process and runs it once; raises what became of it."""

# Enough for any graph, as each halves what is left; some runtimes take long to load a file.
_MOST_ATTEMPTS, _MOST_SECONDS = 20, 120.0


def named_crash(
    crash: RuntimeCrashError, model: Path, folder: Path, attempt: Attempt
) -> RuntimeCrashError:
    """The crash again, with the first node that brings it about as far as that can be found.

    Args:
        crash: What a worker died of.
        model: The ONNX file that it was given; of other files the crash is returned as it is.
        folder: For the cut files.
        attempt: Tries one of them, with the inputs of the whole model.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        suspects = _suspects(model, folder, attempt)
    except (DecodeError, OSError):
        return crash
    if not suspects:
        return crash
    first, last = suspects[0], suspects[-1]
    which = f"is {first}" if len(suspects) == 1 else f"lies between {first} and {last}"
    return RuntimeCrashError(
        f"{crash.what}; the first node that brings it down {which}",
        where=crash.where,
        cure="leave that node out, write it otherwise, or choose another runtime",
    )


def _suspects(model: Path, folder: Path, attempt: Attempt) -> list[str]:
    """Nodes of which one is the culprit; none where the cut files do not crash."""
    import onnx

    whole = onnx.load(model, load_external_data=False)
    nodes = whole.graph.node
    until = time.monotonic() + _MOST_SECONDS
    if not _crashes(beginning(whole, len(nodes), model.parent, folder), attempt):
        return []
    sound, broken = 0, len(nodes)
    for _ in range(_MOST_ATTEMPTS):
        if broken - sound < 2 or time.monotonic() > until:
            break
        middle = (sound + broken) // 2
        if _crashes(beginning(whole, middle, model.parent, folder), attempt):
            broken = middle
        else:
            sound = middle
    return [f"{node.op_type} {node.name or node.output[0]!r}" for node in nodes[sound:broken]]


def _crashes(file: Path, attempt: Attempt) -> bool:
    try:
        attempt(file)
    except RuntimeCrashError:
        return True
    except MeasurementError:  # refused: cutting has made something that the runtime does not take
        return False
    return False


def beginning(whole: onnx.ModelProto, count: int, source: Path, folder: Path) -> Path:
    """Write a model of the first nodes of another.

    Args:
        whole: The model, weights in other files not loaded.
        count: How many of its nodes to keep, in the order in which they stand.
        source: Folder that its weights' files are relative to.
        folder: Where to write it.

    Returns:
        The file. Its inputs are those of the whole model.
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    graph = whole.graph
    kept, rest = graph.node[:count], graph.node[count:]
    wanted = {name for node in rest for name in _read(node)} | {out.name for out in graph.output}
    made = [name for node in kept for name in node.output if name]
    live = [name for name in made if name in wanted] or made[-1:]
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    used = {name for node in kept for name in _read(node)}

    cut = onnx.ModelProto(
        ir_version=whole.ir_version,
        opset_import=whole.opset_import,
        functions=whole.functions,
        graph=onnx.GraphProto(
            name=graph.name,
            node=kept,
            input=graph.input,
            # A runtime works out the type of an output that has only a name.
            output=[known.get(name, onnx.ValueInfoProto(name=name)) for name in live],
            initializer=[t for t in graph.initializer if t.name in used],
            sparse_initializer=[t for t in graph.sparse_initializer if t.values.name in used],
            value_info=graph.value_info,
        ),
    )
    for tensor in cut.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            _beside(source, folder, ExternalDataInfo(tensor).location)
    file = folder / f"first_{count}_nodes.onnx"
    file.write_bytes(cut.SerializeToString())
    return file


def _beside(source: Path, folder: Path, location: str) -> None:
    """Let a file of weights lie in the folder too, as another name of it where that is possible."""
    place = folder / location
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source / location, place)
    except OSError:
        shutil.copyfile(source / location, place)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, in its bodies too."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from _read(inner)
            yield from (out.name for out in body.output)
