"""A model in Llama's layout with random weights, written without ever being in memory.

The graph is what ``torch.onnx`` makes of Llama: RMSNorm written out, rotary tables computed from
positions, a causal mask joined with ``attention_mask``, matrices as ``[in, out]`` initializers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

__all__ = ["Llama", "write"]

_OPSET, _IR_VERSION = 20, 10
_INT64 = np.int64
_FLOOR = float(np.finfo(np.float32).min)
# Values drawn at once.
_ROWS_BYTES = 1 << 24


@dataclass(frozen=True)
class Llama:
    """Sizes of the model; the defaults give 1.1 billion parameters.

    Attributes:
        width: Of the activations between layers.
        layers: Attention and MLP, so often.
        heads: Of the queries; each is ``width / heads`` wide.
        kv_heads: Of keys and values.
        mlp: Width inside the MLP.
        vocabulary: Tokens.
        seed: Of the weights.
    """

    width: int = 2048
    layers: int = 16
    heads: int = 32
    kv_heads: int = 8
    mlp: int = 8192
    vocabulary: int = 32_000
    seed: int = 0

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    def matrices(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the weights, in the order in which the graph uses them."""
        kv = self.kv_heads * self.head
        yield "model.embed_tokens.weight", (self.vocabulary, self.width)
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            yield f"{layer}.input_layernorm.weight", (self.width,)
            yield f"{layer}.self_attn.q_proj.weight", (self.width, self.width)
            yield f"{layer}.self_attn.k_proj.weight", (self.width, kv)
            yield f"{layer}.self_attn.v_proj.weight", (self.width, kv)
            yield f"{layer}.self_attn.o_proj.weight", (self.width, self.width)
            yield f"{layer}.post_attention_layernorm.weight", (self.width,)
            yield f"{layer}.mlp.gate_proj.weight", (self.width, self.mlp)
            yield f"{layer}.mlp.up_proj.weight", (self.width, self.mlp)
            yield f"{layer}.mlp.down_proj.weight", (self.mlp, self.width)
        yield "model.norm.weight", (self.width,)
        yield "lm_head.weight", (self.width, self.vocabulary)

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(math.prod(shape) for _, shape in self.matrices())


def write(sizes: Llama, path: Path) -> int:
    """Write ``path`` and ``path.data``; returns the bytes of both.

    Weights are drawn at most 16 MiB at a time. Matrices are scaled by the root of their inputs, so
    that activations neither grow nor vanish over the layers.
    """
    data = path.with_name(path.name + ".data")
    builder = _Builder()
    with data.open("wb") as file:
        for number, (name, shape) in enumerate(sizes.matrices()):
            builder.initializers.append(_stored(file, data.name, name, shape))
            _draw(file, shape, np.random.default_rng([sizes.seed, number]))
    _model(builder, sizes)
    graph = helper.make_graph(
        builder.nodes,
        "main_graph",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, ["batch", "sequence", sizes.vocabulary]
            )
        ],
        builder.initializers,
    )
    imports = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path.stat().st_size + data.stat().st_size


def _stored(file: BinaryIO, location: str, name: str, shape: tuple[int, ...]) -> TensorProto:
    tensor = TensorProto(
        name=name, dims=shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    place = {"location": location, "offset": file.tell(), "length": 4 * math.prod(shape)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _draw(file: BinaryIO, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    if len(shape) == 1:
        file.write(rng.uniform(0.9, 1.1, shape).astype("<f4").data)
        return
    rows, columns = shape
    at_once = max(1, _ROWS_BYTES // (4 * columns))
    scale = np.float32(1 / math.sqrt(rows if rows < columns * 4 else columns))
    for start in range(0, rows, at_once):
        block = rng.standard_normal((min(at_once, rows - start), columns), np.float32)
        block *= scale
        file.write(block.astype("<f4", copy=False).data)


@dataclass
class _Builder:
    """Nodes and constants of a graph; each value has the name of its node."""

    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)

    def __call__(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def const(self, value: Any, dtype: Any = _INT64) -> str:
        array = np.asarray(value, dtype)
        key = f"{array.dtype}:{array.tolist()}"
        if key not in self.known:
            self.known[key] = f"val_{len(self.known)}"
            self.initializers.append(onnx.numpy_helper.from_array(array, self.known[key]))
        return self.known[key]


def _model(g: _Builder, sizes: Llama) -> None:
    batch = g("Shape", "input_ids", start=0, end=1)
    sequence = g("Shape", "input_ids", start=1, end=2)
    x = g("Gather", "model.embed_tokens.weight", "input_ids", out="embedding", axis=0)
    steps = g("Range", g.const(0), g("Squeeze", sequence), g.const(1))
    tables = _rotary(g, sizes, steps)
    mask = _mask(g, steps)
    for number in range(sizes.layers):
        layer = f"model.layers.{number}"
        y = _norm(g, x, f"{layer}.input_layernorm.weight")
        y = _attention(g, sizes, y, f"{layer}.self_attn", (batch, sequence), tables, mask)
        x = g("Add", x, y)
        y = _norm(g, x, f"{layer}.post_attention_layernorm.weight")
        gate = g("MatMul", y, f"{layer}.mlp.gate_proj.weight")
        up = g("MatMul", y, f"{layer}.mlp.up_proj.weight")
        gate = g("Mul", gate, g("Sigmoid", gate))
        y = g("MatMul", g("Mul", gate, up), f"{layer}.mlp.down_proj.weight")
        x = g("Add", x, y)
    g("MatMul", _norm(g, x, "model.norm.weight"), "lm_head.weight", out="logits")


def _rotary(g: _Builder, sizes: Llama, steps: str) -> tuple[str, str]:
    """Cosines and sines, each ``[1, 1, sequence, head]``."""
    half = np.arange(0, sizes.head, 2) / sizes.head
    frequencies = g.const((10_000.0**-half)[None, :, None], np.float32)
    positions = g("Cast", g("Unsqueeze", steps, g.const([0, 1])), to=TensorProto.FLOAT)
    angles = g("Transpose", g("MatMul", frequencies, positions), perm=[0, 2, 1])
    angles = g("Unsqueeze", g("Concat", angles, angles, axis=-1), g.const([1]))
    return g("Cos", angles), g("Sin", angles)


def _mask(g: _Builder, steps: str) -> str:
    """``[batch, 1, sequence, sequence]``: 0 where a query may look, else the least float."""
    rows = g("Unsqueeze", steps, g.const([1]))
    causal = g("LessOrEqual", g("Unsqueeze", steps, g.const([0])), rows)
    there = g("Cast", "attention_mask", to=TensorProto.BOOL)
    seen = g("And", causal, g("Unsqueeze", there, g.const([1, 2])))
    return g("Where", seen, g.const(0, np.float32), g.const(_FLOOR, np.float32))


def _norm(g: _Builder, x: str, weight: str) -> str:
    mean = g("ReduceMean", g("Pow", x, g.const(2, np.float32)), g.const([-1]), keepdims=1)
    root = g("Sqrt", g("Add", mean, g.const(1e-5, np.float32)))
    return g("Mul", weight, g("Mul", x, g("Reciprocal", root)))


def _attention(
    g: _Builder,
    sizes: Llama,
    x: str,
    name: str,
    shape: tuple[str, str],
    tables: tuple[str, str],
    mask: str,
) -> str:
    heads, kv_heads, width = sizes.heads, sizes.kv_heads, sizes.head

    def split(which: str, count: int) -> str:
        y = g("MatMul", x, f"{name}.{which}_proj.weight")
        target = g("Concat", *shape, g.const([count, width]), axis=0)
        return g("Transpose", g("Reshape", y, target), perm=[0, 2, 1, 3])

    q = _rotate(g, split("q", heads), tables, width)
    k = _rotate(g, split("k", kv_heads), tables, width)
    k, v = (_repeat(g, y, sizes, shape) for y in (k, split("v", kv_heads)))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g("Mul", scores, g.const(width**-0.5, np.float32))
    weights = g("Softmax", g("Add", scores, mask), axis=-1)
    y = g("Transpose", g("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = g("Reshape", y, g("Concat", *shape, g.const([sizes.width]), axis=0))
    return g("MatMul", y, f"{name}.o_proj.weight")


def _rotate(g: _Builder, x: str, tables: tuple[str, str], width: int) -> str:
    cosines, sines = tables
    end, last = g.const([np.iinfo(_INT64).max]), g.const([-1])
    first = g("Slice", x, g.const([0]), g.const([width // 2]), last)
    second = g("Slice", x, g.const([width // 2]), end, last)
    turned = g("Concat", g("Neg", second), first, axis=-1)
    return g("Add", g("Mul", x, cosines), g("Mul", turned, sines))


def _repeat(g: _Builder, x: str, sizes: Llama, shape: tuple[str, str]) -> str:
    """Keys or values of each group, once per query head."""
    times, width = sizes.heads // sizes.kv_heads, sizes.head
    batch, sequence = shape
    wide = g("Concat", batch, g.const([sizes.kv_heads, times]), sequence, g.const([width]), axis=0)
    x = g("Expand", g("Unsqueeze", x, g.const([2])), wide)
    return g(
        "Reshape", x, g("Concat", batch, g.const([sizes.heads]), sequence, g.const([width]), axis=0)
    )
