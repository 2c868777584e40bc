"""Groups of layers that can be scaled: where they are found, and that the function stays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.model import Model
from edgecompress.qdq_plan import label
from edgecompress.quantization.equalization import Groups, find_groups, fold
from tests.models import from_text
from tests.running import run

HEAD = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
MAPS = "float[N, 4, 6, 6] x"
ROWS = "float[N, S, 8] x"


def model(inputs: str, outputs: str, body: str, **shapes: tuple[int, ...]) -> Model:
    """A graph with random constants of these shapes; names that begin with ``i_`` are numbers."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    declared = []
    for name, value in shapes.items():
        if name.startswith("i_"):
            arrays[name] = np.array(value)
            declared.append(f"int64[{len(value)}] {name}")
        else:
            arrays[name] = rng.normal(0, 1, value).astype(np.float32)
            dims = ", ".join(map(str, value))
            declared.append(f"float[{dims}] {name}" if value else f"float {name}")
    text = f"{HEAD} g ({', '.join([inputs, *declared])}) => ({outputs}) {{ {body} }}"
    return from_text(text, **arrays)


def feeds(of: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    open_dims = {"N": 2, "S": 3}
    found = {}
    for spec in of.signature.inputs:
        assert spec.shape is not None
        shape = [d if isinstance(d, int) else open_dims[str(d)] for d in spec.shape]
        found[spec.name] = rng.normal(0, 1, shape).astype(np.float32)
    return found


def groups_of(of: Model, left_out: str = "") -> Groups:
    return find_groups(of, lambda node: label(node) != left_out)


def as_names(groups: Groups) -> dict[str, list[str]]:
    return {label(g.source.node): [label(a.node) for a in g.layers] for g in groups.found}


def reasons(groups: Groups) -> dict[str, str]:
    return {label(node): reason for node, reason in groups.reasons.items()}


OUT_MAPS, OUT_ROWS = "float[N, K, H, W] y", "float[N, S, K] y"
PASSED = {
    "relu": (
        model(
            MAPS,
            OUT_MAPS,
            "a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, c)",
            w=(6, 4, 3, 3),
            b=(6,),
            v=(5, 6, 1, 1),
            c=(5,),
        ),
        {"a": ["y"]},
    ),
    "depthwise": (
        model(
            MAPS,
            OUT_MAPS,
            "a = Conv(x, w) r = Relu(a) d = Conv<group=6, pads=[1,1,1,1]>(r, v, b)"
            " q = LeakyRelu(d) y = Conv(q, u)",
            w=(6, 4, 1, 1),
            v=(6, 1, 3, 3),
            b=(6,),
            u=(3, 6, 1, 1),
        ),
        {"a": ["d"], "d": ["y"]},
    ),
    "grouped": (
        model(
            MAPS,
            OUT_MAPS,
            "a = Conv<group=2>(x, w) r = PRelu(a, p) y = Conv<group=2>(r, v)",
            w=(6, 2, 1, 1),
            p=(6, 1, 1),
            v=(4, 3, 3, 3),
        ),
        {"a": ["y"]},
    ),
    "transposed convolution": (
        model(
            MAPS,
            OUT_MAPS,
            "a = ConvTranspose<group=2>(x, w, b) r = Relu(a) d = ConvTranspose(r, v)"
            " y = Conv(d, u)",
            w=(4, 3, 2, 2),
            b=(6,),
            v=(6, 5, 2, 2),
            u=(3, 5, 1, 1),
        ),
        {"a": ["d"], "d": ["y"]},
    ),
    "two readers": (
        model(
            MAPS,
            "float[N, K, H, W] y, float[N, K, H, W] z",
            "a = Conv(x, w) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r)"
            " y = Conv(r, v) z = Conv(p, u)",
            w=(6, 4, 1, 1),
            v=(2, 6, 1, 1),
            u=(3, 6, 1, 1),
        ),
        {"a": ["y", "z"]},
    ),
    "flattened": (
        model(
            MAPS,
            "float[N, 3] y",
            "a = Conv(x, w) f = Flatten(a) y = Gemm<transB=1>(f, v, b)",
            w=(5, 4, 3, 3),
            v=(3, 80),
            b=(3,),
        ),
        {"a": ["y"]},
    ),
    "averaged": (
        model(
            MAPS,
            "float[N, 2] y",
            "a = Conv(x, w) m = ReduceMean(a, i_axes) f = Reshape(m, i_shape)"
            " g = Gemm<alpha=0.5>(f, v, b) r = Relu(g) y = Gemm(r, u)",
            w=(5, 4, 3, 3),
            i_axes=(2, 3),
            i_shape=(-1, 5),
            v=(5, 3),
            b=(1, 3),
            u=(3, 2),
        ),
        {"a": ["g"], "g": ["y"]},
    ),
    "biases apart": (
        model(
            ROWS,
            OUT_ROWS,
            "m = MatMul(x, w) a = Add(b, m) s = Add(a, c) r = Relu(s) y = MatMul(r, v)",
            w=(8, 6),
            b=(6,),
            c=(),
            v=(6, 4),
        ),
        {"m": ["y"]},
    ),
    "layer normalization": (
        model(
            ROWS,
            "float[N, S, 8] y",
            "n = LayerNormalization(x, g, b) q = MatMul(n, w) k = MatMul(n, v) m = Mul(q, k)"
            " y = Add(m, x)",
            g=(8,),
            b=(8,),
            w=(8, 8),
            v=(8, 8),
        ),
        {"n": ["q", "k"]},
    ),
    "root mean square normalization in parts": (
        model(
            ROWS,
            OUT_ROWS,
            "p = Mul(x, x) m = ReduceMean(p, i_last) r = Sqrt(m) h = Div(x, r) n = Mul(g, h)"
            " y = MatMul(n, w)",
            i_last=(-1,),
            g=(8,),
            w=(8, 3),
        ),
        {"n": ["y"]},
    ),
    "skip normalization": (
        model(
            ROWS,
            OUT_ROWS,
            "n = com.microsoft.SkipLayerNormalization(x, x, g, b) y = MatMul(n, w)",
            g=(8,),
            b=(8,),
            w=(8, 3),
        ),
        {"n": ["y"]},
    ),
    "batch normalization": (
        model(
            MAPS,
            OUT_MAPS,
            "n = BatchNormalization(x, g, b, mean, v) r = Relu(n) y = Conv(r, w)",
            g=(4,),
            b=(4,),
            mean=(4,),
            v=(4,),
            w=(3, 4, 1, 1),
        ),
        {"n": ["y"]},
    ),
    "gate": (
        model(
            ROWS,
            OUT_ROWS,
            "g = MatMul(x, w) s = Sigmoid(g) t = Mul(g, s) u = MatMul(x, v) m = Mul(t, u)"
            " y = MatMul(m, d)",
            w=(8, 6),
            v=(8, 6),
            d=(6, 4),
        ),
        {"u": ["y"]},
    ),
    "heads": (
        model(
            ROWS,
            OUT_ROWS,
            "v = MatMul(x, w) b = Add(v, c) h = Reshape(b, i_heads)"
            " t = Transpose<perm=[0,2,1,3]>(h) p = Reshape(x, i_parts)"
            " e = Transpose<perm=[0,2,1,3]>(p) f = Transpose<perm=[0,2,3,1]>(p)"
            " q = MatMul(e, f) s = Softmax(q) m = MatMul(s, t)"
            " o = Transpose<perm=[0,2,1,3]>(m) j = Reshape(o, i_joined) y = MatMul(j, u)",
            w=(8, 6),
            c=(6,),
            i_heads=(0, 0, 2, 3),
            i_parts=(0, 0, 2, 4),
            i_joined=(0, 0, 6),
            u=(6, 4),
        ),
        {"v": ["y"]},
    ),
    "heads that are repeated": (
        model(
            "float[N, 5, 8] x",
            "float[N, 5, 4] y",
            "v = MatMul(x, w) h = Reshape(v, i_heads) t = Transpose<perm=[0,2,1,3]>(h)"
            " k = Unsqueeze(t, i_two) e = Expand(k, i_twice) r = Reshape(e, i_all)"
            " o = Transpose<perm=[0,2,1,3]>(r) j = Reshape(o, i_joined) y = MatMul(j, u)",
            w=(8, 6),
            i_heads=(0, 0, 2, 3),
            i_two=(2,),
            i_twice=(1, 1, 2, 1, 1),
            i_all=(0, 4, 5, 3),
            i_joined=(0, 0, 12),
            u=(12, 4),
        ),
        {"v": ["y"]},
    ),
    "a bias that two layers share": (
        model(
            MAPS,
            "float[N, K, H, W] y, float[N, K, H, W] z",
            "a = Conv(x, w, b) y = Conv(a, v) z = Conv(x, w2, b)",
            w=(6, 4, 1, 1),
            b=(6,),
            v=(2, 6, 1, 1),
            w2=(6, 4, 1, 1),
        ),
        {"a": ["y"]},
    ),
}


@pytest.mark.parametrize("case", PASSED)
def test_scales_leave_every_bit_of_the_function(case: str) -> None:
    before, expected = PASSED[case]
    after = before.clone()
    groups = groups_of(after)
    assert as_names(groups) == expected
    rng = np.random.default_rng(2)
    for group in groups.found:
        fold(after.ir.graph, group, 2.0 ** rng.integers(-6, 7, group.source.channels))
    after.check()
    x = feeds(before)
    for name, found in run(before, x).items():
        np.testing.assert_array_equal(run(after, x)[name], found)
    for group in groups_of(before).found:
        for layer in group.layers:
            name = layer.node.inputs[1].name
            assert not np.array_equal(after.initializer(name), before.initializer(name))


REFUSED = {
    "residual add": (
        "a = Conv(x, w) r = Relu(a) y = Conv(r, v) z = Add(y, r)",
        "it reaches the residual Add 'z'",
    ),
    "output": ("z = Conv(x, w) y = Conv(z, v)", "'z' is an output of the model"),
    "relu6": (
        "a = Conv(x, w) r = Clip(a, zero, six) y = Conv(r, v)",
        "Clip 'r' cuts at a number that scales do not move",
    ),
    "sigmoid": (
        "a = Conv(x, w) r = Sigmoid(a) y = Conv(r, v)",
        "its input comes from Sigmoid 'r'",
    ),
    "shared weight": (
        "a = Conv(x, w) b = Conv(a, w) y = Conv(b, v)",
        "the weight 'w' is shared by a, b",
    ),
    "channels that are mixed": (
        "a = Conv(x, w) r = Transpose<perm=[0,2,1,3]>(a) y = Conv(r, v)",
        "Conv 'y' reads them along another dimension",
    ),
    "channels that are joined": (
        "a = Conv(x, w) r = Concat<axis=1>(a, a) s = Slice(r, i_0, i_4, i_1) y = Conv(s, v)",
        "Concat 'r' joins channels",
    ),
    "own weight that is shared": (
        "a = Conv(x, w) b = Conv(a, v) y = Conv(b, v)",
        "its weight is shared by b, y",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scaled_is_told(case: str) -> None:
    body, reason = REFUSED[case]
    outputs = "float[N, 4, 6, 6] y" + (
        ", float[N, 4, 6, 6] z" if case in ("output", "residual add") else ""
    )
    made = model(
        MAPS,
        outputs,
        body,
        w=(4, 4, 1, 1),
        v=(4, 4, 1, 1),
        zero=(),
        six=(),
        i_0=(0,),
        i_4=(4,),
        i_1=(1,),
    )
    made.set_initializer("zero", np.array(0, np.float32))
    groups = groups_of(made)
    assert all("y" not in layers for layers in as_names(groups).values())
    assert reason in reasons(groups)["y"]


@pytest.mark.parametrize("shape", [(6,), (2, 6, 5)], ids=["vector", "batch of matrices"])
def test_products_that_are_no_layers(shape: tuple[int, ...]) -> None:
    made = model(
        "float[2, S, 8] x",
        "float[2, S] y" if len(shape) == 1 else "float[2, S, 5] y",
        "a = MatMul(x, w) y = MatMul(a, v)",
        w=(8, 6),
        v=shape,
    )
    groups = groups_of(made)
    assert not groups.found
    assert "reads them along another dimension" in reasons(groups)["y"]


def test_a_weight_that_is_an_output() -> None:
    made, _ = PASSED["relu"]
    made = made.clone()
    made.ir.graph.outputs.append(made.ir.graph.initializers["v"])
    assert "is also an output of the model" in reasons(groups_of(made))["y"]


def test_nodes_inside_a_subgraph_stop_the_search() -> None:
    made = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4, 6, 6] x, bool b, float[4, 4, 1, 1] w, float[4, 4, 1, 1] v)
            => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {
            a = Conv(x, w)
            y = Conv(a, v)
            z = If(b) <
                then_branch = t () => (float[N, 4, 6, 6] p) { p = Relu(a) },
                else_branch = e () => (float[N, 4, 6, 6] q) { q = Neg(a) }
            >
        }""",
        w=np.ones((4, 4, 1, 1), np.float32),
        v=np.ones((4, 4, 1, 1), np.float32),
    )
    assert "'a' is read inside a subgraph" in reasons(groups_of(made))["y"]


@pytest.mark.parametrize("left_out", ["a", "y"])
def test_what_the_recipe_leaves_out(left_out: str) -> None:
    made, _ = PASSED["relu"]
    groups = groups_of(made, left_out)
    assert not groups.found
    assert f"'{left_out}' is left out by the recipe" in reasons(groups)["y"]


def test_the_nearest_source_takes_the_scales() -> None:
    made = model(
        ROWS,
        OUT_ROWS,
        "a = MatMul(x, w) n = Mul(a, g) y = MatMul(n, v)",
        w=(8, 6),
        g=(6,),
        v=(6, 4),
    )
    assert as_names(groups_of(made)) == {"n": ["y"]}


def test_shapes_are_inferred_in_a_copy() -> None:
    made, _ = PASSED["heads"]
    shapes = [v.shape for n in made.ir.graph for v in n.outputs]
    groups_of(made)
    assert [v.shape for n in made.ir.graph for v in n.outputs] == shapes
    assert isinstance(made.ir, ir.Model)
