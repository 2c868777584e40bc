"""ONNX files of every operator set from 13 to the newest: read, cleaned up, quantized, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import pytest
import torch

from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.sources import load
from edgecompress.torchgraph import to_torch
from tests.models import from_text
from tests.running import X86, rows_of, run, sqnr_db


def network() -> Model:
    """A small CNN of operator set 13, of operators that later sets changed.

    Axes of ReduceMean became an input, Split got ``num_outputs``, pools, Pad, Resize, Reshape and
    BatchNormalization got new attributes and types.
    """
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    return from_text(
        """
        <ir_version: 7, opset_import: ["" : 13]>
        net (float[N, 3, 12, 12] x, float[8, 3, 3, 3] w1, float[8] b1, float[8, 8, 3, 3] w2,
             float[8] gain, float[8] shift, float[8] mean, float[8] var, float zero, float six,
             int64[8] pads, float[4] scales, int64[2] halves, int64[2] rows, float[8, 5] w3,
             float[5] b3) => (float[N, 5] y)
        {
            p = Pad(x, pads)
            c1 = Conv(p, w1, b1)
            r1 = Clip(c1, zero, six)
            c2 = Conv<pads=[1, 1, 1, 1]>(r1, w2)
            n2 = BatchNormalization(c2, gain, shift, mean, var)
            s = Add(r1, n2)
            a = AveragePool<kernel_shape=[2, 2], strides=[2, 2]>(s)
            u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                       nearest_mode="floor">(a, , scales)
            front, back = Split<axis=1>(u, halves)
            j = Concat<axis=1>(back, front)
            m = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(j)
            t = Transpose<perm=[0, 2, 3, 1]>(m)
            k = ReduceMean<axes=[1, 2], keepdims=0>(t)
            f = Reshape(k, rows)
            y = Gemm(f, w3, b3)
        }
        """,
        w1=weight(8, 3, 3, 3),
        b1=weight(8),
        w2=weight(8, 8, 3, 3),
        gain=np.linspace(0.8, 1.2, 8, dtype=np.float32),
        shift=weight(8),
        mean=weight(8),
        var=np.linspace(0.5, 1.5, 8, dtype=np.float32),
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        scales=np.array([1, 1, 2, 2], np.float32),
        halves=np.array([4, 4]),
        rows=np.array([-1, 8]),
        w3=weight(8, 5),
        b3=weight(5),
    )


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (rows, 3, 12, 12)).astype(np.float32)


@pytest.mark.parametrize("opset", range(13, 24))
def test_a_file_of_this_operator_set_is_read_cleaned_and_quantized(
    tmp_path: Path, opset: int
) -> None:
    proto = onnx.version_converter.convert_version(
        onnx.load_from_string(network().to_bytes()), opset
    )
    onnx.save(proto, tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx").model
    assert model.opset == opset
    x = images(16)
    expected = run(model, {"x": x})["y"]
    assert np.abs(expected - run(network(), {"x": x})["y"]).max() < 1e-6

    with torch.no_grad():
        found = to_torch(model)({"x": torch.from_numpy(x)})["y"].numpy()
    assert np.abs(found - expected).max() < 1e-5

    cleaned = run_pass(make_pass("cleanup", {}), model, Context(None, X86)).model
    assert np.abs(run(cleaned, {"x": x})["y"] - expected).max() < 1e-5
    assert "BatchNormalization" not in {node.op_type for node in cleaned.ir.graph}

    data = rows_of(tmp_path, cleaned, {"x": images(64)})
    applied = run_pass(make_pass("quantize", {}), cleaned, Context(data, X86))
    assert {change.op for change in applied.changed} >= {"Conv", "Gemm"}
    assert applied.model.opset == opset
    assert sqnr_db(expected, run(applied.model, {"x": x}, optimize=True)["y"]) > 25
