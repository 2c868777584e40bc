"""Running small models in onnxruntime, and rows to calibrate them on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress import target
from edgecompress.constraints import Constraints
from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.machine.host import host
from edgecompress.model import Model

# All layers on integers, also those that are faster in float.
X86: Constraints = replace(target.load("cpu-x86-64").constraints(host()), slow_shallow_convs=False)
ARM: Constraints = target.load("cpu-arm64").constraints(host())


def run(
    model: Model, feeds: Mapping[str, np.ndarray], *, optimize: bool = False, s8: bool = False
) -> dict[str, np.ndarray]:
    """All outputs; without graph optimizations unless ``optimize``.

    ``s8`` makes x86 fuse signed activations, as ARM does.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if s8:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def with_outputs(model: Model, names: list[str]) -> Model:
    """The model with further values of its graph as outputs."""
    shown = model.clone()
    present = {v.name for v in shown.ir.graph.outputs}
    for value in (o for n in shown.ir.graph for o in n.outputs):
        if value.name in names and value.name not in present:
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            shown.ir.graph.outputs.append(value)
    return shown


def rows_of(
    folder: Path, model: Model, arrays: Mapping[str, np.ndarray], **spec: Any
) -> CalibrationSet:
    """A calibration set of these arrays, all rows for calibration unless ``spec`` says else."""
    np.savez(folder / "rows.npz", **arrays)
    spec = {"path": "rows.npz", "validation_share": 0.0, **spec}
    return CalibrationSet.open(DataSpec(**spec), model.signature, base=folder)


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """10 log10 of signal to error power."""
    reference, found = reference.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - found).sum()))
