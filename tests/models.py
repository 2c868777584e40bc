"""Small models for tests, made from ONNX text or a few lines of numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.model import Model


def from_text(text: str, **initializers: np.ndarray) -> Model:
    """A model from ONNX's text form; initializers named in it as inputs get their values here."""
    model = ir.from_onnx_text(text)
    for name, array in initializers.items():
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return Model(model)


def small_cnn(seed: int = 0, channels: int = 8, classes: int = 10) -> Model:
    """Conv-Relu, depthwise Conv-Clip(0, 6), residual Add, mean over space, Gemm; opset 20."""
    rng = np.random.default_rng(seed)
    f = np.float32
    c = channels
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        cnn (float[N, 3, 16, 16] x, float[{c}, 3, 3, 3] w1, float[{c}] b1,
             float[{c}, 1, 3, 3] w2, float[{c}] b2, float zero, float six,
             float[{c}, {c}, 1, 1] w3, float[{c}] b3, float[{classes}, {c}] w4,
             float[{classes}] b4, int64[2] axes, int64[2] shape) => (float[N, {classes}] y)
        {{
            c1 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
            r1 = Relu(c1)
            c2 = Conv<pads=[1,1,1,1], group={c}>(r1, w2, b2)
            r2 = Clip(c2, zero, six)
            c3 = Conv(r2, w3, b3)
            s = Add(r1, c3)
            m = ReduceMean<keepdims=1>(s, axes)
            v = Reshape(m, shape)
            y = Gemm<transB=1>(v, w4, b4)
        }}
        """,
        w1=rng.normal(0, 0.3, (c, 3, 3, 3)).astype(f),
        b1=rng.normal(0, 0.1, c).astype(f),
        w2=rng.normal(0, 0.4, (c, 1, 3, 3)).astype(f),
        b2=rng.normal(0, 0.1, c).astype(f),
        zero=np.array(0, f),
        six=np.array(6, f),
        w3=rng.normal(0, 0.3, (c, c, 1, 1)).astype(f),
        b3=rng.normal(0, 0.1, c).astype(f),
        w4=rng.normal(0, 0.5, (classes, c)).astype(f),
        b4=rng.normal(0, 0.1, classes).astype(f),
        axes=np.array([2, 3]),
        shape=np.array([-1, c]),
    )
