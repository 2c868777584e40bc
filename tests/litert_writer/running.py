"""Models written as TFLite files and run by LiteRT, beside onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress import litert_writer
from edgecompress.model import Model
from tests.models import from_text
from tests.running import run

F = np.float32


def litert(model: Model, feeds: Mapping[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """All outputs of LiteRT, by name."""
    found = litert_writer.translate(model, **options)
    assert not found.refused
    return invoke(found.data, feeds)


def invoke(data: bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of a TFLite file, by name."""
    library = pytest.importorskip("ai_edge_litert.interpreter", reason="LiteRT is not installed")
    interpreter = library.Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    signature = interpreter._get_full_signature_list()["serving_default"]
    for name, index in signature["inputs"].items():
        interpreter.set_tensor(index, feeds[name])
    interpreter.invoke()
    return {name: interpreter.get_tensor(index) for name, index in signature["outputs"].items()}


def codes(model: Model, **options: Any) -> list[str]:
    """Operators of the file."""
    return [each.code for each in litert_writer.translate(model, **options).operators]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Normally distributed floats."""
    return np.random.default_rng(seed).normal(0, scale, shape).astype(F)


def one_op(
    node: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 20,
) -> Model:
    """A model of one line of ONNX's text form that makes ``y``."""
    constants = dict(constants or {})
    declared = ", ".join(f"{_kind(a)} {name}" for name, a in {**inputs, **constants}.items())
    model = from_text(
        f'<ir_version: 10, opset_import: ["" : {opset}]> '
        f"one ({declared}) => (float y) {{ {node} }}",
        **constants,
    )
    model.ir.graph.outputs[0].shape = None
    model.ir.graph.outputs[0].type = None
    _infer(model)
    return model


def _infer(model: Model) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model.ir)
    output = model.ir.graph.outputs[0]
    output.type = output.type or ir.TensorType(ir.DataType.FLOAT)


def _kind(array: np.ndarray) -> str:
    name = {"float32": "float"}.get(array.dtype.name, array.dtype.name)
    return f"{name}[{','.join(map(str, array.shape))}]" if array.ndim else name


def assert_equal(
    model: Model, feeds: Mapping[str, np.ndarray], *, relative: float = 1e-5, **options: Any
) -> None:
    """LiteRT and onnxruntime agree, relative to the largest number of each output."""
    want, got = run(model, feeds), litert(model, feeds, **options)
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        largest = max(1.0, float(np.abs(array.astype(np.float64)).max(initial=0)))
        np.testing.assert_allclose(got[name], array, rtol=0, atol=relative * largest)
