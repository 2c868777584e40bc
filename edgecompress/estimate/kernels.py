"""The kernels that a model consists of, with the shapes they really get: one traced run tells.

Shapes, the branches that are taken and how often loops turn may depend on the data, and what the
runtime fuses is its own business. So the model is run once here, in a worker process, with the
runtime's profiler on; the times of that run are thrown away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import MeasurementError
from edgecompress.runtimes._client import WorkerProcess
from edgecompress.runtimes._remote import write_feeds
from edgecompress.runtimes._session import INT8_ON_X86, OnnxRuntimeEngine

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Arrays = Mapping[str, npt.NDArray[np.generic]]

__all__ = ["Kernel", "LOOKUPS", "Trace", "Tensor", "trace"]

_ENGINE = "edgecompress.runtimes._session:OnnxRuntimeEngine"
LOOKUPS = frozenset({"Gather", "GatherND", "GatherElements", "GatherBlockQuantized"})
"""Operators that read a small part of a table."""
_SUFFIX = "_kernel_time"
_BYTES: Mapping[str, float] = {
    **dict.fromkeys(("double", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int4", "uint4"), 0.5),
}


@dataclass(frozen=True)
class Tensor:
    """Type, as onnxruntime calls it, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        """Size in memory."""
        return self.elements * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class Kernel:
    """One call of a kernel.

    Attributes:
        name: The runtime's name for it.
        op: Operator that the runtime made of the node.
        inputs: Of those that are tensors; weights are among them.
        outputs: What it makes.
        weight_bytes: Bytes that it reads of weights.
    """

    name: str
    op: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weight_bytes: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes read and written; of a table that is looked up in, what is found there."""
        made = sum(tensor.bytes for tensor in self.outputs)
        if self.op in LOOKUPS:
            return 2 * made
        return made + sum(tensor.bytes for tensor in self.inputs)


@dataclass(frozen=True)
class Trace:
    """One run.

    Attributes:
        kernels: Calls in order, those of control flow before what they ran.
        peak_bytes: Most that the runtime's allocator held at a time: weights and live activations.
        inputs: Number of inputs.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: float
    inputs: int

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights that were read."""
        return sum(kernel.weight_bytes for kernel in self.kernels)


def trace(
    file: Path,
    feeds: Arrays,
    folder: Path,
    *,
    arm: bool = False,
    apart: bool = True,
    timeout_seconds: float = 300.0,
) -> Trace:
    """Run a model once and tell its kernels.

    Args:
        file: ONNX file.
        feeds: Inputs.
        folder: For temporary files.
        arm: Let onnxruntime fuse integers as it does on ARM.
        apart: In a process of its own, which a model from outside may crash.
        timeout_seconds: Longest time for it.

    Raises:
        MeasurementError: The model cannot be loaded or run.
    """
    config = {"session.disable_prepacking": "1", **(INT8_ON_X86 if arm else {})}
    options = {
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "config": config,
        "trace": str(folder / "trace"),
    }
    run = _run_apart if apart else _run_here
    profile = run(file, feeds, folder, options, timeout_seconds)
    found = _read(profile, len(feeds), file)
    profile.unlink()
    return found


def _run_apart(
    file: Path, feeds: Arrays, folder: Path, options: Mapping[str, Any], timeout_seconds: float
) -> Path:
    with WorkerProcess(str(file), threads=1, timeout_seconds=timeout_seconds) as worker:
        worker.load(_ENGINE, file, write_feeds(feeds, folder), dict(options))
        worker.ask("run", count=1, warm=False)
        return Path(worker.ask("end_profiling")["profile"])


def _run_here(
    file: Path, feeds: Arrays, folder: Path, options: Mapping[str, Any], timeout_seconds: float
) -> Path:
    engine = OnnxRuntimeEngine()
    engine.load(str(file), options)
    engine.bind(dict(feeds))()
    return Path(engine.end_profiling()["profile"])


def _read(profile: Path, inputs: int, file: Path) -> Trace:
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    calls = [e for e in events if e["cat"] == "Node" and e["name"].endswith(_SUFFIX)]
    calls.sort(key=lambda e: (e["ts"], -e["dur"]))
    kernels = [_kernel(e) for e in calls]
    if not calls:
        raise MeasurementError("the runtime ran no kernel of it", where=str(file))
    peak = max(float(e["args"].get("mem_in_use_peak", 0)) for e in calls)
    return Trace(tuple(kernels), peak, inputs)


def _kernel(event: Mapping[str, Any]) -> Kernel:
    args = event["args"]
    weights, outputs = float(args.get("parameter_size", 0)), _tensors(args["output_type_shape"])
    if args["op_name"] in LOOKUPS:
        weights = min(weights, sum(tensor.bytes for tensor in outputs))
    return Kernel(
        name=str(event["name"]).removesuffix(_SUFFIX),
        op=args["op_name"],
        inputs=_tensors(args["input_type_shape"]),
        outputs=outputs,
        weight_bytes=weights,
    )


def _tensors(found: Iterable[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(dtype, tuple(shape)) for each in found for dtype, shape in each.items())
