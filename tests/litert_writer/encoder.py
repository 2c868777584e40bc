"""A small BERT-like encoder."""

from __future__ import annotations

import numpy as np

from edgecompress.model import Model
from tests.models import from_text

F = np.float32


def encoder(width: int = 32, heads: int = 4, tokens: int = 50) -> Model:
    """One layer of a BERT-like encoder with a mask, written out as exporters do; opset 20."""
    rng = np.random.default_rng(0)
    each = width // heads

    def weight(*shape: int) -> np.ndarray:
        return rng.normal(0, shape[0] ** -0.5, shape).astype(F)

    held = {
        "table": weight(tokens, width) * 5,
        **{name: weight(width, width) for name in ("wq", "wk", "wv", "wo")},
        "w1": weight(width, 2 * width),
        "w2": weight(2 * width, width),
        **{name: weight(width) for name in ("bq", "b2", "g", "h")},
        "split": np.array([0, 0, heads, each]),
        "join": np.array([0, 0, width]),
        "two": np.array(2, F),
        "one": np.array(1, F),
        "half": np.array(0.5, F),
        "root": np.array(2**0.5, F),
        "epsilon": np.array(1e-6, F),
        "by": np.array(each**0.5, F),
        "low": np.array(-1e4, F),
        "axes": np.array([1, 2]),
        "last": np.array([-1]),
    }
    kinds = {"float32": "float", "int64": "int64"}
    declared = ", ".join(
        f"{kinds[a.dtype.name]}{list(a.shape) if a.ndim else ''} {name}" for name, a in held.items()
    )
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        encoder (int64[N, S] ids, int64[N, S] mask, {declared}) => (float[N, {width}] y)
        {{
            x = Gather(table, ids)
            q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, split)
            q = Transpose<perm=[0, 2, 1, 3]>(q2)
            k0 = MatMul(x, wk)  k1 = Reshape(k0, split)  k = Transpose<perm=[0, 2, 3, 1]>(k1)
            v0 = MatMul(x, wv)  v1 = Reshape(v0, split)  v = Transpose<perm=[0, 2, 1, 3]>(v1)
            m0 = Cast<to=1>(mask)  m1 = Unsqueeze(m0, axes)  m2 = Sub(one, m1)  m = Mul(m2, low)
            s0 = MatMul(q, k)  s1 = Div(s0, by)  s2 = Add(s1, m)  s = Softmax(s2)
            a0 = MatMul(s, v)  a1 = Transpose<perm=[0, 2, 1, 3]>(a0)  a2 = Reshape(a1, join)
            a = MatMul(a2, wo)
            r = Add(x, a)
            mean = ReduceMean(r, last)  c = Sub(r, mean)  c2 = Pow(c, two)
            var = ReduceMean(c2, last)  var1 = Add(var, epsilon)  deviation = Sqrt(var1)
            n0 = Div(c, deviation)  n1 = Mul(n0, g)  n = Add(n1, h)
            f0 = MatMul(n, w1)  f1 = Div(f0, root)  f2 = Erf(f1)  f3 = Add(f2, one)
            f4 = Mul(f0, f3)  f5 = Mul(f4, half)  f6 = MatMul(f5, w2)  f = Add(f6, b2)
            o = Add(n, f)
            first = Constant<value_int=0>()
            p = Gather<axis=1>(o, first)
            y = Tanh(p)
        }}
        """,
        **held,
    )
