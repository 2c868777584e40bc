"""Factors in the graph compute what their product computes, whatever the operator's attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgecompress.errors import ModelError
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.nodes import write_bias, write_shared, write_split
from edgecompress.factorization.parts import Layer, Split, SplitKind
from edgecompress.model import Model
from edgecompress.weights.spool import WeightSpool
from tests.models import from_text
from tests.running import run, with_outputs

HEAD = '<ir_version: 10, opset_import: ["" : {opset}]>'
OPEN = {"N": 3, "S": 4, "H": 9, "W": 8}
# Sums of float32 products in another order: a few steps of the largest sum.
EXACT: dict[str, Any] = {"rtol": 0, "atol": 3e-6}


def graph(
    body: str,
    inputs: str,
    output: str,
    *,
    opset: int = 20,
    kind: type[np.generic] = np.float32,
    **weights: tuple[int, ...],
) -> Model:
    """A graph with random weights of these shapes."""
    rng = np.random.default_rng(0)
    name = {np.float32: "float", np.float16: "float16", np.float64: "double"}[kind]
    arrays = {key: rng.normal(0, 0.3, shape).astype(kind) for key, shape in weights.items()}
    declared = [
        f"{name}[{','.join(map(str, a.shape))}] {key}" if a.ndim else f"{name} {key}"
        for key, a in arrays.items()
    ]
    signature = f"{', '.join([inputs, *declared])}"
    return from_text(
        f"{HEAD.format(opset=opset)} g ({signature}) => ({output}) {{ {body} }}", **arrays
    )


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.4


def sizes(layer: Layer, kind: SplitKind, ranks: Sequence[int]) -> list[tuple[int, ...]]:
    """Shapes of the factors, as :class:`Split` has them."""
    g, ones = layer.groups, (1,) * len(layer.kernel)
    out, depth, *kernel = (*layer.form.shape, *([] if layer.op == "Conv" else [1]))
    r = ranks[0]
    if kind == "matrix":
        return [(g, r, layer.columns), (g, layer.rows, r)]
    if kind == "output":
        return [(g * r, depth, *kernel), (out, r, *ones)]
    if kind == "spatial":
        first, *others = kernel
        tall, wide = (first, *(1 for _ in others)), (1, *others)
        pair = (tall, wide) if len(ranks) < 2 else (wide, tall)
        return [(r, depth, *pair[0]), (out, r, *pair[1])]
    if len(ranks) < 2:
        return [(g * r, depth, *ones), (out, r, *kernel)]
    return [(g * r, depth, *ones), (g * ranks[1], r, *kernel), (out, ranks[1], *ones)]


def product(layer: Layer, kind: SplitKind, factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weight, as the graph has it, that the factors are equal to."""
    form = layer.form
    if kind == "matrix":
        return form.as_stored(factors[1] @ factors[0])
    whole = None
    groups = layer.groups
    for factor in factors:
        if whole is None:
            whole = factor.double()
            continue
        # Kernels one after the other: correlation of the kernels, summed over what lies between.
        k, rows = factor.shape[1], factor.shape[0] // groups
        mine = factor.double().reshape(groups, rows, k, *factor.shape[2:])
        theirs = whole.reshape(groups, k, *whole.shape[1:])
        outer = torch.einsum("gokq,gkip->goipq", mine.flatten(3), theirs.flatten(3))
        lengths = [a * b for a, b in zip(factor.shape[2:], whole.shape[2:], strict=True)]
        assert all(1 in pair for pair in zip(factor.shape[2:], whole.shape[2:], strict=True))
        pairs = outer.reshape(*outer.shape[:3], *whole.shape[2:], *factor.shape[2:])
        n = len(lengths)
        order = [axis for i in range(n) for axis in (3 + i, 3 + n + i)]
        whole = pairs.permute(0, 1, 2, *order).reshape(groups * rows, -1, *lengths)
    assert whole is not None
    return whole.reshape(form.shape)


def only_layer(model: Model) -> Layer:
    layers, skipped = find_layers(model, lambda node: True)
    assert not skipped, skipped
    (layer,) = layers
    return layer


def as_split(layer: Layer, kind: SplitKind, ranks: Sequence[int], shift: bool = False) -> Split:
    shapes = sizes(layer, kind, ranks)
    weights = tuple(drawn(*shape, seed=i) for i, shape in enumerate(shapes))
    moved = drawn(layer.groups * layer.rows, seed=9) if shift else None
    return Split(kind, tuple(ranks), weights, moved)


def feeds(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    found = {}
    for spec in model.signature.inputs:
        assert spec.shape is not None
        shape = [d if isinstance(d, int) else OPEN[str(d)] for d in spec.shape]
        found[spec.name] = rng.normal(0, 1, shape).astype(spec.dtype)
    return found


def composed(model: Model, layer: Layer, split: Split) -> Model:
    """The model with the factors' product as its weight."""
    whole = model.clone()
    array = product(layer, split.kind, split.weights).numpy()
    whole.set_initializer(layer.weight, array.astype(model.initializer(layer.weight).dtype))
    return whole


def shifted(model: Model, layer: Layer, split: Split) -> np.ndarray:
    """What the shift adds to the output, channels along their axis."""
    if split.shift is None:
        return np.zeros(1, np.float32)
    node = next(n for n in model.ir.graph if n.outputs[0].name == layer.output)
    moved = split.shift.numpy() * node.attributes.get_float("alpha", 1.0)
    return moved.reshape(-1, *[1] * len(layer.kernel))


def check_same(model: Model, layer: Layer, split: Split, **close: Any) -> Model:
    """Write the split; compare function, signature and bytes; gives the new model."""
    edited = model.clone()
    written = write_split(edited, layer, split)
    edited.check()
    assert edited.signature == model.signature
    assert written.outputs[-1] == layer.output
    assert len(written.outputs) == len(split.weights)
    saved = written.bytes_before - written.bytes_after
    assert saved == model.weight_bytes - edited.weight_bytes
    wanted, got = run(composed(model, layer, split), feeds(model)), run(edited, feeds(model))
    wanted["y"] = wanted["y"] + shifted(model, layer, split)
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, **(close or EXACT))
    return edited


ROWS = "float[N, 12] x"
TOKENS = "float[N, S, 12] x"
MAP = "float[N, 8, H, W] x"
# Nodes, what x is, and shapes of constants.
LINEAR: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "product of rows": ("y = MatMul(x, w)", ROWS, {"w": (12, 10)}),
    "of tokens": ("y = MatMul(x, w)", TOKENS, {"w": (12, 10)}),
    "of four axes": ("y = MatMul(x, w)", "float[2, N, S, 12] x", {"w": (12, 10)}),
    "of a vector": ("y = MatMul(x, w)", "float[12] x", {"w": (12, 10)}),
    "bias": ("a = MatMul(x, w) y = Add(a, b)", TOKENS, {"w": (12, 10), "b": (10,)}),
    "bias in front": ("a = MatMul(x, w) y = Add(b, a)", TOKENS, {"w": (12, 10), "b": (1, 1, 10)}),
    "Gemm": ("y = Gemm(x, w, b)", ROWS, {"w": (12, 10), "b": (10,)}),
    "Gemm without bias": ("y = Gemm(x, w)", ROWS, {"w": (12, 10)}),
    "Gemm, transB": ("y = Gemm<transB=1>(x, w, b)", ROWS, {"w": (10, 12), "b": (1, 10)}),
    "Gemm, alpha and beta": (
        "y = Gemm<transB=1, alpha=0.5, beta=3.0>(x, w, b)",
        ROWS,
        {"w": (10, 12), "b": (10,)},
    ),
    "Gemm, one number as bias": (
        "y = Gemm<alpha=2.0, beta=0.5>(x, w, b)",
        ROWS,
        {"w": (12, 10), "b": (1,)},
    ),
    "Gemm, scalar as bias": ("y = Gemm(x, w, b)", ROWS, {"w": (12, 10), "b": ()}),
    "Gemm, beta of 0": (
        "y = Gemm<beta=0.0, alpha=2.0>(x, w, b)",
        ROWS,
        {"w": (12, 10), "b": (10,)},
    ),
    "Gemm, computed bias": ("c = Relu(x) y = Gemm<beta=0.5>(x, w, c)", ROWS, {"w": (12, 12)}),
}
CANNOT_SHIFT = (
    "product of rows",
    "of tokens",
    "of four axes",
    "of a vector",
    "Gemm, computed bias",
)
# Attributes of a Conv on 8 channels, shape of its weight, and the splits to try with their ranks.
SPLITS: dict[str, tuple[SplitKind, tuple[int, ...]]] = {
    "output": ("output", (3,)),
    "tall first": ("spatial", (3,)),
    "wide first": ("spatial", (3, 0)),
    "tucker": ("tucker", (3, 4)),
    "tucker without the last": ("tucker", (3,)),
}
GROUPED = ("output", "tucker")
CONVS = {
    "1x1": ("", (10, 8, 1, 1), ("matrix",)),
    "1x1, strides": ("strides=[2,3]", (10, 8, 1, 1), ("matrix",)),
    "1x1, groups": ("group=2, strides=[2,1]", (10, 4, 1, 1), ("matrix",)),
    "1x1, pads": ("pads=[1,0,2,1]", (10, 8, 1, 1), ("matrix",)),
    "1x1, same": ('auto_pad="SAME_UPPER", strides=[2,2]', (10, 8, 1, 1), ("matrix",)),
    "3x3": ("", (10, 8, 3, 3), tuple(SPLITS)),
    "3x3, all": ("strides=[2,3], pads=[1,0,2,1], dilations=[2,1]", (10, 8, 3, 3), tuple(SPLITS)),
    "3x2, same": ('auto_pad="SAME_UPPER", strides=[2,3]', (10, 8, 3, 2), tuple(SPLITS)),
    "2x4, same": ('auto_pad="SAME_LOWER", strides=[3,1]', (10, 8, 2, 4), tuple(SPLITS)),
    "3x3, valid": ('auto_pad="VALID", strides=[2,1]', (10, 8, 3, 3), tuple(SPLITS)),
    "3x1": ("strides=[1,2], pads=[1,1,1,0]", (10, 8, 3, 1), GROUPED),
    "groups": ("group=4, pads=[1,1,1,1], strides=[2,2]", (12, 2, 3, 3), GROUPED),
}


@pytest.mark.parametrize(
    ("name", "shift"),
    [(name, shift) for name in LINEAR for shift in (False, True)[: 2 - (name in CANNOT_SHIFT)]],
)
def test_products(name: str, shift: bool) -> None:
    body, inputs, shapes = LINEAR[name]
    width = min(shapes["w"])
    output = inputs.replace("12] x", f"{width}] y")
    model = graph(body, inputs, output, **shapes)
    layer = only_layer(model)
    edited = check_same(model, layer, as_split(layer, "matrix", (4,), shift))
    made = [node.op_type for node in edited.ir.graph if node.op_type not in ("Add", "Relu")]
    assert made == ["MatMul", layer.op]


@pytest.mark.parametrize(("bias", "shift"), [(True, False), (False, True)], ids=["bias", "shift"])
@pytest.mark.parametrize(("name", "way"), [(n, way) for n in CONVS for way in CONVS[n][2]])
def test_convolutions(name: str, way: str, bias: bool, shift: bool) -> None:
    attributes, shape, _ = CONVS[name]
    read, biases = ("(x, w, b)", {"b": (shape[0],)}) if bias else ("(x, w)", {})
    model = graph(
        f"y = Conv<{attributes}>{read}" if attributes else f"y = Conv{read}",
        MAP, f"float[N, {shape[0]}, P, Q] y", w=shape, **biases,
    )  # fmt: skip
    layer = only_layer(model)
    kind, ranks = SPLITS.get(way, ("matrix", (2,)))
    check_same(model, layer, as_split(layer, kind, ranks, shift), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", [(1,), (4,), (1, 1, 1), (3, 2, 2)])
def test_convolutions_of_other_ranks(kernel: tuple[int, ...]) -> None:
    space = ", ".join(["7", "6", "5"][: len(kernel)])
    free = ", ".join(["P", "Q", "R"][: len(kernel)])
    twos = str([2] * len(kernel)).replace(" ", "")
    model = graph(
        f"y = Conv<strides={twos}>(x, w, b)", f"float[N, 8, {space}] x",
        f"float[N, 10, {free}] y", w=(10, 8, *kernel), b=(10,),
    )  # fmt: skip
    layer = only_layer(model)
    ways: list[tuple[SplitKind, tuple[int, ...]]] = [("matrix", (3,))]
    if max(kernel) > 1:
        ways = [("output", (3,)), ("tucker", (3, 4)), ("spatial", (3,))]
    for kind, ranks in ways:
        check_same(model, layer, as_split(layer, kind, ranks), rtol=0, atol=1e-5)


@settings(max_examples=40)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    def two(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=2, max_size=2))

    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel, strides, dilations = two(1, 4), two(1, 3), two(1, 2)
    pad = data.draw(st.sampled_from(["pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    pads = [*two(0, 2), *two(0, 2)]
    # onnxruntime refuses dilations where auto_pad is SAME.
    assume(pad in ("pads", "VALID") or dilations == [1, 1])
    padding = f"pads={pads}" if pad == "pads" else f'auto_pad="{pad}"'
    shape = (8, 16 // groups, *kernel)
    model = graph(
        f"y = Conv<group={groups}, strides={strides}, dilations={dilations}, {padding}>(x, w, b)",
        "float[2, 16, 11, 9] x", "float[2, 8, P, Q] y", w=shape, b=(8,),
    )  # fmt: skip
    layer = only_layer(model)
    kinds = ["matrix"] if max(kernel) == 1 else ["output", "tucker"]
    if groups == 1 and min(kernel) > 1:
        kinds.append("spatial")
    kind = data.draw(st.sampled_from(kinds))
    ranks = [data.draw(st.integers(1, 2)) for _ in range(2 if kind == "tucker" else 1)]
    if kind == "spatial" and data.draw(st.booleans()):
        ranks.append(0)
    check_same(model, layer, as_split(layer, kind, ranks, shift=True), rtol=0, atol=3e-5)


@settings(max_examples=20)
@given(st.data())
def test_any_gemm(data: st.DataObject) -> None:
    transposed = data.draw(st.integers(0, 1))
    alpha, beta = (data.draw(st.sampled_from([1.0, 0.5, -2.0])) for _ in range(2))
    bias = data.draw(st.sampled_from([None, (10,), (1, 10), (1,), (1, 1), (), (3, 10)]))
    weights = {"w": (10, 12) if transposed else (12, 10)}
    read = "(x, w)" if bias is None else "(x, w, b)"
    model = graph(
        f"y = Gemm<transB={transposed}, alpha={alpha}, beta={beta}>{read}",
        "float[3, 12] x",
        "float[3, 10] y",
        **weights,
        **({} if bias is None else {"b": bias}),
    )
    layer = only_layer(model)
    rank = data.draw(st.integers(1, 10))
    check_same(model, layer, as_split(layer, "matrix", (rank,), shift=bias != (3, 10)))


def whole_rank(model: Model, layer: Layer) -> Split:
    """Factors that lose nothing."""
    weight = layer.form.weight(torch.from_numpy(np.array(model.initializer(layer.weight))))
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    return Split("matrix", (len(values[0]),), (values[..., None] * right, left))


@pytest.mark.parametrize("transposed", [0, 1])
def test_full_rank_is_the_layer_itself(transposed: int) -> None:
    model = graph(
        f"y = Gemm<transB={transposed}, alpha=0.5>(x, w, b)", ROWS, "float[N, 10] y",
        w=(10, 12) if transposed else (12, 10), b=(10,),
    )  # fmt: skip
    layer = only_layer(model)
    edited = model.clone()
    write_split(edited, layer, whole_rank(model, layer))
    wanted, got = run(model, feeds(model))["y"], run(edited, feeds(model))["y"]
    np.testing.assert_allclose(got, wanted, **EXACT)


@pytest.mark.parametrize(
    ("name", "optimize"),
    [
        ("resnet20_cifar10.onnx", False),
        ("resnet20_cifar10.onnx", True),
        ("mobilenet_v1_075_224.onnx", True),
    ],
)
def test_real_models_of_full_rank(name: str, optimize: bool, shared: Callable[[str], Path]) -> None:
    model = Model.load(shared(name))
    edited = model.clone()
    layers, _ = find_layers(model, lambda node: True)
    for layer in layers:
        write_split(edited, layer, whole_rank(model, layer))
    edited.check()
    assert edited.signature == model.signature
    assert len(edited.ir.graph) == len(model.ir.graph) + len(layers)
    (spec,) = model.signature.inputs
    assert spec.shape is not None
    shape = (1, *(int(n or 1) for n in spec.shape[1:]))
    x = {spec.name: np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)}
    wanted = run(model, x, optimize=optimize)["logits"]
    got = run(edited, x, optimize=optimize)["logits"]
    # Rounding of float32 in some dozens of layers.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_stride_is_taken_by_the_first_node() -> None:
    model = graph(
        "y = Conv<strides=[2,2]>(x, w)", "float[N, 8, 10, 8] x", "float[N, 6, 5, 4] y",
        w=(6, 8, 1, 1),
    )  # fmt: skip
    layer = only_layer(model)
    write_split(model, layer, as_split(layer, "matrix", (2,)))
    first, second = model.ir.graph
    assert first.attributes["strides"].as_ints() == (2, 2)
    assert second.attributes["strides"].as_ints() == (1, 1)
    assert first.outputs[0].shape == ir.Shape(["N", 2, 5, 4])


def test_values_between_have_types_and_shapes() -> None:
    model = graph(
        "y = Conv<strides=[2,1], pads=[1,1,1,1]>(x, w)", "float[N, 8, H, 8] x",
        "float[N, 10, P, 8] y", w=(10, 8, 3, 3),
    )  # fmt: skip
    layer = only_layer(model)
    spatial = as_split(layer, "spatial", (3, 0))  # the wide kernel first
    edited = model.clone()
    written = write_split(edited, layer, spatial)
    between = next(iter(edited.ir.graph)).outputs[0]
    assert written.outputs == (between.name, "y")
    assert between.shape == ir.Shape(["N", 3, "H", 8])
    assert between.dtype == ir.DataType.FLOAT
    tokens = graph("y = MatMul(x, w)", TOKENS, "float[N, S, 10] y", w=(12, 10))
    layer = only_layer(tokens)
    write_split(tokens, layer, as_split(layer, "matrix", (4,)))
    assert next(iter(tokens.ir.graph)).outputs[0].shape == ir.Shape(["N", "S", 4])


def test_shapes_agree_with_what_onnx_infers() -> None:
    model = graph(
        "y = Conv<strides=[2,1], pads=[1,1,1,1]>(x, w)", "float[2, 8, 9, 8] x",
        "float[2, 10, 5, 8] y", w=(10, 8, 3, 3),
    )  # fmt: skip
    layer = only_layer(model)
    for kind, ranks in SPLITS.values():
        edited = model.clone()
        written = write_split(edited, layer, as_split(layer, kind, ranks))
        for name, array in run(with_outputs(edited, [*written.outputs]), feeds(model)).items():
            value = next(v for n in edited.ir.graph for v in n.outputs if v.name == name)
            assert value.shape == ir.Shape(array.shape)


def test_names_and_order_are_always_the_same() -> None:
    def made() -> Model:
        model = graph(
            "w_lowrank_0 = Relu(x) y = Conv(w_lowrank_0, w)", MAP, "float[N, 10, P, Q] y",
            w=(10, 8, 3, 3),
        )  # fmt: skip
        layer = only_layer(model)
        write_split(model, layer, as_split(layer, "tucker", (2, 3)))
        return model

    one, two = made(), made()
    assert one.to_bytes() == two.to_bytes()
    assert list(one.ir.graph.initializers) == ["w_lowrank_0_2", "w_lowrank_1", "w_lowrank_2"]
    assert [n.outputs[0].name for n in one.ir.graph] == [
        "w_lowrank_0", "y_lowrank_0", "y_lowrank_1", "y",
    ]  # fmt: skip


def test_nodes_keep_their_names() -> None:
    model = graph("y = MatMul(x, w)", ROWS, "float[N, 10] y", w=(12, 10))
    next(iter(model.ir.graph)).name = "head"
    layer = only_layer(model)
    write_split(model, layer, as_split(layer, "matrix", (2,)))
    assert [n.name for n in model.ir.graph] == ["head_lowrank_0", "head"]


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_factors_have_the_type_of_the_weight(kind: type[np.generic]) -> None:
    name = {np.float16: "float16", np.float64: "double"}[kind]
    model = graph(
        "a = MatMul(x, w) y = Add(a, b)", f"{name}[N, 12] x", f"{name}[N, 10] y",
        kind=kind, w=(12, 10), b=(10,),
    )  # fmt: skip
    layer = only_layer(model)
    split = as_split(layer, "matrix", (4,), shift=True)
    # float16 rounds each factor, their product and what lies between.
    edited = check_same(model, layer, split, rtol=0, atol=1e-2 if kind is np.float16 else 1e-6)
    held = {v.dtype for v in edited.ir.graph.initializers.values()}
    assert held == {model.ir.graph.inputs[0].dtype}


def test_old_operator_sets_want_the_bias_of_a_gemm() -> None:
    model = graph("y = Gemm(x, w, b)", ROWS, "float[N, 10] y", opset=9, w=(12, 10), b=(10,))
    layer = only_layer(model)
    check_same(model, layer, as_split(layer, "matrix", (4,)))


def two_heads(body: str, **more: tuple[int, ...]) -> Model:
    return graph(body, f"{ROWS}, float[N, 12] z", "float[N, 10] y, float[N, 10] u", **more)


def test_layers_that_share_a_weight_share_its_factors() -> None:
    model = two_heads("y = MatMul(x, w) c = MatMul(z, w) u = Add(c, b)", w=(12, 10), b=(10,))
    layers, skipped = find_layers(model, lambda node: True)
    assert not skipped
    split = as_split(layers[0], "matrix", (3,))
    edited = model.clone()
    first, second = write_shared(edited, layers, split)
    edited.check()
    assert [*edited.ir.graph.initializers] == ["b", "w_lowrank_0", "w_lowrank_1"]
    assert (first.outputs[-1], second.outputs[-1]) == ("y", "c")
    assert (first.bytes_before, first.bytes_after) == (4 * 120, 4 * split.parameters)
    assert (second.bytes_before, second.bytes_after) == (0, 0)
    assert first.bytes_after - first.bytes_before == edited.weight_bytes - model.weight_bytes
    wanted, got = run(composed(model, layers[0], split), feeds(model)), run(edited, feeds(model))
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], **EXACT)


@pytest.mark.parametrize(
    "body",
    [
        "c = MatMul(x, w) y = Add(c, b) d = MatMul(z, v) u = Add(d, b)",
        "y = Gemm(x, w, b) u = Gemm(z, v, b)",
    ],
)
def test_a_bias_that_others_read_is_copied(body: str) -> None:
    model = two_heads(body, w=(12, 10), v=(12, 10), b=(10,))
    layer = find_layers(model, lambda node: True)[0][0]
    edited = check_same(model, layer, as_split(layer, "matrix", (3,), shift=True))
    np.testing.assert_array_equal(edited.initializer("b"), model.initializer("b"))
    assert "w_bias" in edited.ir.graph.initializers


def test_a_bias_of_one_layer_keeps_its_name() -> None:
    model = graph("y = Gemm(x, w, b)", ROWS, "float[N, 10] y", w=(12, 10), b=(10,))
    clone, layer = model.clone(), only_layer(model)
    write_bias(clone, layer, torch.ones(10))
    np.testing.assert_allclose(clone.initializer("b"), model.initializer("b") + 1, rtol=1e-6)
    assert [*clone.ir.graph.initializers] == [*model.ir.graph.initializers]


def test_a_shift_moves_the_output_by_itself() -> None:
    model = graph(
        "y = Gemm<alpha=0.5, beta=4.0>(x, w, b)", ROWS, "float[N, 10] y", w=(12, 10), b=(10,)
    )
    moved, layer = model.clone(), only_layer(model)
    shift = torch.arange(10.0)
    write_bias(moved, layer, shift)
    difference = run(moved, feeds(model))["y"] - run(model, feeds(model))["y"]
    np.testing.assert_allclose(difference, 0.5 * shift.expand(3, 10), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [("y = MatMul(x, w)", ROWS), ("y = Gemm(x, w, c)", f"{ROWS}, float[N, 10] c")],
)
def test_refuses_a_shift_where_there_is_no_bias(body: str, inputs: str) -> None:
    model = graph(body, inputs, "float[N, 10] y", w=(12, 10))
    with pytest.raises(ModelError, match="no constant bias to add to"):
        write_bias(model, only_layer(model), torch.ones(10))


def test_refuses_layers_that_the_model_has_not() -> None:
    model = graph("y = MatMul(x, w)", ROWS, "float[N, 10] y", w=(12, 10))
    layer = only_layer(model)
    other = graph("z = MatMul(x, v)", ROWS, "float[N, 10] z", v=(12, 10))
    with pytest.raises(ModelError, match="has no weight 'w'"):
        write_split(other, layer, as_split(layer, "matrix", (2,)))
    with pytest.raises(ModelError, match="no node computes 'y'"):
        write_bias(other, layer, torch.ones(10))


def test_new_weights_can_lie_elsewhere() -> None:
    model = graph("y = Gemm(x, w, b)", ROWS, "float[N, 10] y", w=(12, 10), b=(10,))
    layer = only_layer(model)
    split = as_split(layer, "matrix", (2,), shift=True)
    plain, spooled = model.clone(), model.clone()
    spool = WeightSpool(keep_bytes=0)
    write_split(plain, layer, split)
    write_split(spooled, layer, split, spool.keep)
    tensors = [v.const_value for v in spooled.ir.graph.initializers.values()]
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    assert spooled.to_bytes() == plain.to_bytes()


def test_the_model_it_was_cloned_from_stays() -> None:
    model = graph("y = Gemm(x, w, b)", ROWS, "float[N, 10] y", w=(12, 10), b=(10,))
    before = model.to_bytes()
    layer = only_layer(model)
    write_split(model.clone(), layer, as_split(layer, "matrix", (2,), shift=True))
    assert model.to_bytes() == before
