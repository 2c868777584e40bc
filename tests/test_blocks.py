"""Blocks: what a person would draw, and slices that compute together what the graph computes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from edgecompress.model import Model
from edgecompress.torchgraph import to_torch
from edgecompress.walk.blocks import Block, find_blocks, join, slice_between
from edgecompress.walk.liveness import analyse
from tests.models import from_text, small_cnn


def summary(blocks: list[Block]) -> list[tuple[str, int]]:
    return [(block.name, block.layers) for block in blocks]


def test_resnet_is_cut_at_its_residual_blocks(shared: Callable[[str], Path]) -> None:
    blocks = find_blocks(Model.load(shared("resnet20_cifar10.onnx")))
    expected = [(f"layer{stage}.{place}", 2) for stage in (1, 2, 3) for place in (0, 1, 2)]
    assert summary(blocks) == [("conv1", 1), *expected, ("linear", 1)]
    assert [block.nodes[-1].op_type for block in blocks[:-1]] == ["Relu"] * 10
    assert blocks[1].repeat == blocks[2].repeat == blocks[3].repeat >= 0
    assert blocks[4].repeat == -1  # it halves the image
    assert blocks[0].context == ("input",)
    assert blocks[-1].results == ("logits",)
    assert blocks[1].live_bytes == 16 * 32 * 32 * 4


def test_mobilenet_is_cut_at_its_separable_convolutions(shared: Callable[[str], Path]) -> None:
    blocks = find_blocks(Model.load(shared("mobilenet_v1_075_224.onnx")))
    assert [block.layers for block in blocks] == [1, *[2] * 13, 1]
    assert len({block.repeat for block in blocks[1:-1]}) == 1
    assert blocks[-1].name == "preds"


def check_invariants(model: Model, blocks: list[Block]) -> None:
    made: set[str] = set()
    for block in blocks:
        assert set(block.inputs) <= made
        made |= {value.name or "" for node in block.nodes for value in node.outputs}
        assert set(block.outputs) <= made
    assert {node for block in blocks for node in block.nodes} == set(model.ir.graph)
    assert [n for b in blocks for n in b.results] == [v.name for v in model.ir.graph.outputs]


def run_blocks(
    model: Model, blocks: list[Block], feeds: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    values = dict(feeds)
    for block in blocks:
        given_values = {name: values[name] for name in (*block.inputs, *block.context)}
        graph = to_torch(model, block.nodes)
        assert set(graph.input_names) <= set(given_values)
        values.update(graph(given_values, outputs=(*block.outputs, *block.results)))
    return {value.name or "": values[value.name or ""] for value in model.ir.graph.outputs}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20_cifar10.onnx", (2, 3, 32, 32)),
        ("mobilenet_v2_cifar10_224.onnx", (2, 3, 224, 224)),
        ("ultraface_version-RFB-320.onnx", (1, 3, 240, 320)),
    ],
)
def test_blocks_one_after_the_other_are_the_graph(
    name: str, shape: tuple[int, ...], shared: Callable[[str], Path]
) -> None:
    model = Model.load(shared(name))
    blocks = find_blocks(model)
    check_invariants(model, blocks)
    feeds = {"input": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        expected = to_torch(model)(feeds)
        found = run_blocks(model, blocks, feeds)
    for output, values in expected.items():
        assert torch.equal(found[output], values), output


def test_transformer_is_cut_at_its_layers() -> None:
    """Pre-norm: embedding | (norm, attention, norm, MLP) x 3 | norm and head."""
    blocks = find_blocks(decoder(3))
    assert [block.layers for block in blocks] == [1, 6, 6, 6, 1]
    assert [block.name for block in blocks] == ["emb", "l.0", "l.1", "l.2", "head"]
    assert len({block.repeat for block in blocks[1:4]}) == 1
    assert all(block.inputs == (f"x{i}",) for i, block in enumerate(blocks[1:]))
    # The mask depends on no weight: each layer computes it again from the graph's input.
    assert [block.context for block in blocks[1:4]] == [("mask",)] * 3
    assert [n.op_type for n in blocks[-1].nodes] == ["LayerNormalization", "MatMul"]


def test_post_norm_transformer_is_cut_behind_its_norms() -> None:
    """Embedding and norm | (attention, norm, MLP, norm) x 3 | head, as BERT has them."""
    blocks = find_blocks(encoder(3))
    assert [block.layers for block in blocks] == [2, 6, 6, 6, 1]
    assert [block.nodes[-1].op_type for block in blocks[:4]] == ["LayerNormalization"] * 4
    assert len({block.repeat for block in blocks[1:4]}) == 1


def encoder(layers: int, width: int = 8) -> Model:
    rng = np.random.default_rng(0)
    names = [f"{name}{i}" for i in range(layers) for name in ("wq", "wk", "wv", "wo", "wu", "wd")]
    shapes = dict.fromkeys(names, (width, width)) | {
        "words": (32, width),
        "kinds": (2, width),
        "wh": (width, 4),
    }
    body = []
    for i in range(layers):
        body.append(f"""
            q{i} = MatMul(x{i}, wq{i})
            k{i} = MatMul(x{i}, wk{i})
            v{i} = MatMul(x{i}, wv{i})
            t{i} = Transpose<perm=[0, 2, 1]>(k{i})
            s{i} = MatMul(q{i}, t{i})
            p{i} = Softmax<axis=-1>(s{i})
            c{i} = MatMul(p{i}, v{i})
            o{i} = MatMul(c{i}, wo{i})
            r{i} = Add(x{i}, o{i})
            n{i} = LayerNormalization<axis=-1>(r{i}, scale)
            u{i} = MatMul(n{i}, wu{i})
            g{i} = Relu(u{i})
            d{i} = MatMul(g{i}, wd{i})
            e{i} = Add(n{i}, d{i})
            x{i + 1} = LayerNormalization<axis=-1>(e{i}, scale)
        """)
    declared = ", ".join(f"float{list(shape)} {name}" for name, shape in shapes.items())
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[N, S] ids, int64[N, S] types, {declared}, float[{width}] scale)
        => (float[N, S, 4] logits) {{
            a = Gather(words, ids)
            b = Gather(kinds, types)
            ab = Add(a, b)
            x0 = LayerNormalization<axis=-1>(ab, scale)
            {"".join(body)}
            logits = MatMul(x{layers}, wh)
        }}""",
        **{name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()},
        scale=np.ones(width, np.float32),
    )


def decoder(layers: int, width: int = 8) -> Model:
    rng = np.random.default_rng(0)
    matrices = {
        f"l.{i}.{name}": rng.normal(0, 0.3, (width, width)).astype(np.float32)
        for i in range(layers)
        for name in ("q", "k", "v", "o", "up", "down")
    }
    matrices |= {"emb.table": rng.normal(0, 1, (32, width)).astype(np.float32)}
    matrices |= {"head.w": rng.normal(0, 1, (width, 32)).astype(np.float32)}
    body = []
    for i in range(layers):
        body.append(f"""
            a{i} = LayerNormalization<axis=-1>(x{i}, "scale")
            q{i} = MatMul(a{i}, "l.{i}.q")
            k{i} = MatMul(a{i}, "l.{i}.k")
            v{i} = MatMul(a{i}, "l.{i}.v")
            t{i} = Transpose<perm=[0, 2, 1]>(k{i})
            s{i} = MatMul(q{i}, t{i})
            m{i} = Add(s{i}, bias)
            p{i} = Softmax<axis=-1>(m{i})
            c{i} = MatMul(p{i}, v{i})
            o{i} = MatMul(c{i}, "l.{i}.o")
            r{i} = Add(x{i}, o{i})
            n{i} = LayerNormalization<axis=-1>(r{i}, "scale")
            u{i} = MatMul(n{i}, "l.{i}.up")
            g{i} = Relu(u{i})
            d{i} = MatMul(g{i}, "l.{i}.down")
            x{i + 1} = Add(r{i}, d{i})
        """)
    declared = ", ".join(f'float{list(w.shape)} "{name}"' for name, w in matrices.items())
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[N, S] ids, float[N, S] mask, {declared}, float[{width}] scale, int64[1] one,
           float big) => (float[N, S, 32] logits) {{
            x0 = Gather("emb.table", ids)
            away = Sub(mask, big)
            bias = Unsqueeze(away, one)
            {"".join(body)}
            z = LayerNormalization<axis=-1>(x{layers}, "scale")
            logits = MatMul(z, "head.w")
        }}""".replace('"scale"', "scale"),
        **matrices,
        scale=np.ones(width, np.float32),
        one=np.array([1]),
        big=np.float32(1),
    )


def unet(depth: int) -> Model:
    """Convolutions down and up again, each level joined to its mirror image by addition."""
    weights: dict[str, np.ndarray] = {}
    lines: list[str] = []

    def conv(out: str, source: str, channels: tuple[int, int], form: str = "") -> None:
        weights[f"w_{out}"] = np.full((channels[1], channels[0], 1, 1), 0.1, np.float32)
        lines.append(f"{out} = Conv{form}({source}, w_{out})")

    conv("d0", "x", (2, 2))
    for level in range(depth):
        conv(f"d{level + 1}", f"d{level}", (2, 2), "<strides=[2,2]>")
    at = f"d{depth}"
    for level in reversed(range(depth)):
        lines.append(f"up{level} = Resize(" + f"{at}, , scales)")
        conv(f"c{level}", f"up{level}", (2, 2))
        lines.append(f"s{level} = Add(c{level}, d{level})")
        at = f"s{level}"
    conv("y", at, (2, 1))
    declared = ", ".join(f"float{list(w.shape)} {name}" for name, w in weights.items())
    model = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 2, 32, 32] x, {declared}, float[4] scales) => (float[N, 1, 32, 32] y)
        {{ {" ".join(lines)} }}""",
        **weights,
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    ShapeInferencePass()(model.ir)
    return model


@pytest.mark.parametrize("most", [2, 3, 4])
def test_long_skips_are_cut_where_the_fewest_bytes_are_alive(most: int) -> None:
    model = unet(3)
    blocks = find_blocks(model, max_layers=most)
    check_invariants(model, blocks)
    assert all(block.layers <= most for block in blocks)
    assert sum(block.live_bytes for block in blocks[:-1]) <= best_by_trial(model, most)


def best_by_trial(model: Model, most: int) -> int:
    """Fewest live bytes over all ways to cut the graph, at its natural cuts at least."""
    liveness = analyse(model.ir.graph)
    count = len(liveness.main)
    natural = {cut + 1 for cut in liveness.cuts}
    best = None
    for number in range(count):
        for cuts in combinations(range(1, count), number):
            edges = [0, *cuts, count]
            pieces = pairwise(edges)
            if natural <= set(cuts) and all(
                sum(n in liveness.layers for n in liveness.main[a:b]) <= most for a, b in pieces
            ):
                cost = sum(liveness.live_bytes[cut - 1] for cut in cuts)
                best = cost if best is None else min(best, cost)
        if best is not None and number > count // most + 2:
            break
    assert best is not None
    return best


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=3, max_size=12), st.data())
def test_any_graph_is_cut_into_the_same_computation(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Random chains with skips: every node is in a block, and the blocks compute the graph."""
    lines, names = [], ["x"]
    for number, (back, weighted) in enumerate(steps):
        source = names[max(0, len(names) - 1 - back)]
        made = f"v{number}"
        other = data.draw(st.sampled_from(names))
        lines.append(
            f"{made} = MatMul({source}, w)" if weighted else f"{made} = Add({source}, {other})"
        )
        names.append(made)
    rest = names[-1]
    model = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3] x, float[3, 3] w) => (float[N, 3] y) {{ {" ".join(lines)}
            y = Identity({rest}) }}""",
        w=np.array([[0, 1, 0.5], [0.25, 0, 0], [0, 0, 0.5]], np.float32),
    )
    blocks = find_blocks(model, max_layers=2)
    check_invariants(model, blocks)
    feeds = {"x": torch.arange(6.0).reshape(2, 3)}
    with torch.no_grad():
        assert torch.equal(run_blocks(model, blocks, feeds)["y"], to_torch(model)(feeds)["y"])


def test_what_torch_cannot_run_is_a_block_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_clip(node: ir.Node, opsets: dict[str, int]) -> bool:
        return node.op_type != "Clip"

    monkeypatch.setattr("edgecompress.walk.blocks.is_supported", without_clip)
    model = small_cnn()
    blocks = find_blocks(model)
    check_invariants(model, blocks)
    (opaque,) = [block for block in blocks if block.opaque]
    assert [node.op_type for node in opaque.nodes] == ["Clip"]
    assert opaque.inputs == ("c2",)
    assert opaque.outputs == ("r2",)


def test_graph_without_weights_is_one_block() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 3] x) => (float[N, 3] y) { a = Relu(x) y = Sigmoid(a) }"""
    )
    (block,) = find_blocks(model)
    assert (block.name, block.layers, block.context, block.results) == ("model", 0, ("x",), ("y",))


def test_quantized_weights_are_layers_too() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x, int8[4, 4] w1, int8[4, 4] w2, float s) => (float[N, 4] y) {
            d1 = DequantizeLinear(w1, s) h = MatMul(x, d1) r = Relu(h)
            d2 = DequantizeLinear(w2, s) y = MatMul(r, d2) }""",
        w1=np.ones((4, 4), np.int8),
        w2=np.ones((4, 4), np.int8),
        s=np.float32(0.5),
    )
    blocks = find_blocks(model)
    assert [[n.op_type for n in block.nodes] for block in blocks] == [
        ["DequantizeLinear", "MatMul", "Relu"],
        ["DequantizeLinear", "MatMul"],
    ]


def test_slices_stop_at_what_is_given() -> None:
    model = small_cnn()
    nodes = slice_between(model.ir.graph, ["r1"], ["s"])
    assert nodes is not None
    assert [node.op_type for node in nodes] == ["Conv", "Clip", "Conv", "Add"]
    assert slice_between(model.ir.graph, ["no such"], ["c1"]) == tuple(model.ir.graph)[:1]
    assert slice_between(model.ir.graph, ["r1"], ["no such"]) is None


def test_joined_blocks_compute_both() -> None:
    model = small_cnn()
    first, second, *rest = find_blocks(model)
    both = join(model, first, second)
    feeds = {"x": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        found = run_blocks(model, [both, *rest], feeds)["y"]
        assert torch.equal(found, to_torch(model)(feeds)["y"])
    assert both.layers == first.layers + second.layers
    assert both.parameters == first.parameters + second.parameters


def test_the_model_stays_as_it_was() -> None:
    model = decoder(2)
    before = model.to_bytes()
    find_blocks(model)
    assert model.to_bytes() == before
