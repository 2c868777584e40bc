"""Mutants of real models, recipes and rows; the same number always gives the same mutant.

Each is a folder with ``cnn.onnx``, ``rows.npz`` and ``recipe.toml``, one of them spoilt.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import onnx

from tests.models import from_text, small_cnn
from tests.mutants_onnx import FLOATS, MUTATORS, NUMBERS

Kind = Literal["bytes", "structure", "recipe", "rows"]

KINDS: tuple[Kind, ...] = ("bytes", "structure", "structure", "structure", "recipe", "rows")
"""Kinds of mutants in turn: most faults of models lie in their structure."""

REAL = (
    "resnet20_cifar10.onnx",
    "ultraface_version-RFB-320.onnx",
    "silero_vad.onnx",
    "nms_yolov8_head.onnx",
)
"""Models that lie beside the repository; where they are absent the small ones stand in."""

RECIPE = """\
[source]
model = "cnn.onnx"
opset = 20
dynamic_batch = true

[data]
path = "rows.npz"
validation_share = 0.5
rows = 6
inputs = { x = "x" }

[metric]
name = "cosine"

[[pass]]
name = "cleanup"

[[pass]]
name = "quantize"
method = "mse"
bias_correction = false
ops = { Gemm = { method = "minmax" } }
nodes = { "r1*" = false }

[target]
name = "android-cpu"
runs = 5
warmup = 1

[budget]
size_ratio = 0.9
metric_drop = 0.5
latency_ms = 100

[build]
seed = 0
output = "out"
cache = "kept"
"""

TRANSFORMER = """
<ir_version: 10, opset_import: ["" : 20]>
block (float[N, 4, 8] x, float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, float[8] g, float[8] b)
    => (float[N, 4, 8] y)
{
    n = LayerNormalization<axis=-1>(x, g, b)
    q = MatMul(n, wq)
    k = MatMul(n, wk)
    v = MatMul(n, wv)
    kt = Transpose<perm=[0,2,1]>(k)
    s = MatMul(q, kt)
    p = Softmax<axis=-1>(s)
    o = MatMul(p, v)
    y = Add(x, o)
}
"""
CONTROL = """
<ir_version: 10, opset_import: ["" : 20]>
control (float[N, 8] x, float[8, 8] w, int64 trip, bool cond, float half) => (float[N, 8] y)
{
    h = MatMul(x, w)
    total = ReduceSum<keepdims=0>(x)
    zero = Constant<value_float=0.0>()
    flag = Greater(total, zero)
    i = If (flag) <then_branch = yes () => (float[N, 8] a) { a = Relu(h) },
                   else_branch = no () => (float[N, 8] c) { c = Neg(h) }>
    y = Loop (trip, cond, i) <body = again (int64 n, bool go, float[N, 8] v)
        => (bool on, float[N, 8] u) { on = Identity(go)
            u = Mul(v, half) }>
}
"""
RECURRENT = """
<ir_version: 10, opset_import: ["" : 20]>
recurrent (float[5, N, 8] x, float[1, 16, 8] w, float[1, 16, 4] r, int64[1] axes)
    => (float[5, N, 4] y)
{
    h, last, cell = LSTM<hidden_size=4>(x, w, r)
    y = Squeeze(h, axes)
}
"""
QUANTIZED = """
<ir_version: 10, opset_import: ["" : 20]>
quantized (float[N, 8] x, float s, uint8 z, int8[8, 4] w, float[4] sw, int8[4] zw)
    => (float[N, 4] y)
{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    dw = DequantizeLinear<axis=1>(w, sw, zw)
    y = MatMul(d, dw)
}
"""
FUNCTION = """
<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
called (float[N, 8] x, float[8, 8] w) => (float[N, 8] y)
{
    h = own.twice(x, w)
    y = own.twice(h, w)
}
<domain: "own", opset_import: ["" : 20]>
twice (a, b) => (c)
{
    m = MatMul(a, b)
    c = Relu(m)
}
"""


def _small_models() -> dict[str, onnx.ModelProto]:
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    square = {name: weights(8, 8) for name in ("wq", "wk", "wv")}
    made = {
        "cnn": small_cnn(),
        "transformer": from_text(TRANSFORMER, **square, g=weights(8), b=weights(8)),
        "control": from_text(
            CONTROL,
            w=weights(8, 8),
            trip=np.array(3),
            cond=np.array(True),
            half=np.array(0.5, np.float32),
        ),
        "recurrent": from_text(
            RECURRENT, w=weights(1, 16, 8), r=weights(1, 16, 4), axes=np.array([1])
        ),
        "quantized": from_text(
            QUANTIZED,
            s=np.array(0.02, np.float32),
            z=np.array(128, np.uint8),
            w=rng.integers(-128, 127, (8, 4)).astype(np.int8),
            sw=np.full(4, 0.01, np.float32),
            zw=np.zeros(4, np.int8),
        ),
        "function": from_text(FUNCTION, w=weights(8, 8)),
    }
    return {name: onnx.load_from_string(model.to_bytes()) for name, model in made.items()}


def save_bases(folder: Path, shared: Path | None) -> list[str]:
    """Write what mutants are made of: a folder per model, each with rows that fit it."""
    protos = _small_models()
    for name in REAL:
        if shared is not None and (shared / name).is_file():
            protos[name] = onnx.load(shared / name)
    for name, proto in protos.items():
        (folder / name).mkdir(parents=True)
        onnx.save(proto, folder / name / "cnn.onnx")
        np.savez(folder / name / "rows.npz", **_rows(proto))
        first = proto.graph.input[0].name
        recipe = RECIPE.replace('{ x = "x" }', json.dumps({first: first}).replace(":", " ="))
        (folder / name / "recipe.toml").write_text(recipe if name == "cnn" else _plain(recipe))
    external = folder / "external"
    shutil.copytree(folder / "cnn", external)
    big = onnx.load(external / "cnn.onnx")
    onnx.save(
        big, external / "cnn.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    return sorted([*protos, "external"])


def _plain(recipe: str) -> str:
    return "\n".join(line for line in recipe.splitlines() if not line.startswith(("ops", "nodes")))


def _rows(proto: onnx.ModelProto) -> dict[str, Any]:
    """Eight random rows for every input; one of a fixed batch is taken as it is."""
    rng = np.random.default_rng(0)
    inside = {tensor.name for tensor in proto.graph.initializer}
    rows = {}
    for value in proto.graph.input:
        if value.name not in inside:
            kind = value.type.tensor_type
            dims = [d.dim_value or 1 for d in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            rows[value.name] = rng.random((8, *dims[1:])).astype(dtype)
    return rows


@dataclass(frozen=True)
class Mutant:
    """A spoilt folder.

    Attributes:
        number: It is made of this alone.
        kind: What is spoilt.
        base: Of which model it was made.
        done: What was done to it.
    """

    number: int
    kind: Kind
    base: str
    done: tuple[str, ...]

    def __str__(self) -> str:
        return f"mutant {self.number} ({self.kind} of {self.base}: {', '.join(self.done)})"


def make_mutant(number: int, bases: Path, folder: Path, small: bool = False) -> Mutant:
    """Make a mutant in ``folder``, which must not exist.

    Args:
        number: Its number; the same one gives the same bytes.
        bases: What :func:`save_bases` wrote.
        folder: Where it goes.
        small: Whether to make structural mutants of small models alone: they run in no time.
    """
    rng = Random(number)
    kind = KINDS[number % len(KINDS)]
    names = sorted(each.name for each in bases.iterdir())
    if kind in ("recipe", "rows"):
        names = ["cnn"]
    elif small:
        names = [name for name in names if name not in REAL]
    base = rng.choice(names)
    shutil.copytree(bases / base, folder)
    done: list[str] = []
    if kind == "structure":
        _spoil_structure(rng, folder / "cnn.onnx", done)
    elif kind == "bytes":
        file = rng.choice(sorted(f for f in folder.iterdir() if f.name in ("cnn.onnx", "w")))
        other = (bases / rng.choice(names) / "cnn.onnx").read_bytes()
        file.write_bytes(spoil_bytes(rng, file.read_bytes(), other, done))
    elif kind == "recipe":
        _spoil_recipe(rng, folder / "recipe.toml", done)
    else:
        _spoil_rows(rng, folder / "rows.npz", done)
    return Mutant(number, kind, base, tuple(done))


def spoil_bytes(rng: Random, content: bytes, other: bytes, done: list[str]) -> bytes:
    """Flip, cut, insert, repeat or splice, once or several times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 4, 64, 1024))
        if rng.random() < 0.5:  # the graph is written before the weights
            at = min(at, rng.randrange(2048))
        change = rng.choice(("flip", "cut", "insert", "repeat", "splice", "remove", "set"))
        done.append(f"{change} at {at}")
        if change == "flip" and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == "set":
            data[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255))])
        elif change == "cut":
            del data[at:]
        elif change == "insert":
            data[at:at] = rng.randbytes(size)
        elif change == "repeat":
            data[at:at] = data[at : at + size]
        elif change == "splice":
            data[at:] = other[rng.randrange(len(other)) :]
        else:
            del data[at : at + size]
    return bytes(data)


def _spoil_structure(rng: Random, file: Path, done: list[str]) -> None:
    proto = onnx.load(file, load_external_data=False)
    behind = b""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(MUTATORS))
        done.append(name)
        behind += MUTATORS[name](rng, proto) or b""
    file.write_bytes(proto.SerializeToString() + behind)


VALUES = (
    "nan", "inf", "-inf", "1e308", "-1", "0", "0.0", "1", "99999999999999999999", "true",
    "9223372036854775808", '""',
    '"\\u0000"', '"😀"', "[]", "{}", "1979-05-27", "07:32:00", '[1, "a"]', '"nan"',
    "[[[[]]]]", "'''x'''", '{ name = "x" }', '"/"', '"cnn.onnx"', '"rows.npz"', '"."', '"*"', '"["',
    '"a:b"', '"json:dumps"', '"recipe.toml:x"', "0x7fffffffffffffff", "1e-320", "-0.0", '"-1"',
    "[" * 300 + "]" * 300, '"' + "a" * 10_000 + '"',
)  # fmt: skip


def _spoil_recipe(rng: Random, file: Path, done: list[str]) -> None:
    lines = file.read_text(encoding="utf-8").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines) or 1)
        line = lines[at] if lines else ""
        key = line.split("=")[0].strip() or "x"
        change = rng.choice(("value", "value", "value", "key", "drop", "repeat", "swap", "bytes"))
        change = rng.choice((change, change, change, "new", "empty", "noise"))
        done.append(f"{change} {key}")
        if change == "value":
            lines[at : at + 1] = [f"{key} = {rng.choice(VALUES)}" if "=" in line else line]
        elif change == "key":
            lines[at : at + 1] = [line.replace(key, rng.choice((key[:-1], key + "s", "😀", '""')))]
        elif change == "drop":
            del lines[at : at + rng.choice((1, 5))]
        elif change == "repeat":
            lines[at:at] = lines[at : at + rng.choice((1, 5))]
        elif change == "swap":
            rng.shuffle(lines)
        elif change == "new":
            lines.insert(at, f"{rng.choice(('x', 'rows', 'name', 'kind'))} = {rng.choice(VALUES)}")
        elif change == "empty":
            lines = [rng.choice(("", "\ufeff", "[", "{}", "[source]", "# nothing"))]
        else:
            content = "\n".join(lines).encode()
            noise = rng.randbytes(2000) if change == "noise" else content
            file.write_bytes(spoil_bytes(rng, noise, content, done))
            return
    file.write_text("\n".join(lines), encoding="utf-8", newline=rng.choice(("\n", "\r\n")))


def _spoil_rows(rng: Random, file: Path, done: list[str]) -> None:
    x = np.load(file)["x"]
    change = rng.choice(
        ("bytes", "bytes", "dtype", "shape", "values", "names", "pickle", "header", "empty", "npy")
    )
    done.append(change)
    arrays: dict[str, Any] = {"x": x}
    if change == "dtype":
        kinds = ("f2", "f8", ">f4", "i1", "u8", "c8", "?", "U3", "S3", "V4", "M8[s]", "m8[D]")
        kind = rng.choice(kinds)
        done.append(kind)
        arrays["x"] = np.zeros(x.shape, kind) if kind in ("V4",) else x.astype("i8").astype(kind)
    elif change == "shape":
        shapes = ((), (0,), (8,), (0, 3, 16, 16), (1, 3, 16, 16), (8, 16, 16, 3), (8, 3, 16, 17),
                  (8, 1, 16, 16), (2, 1, 3, 16, 16), (8, 0, 16, 16))  # fmt: skip
        arrays["x"] = np.zeros(rng.choice(shapes), np.float32)
    elif change == "values":
        spoilt = x.copy()
        spoilt[rng.randrange(8)] = rng.choice((*FLOATS, 0.0))
        arrays["x"] = rng.choice((spoilt, np.full_like(x, rng.choice(FLOATS)), x * 0))
    elif change == "names":
        arrays = {rng.choice(("X", " ", "größe", "😀", "../x")): x, "y": x[: rng.randrange(9)]}
    elif change == "pickle":
        arrays["x"] = np.array([{"a": 1}, None] * 4, dtype=object)
    with file.open("wb") as out:
        np.savez(out, **arrays)
    if change == "bytes":
        content = file.read_bytes()
        file.write_bytes(spoil_bytes(rng, content, content, done))
    elif change == "header":
        file.write_bytes(_lying_header(rng))
    elif change == "empty":
        file.write_bytes(rng.choice((b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x93NUMPY")))
    elif change == "npy":
        with file.open("wb") as out:
            np.save(out, x)


def _lying_header(rng: Random) -> bytes:
    """A .npy that claims to hold more than it does, or nothing sensible."""
    shape = rng.choice(NUMBERS)
    descr = rng.choice(("<f4", "|O", "<U99999999", "nonsense", "<f16"))
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}, 3, 16, 16), }}"
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)
