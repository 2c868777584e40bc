"""Where Q/DQ pairs go: one table of graphs for what is placed, one for what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.errors import RecipeError
from edgecompress.graph_pass import make_pass
from edgecompress.model import Model
from edgecompress.qdq_plan import Placement, place
from tests.models import from_text
from tests.running import X86

F = np.float32
CONSTANTS: dict[str, np.ndarray] = {
    "w": np.ones((4, 4, 3, 3), F),
    "k": np.ones((4, 4, 1, 1), F),
    "k2": np.ones((4, 4, 1, 1), F),
    "k9": np.ones((4, 1, 3, 3), F),
    "b": np.ones(4, F),
    "fc": np.ones((5, 256), F),
    "fc2": np.ones((5, 5), F),
    "fb": np.ones(5, F),
    "one": np.ones(1, F),
    "row": np.ones((1, 5), F),
    "cube": np.ones((1, 4, 4), F),
    "half": np.ones((4, 4, 1, 1), np.float16),
    "zero": np.array(0, F),
    "six": np.array(6, F),
    "minus": np.array(-1, F),
    "flat": np.array([1, -1]),
    "starts": np.array([0, 0]),
    "ends": np.array([99, 99]),
    "axes": np.array([2, 3]),
    "steps": np.array([2, 2]),
    "pads": np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    "ring": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "first": np.array([0]),
    "wq": np.ones((4, 4, 1, 1), np.int8),
    "ws": np.array(0.1, F),
}
TYPES = {"float32": "float", "float16": "float16", "int64": "int64", "int8": "int8"}


def graph(body: str, outputs: str = "y", inputs: str = "", output_type: str = "float") -> Model:
    """``body`` on the input ``x``, with those of the constants above that it names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    declared = "".join(
        f", {TYPES[a.dtype.name]}{list(a.shape) if a.ndim else ''} {name}"
        for name, a in used.items()
    )
    results = ", ".join(f"{output_type} {name}" for name in outputs.split())
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft.nchwc" : 1]>
        g (float[1, 4, 8, 8] x{inputs}{declared}) => ({results}) {{ {body} }}""",
        **used,
    )


def plan(
    model: Model,
    options: dict[str, Any] | None = None,
    *,
    ops: frozenset[str] = X86.int8_ops,
    drop: bool = True,
) -> Placement:
    step = make_pass("quantize", options or {})
    step.check_scopes(model.ir.graph)
    return place(model, step.for_node, ops, drop_activations=drop)


# Body, outputs, layers, measured activations, shared scales, joins.
PLACED = {
    "conv alone": ("y = Conv(x, w, b)", "y", "y", "x y", {}, ""),
    "conv without bias": ("y = Conv(x, w)", "y", "y", "x y", {}, ""),
    "conv relu": ("c = Conv(x, w, b) y = Relu(c)", "y", "c", "x y", {}, ""),
    "conv clip 0 to 6": ("c = Conv(x, w) y = Clip(c, zero, six)", "y", "c", "x y", {}, ""),
    "conv clip from 0": ("c = Conv(x, w) y = Clip(c, zero)", "y", "c", "x y", {}, ""),
    "conv clip from -1": ("c = Conv(x, w) y = Clip(c, minus, six)", "y", "c", "x c", {}, ""),
    "conv clip to -1": ("c = Conv(x, w) y = Clip(c, zero, minus)", "y", "c", "x c", {}, ""),
    "conv clip below": ("c = Conv(x, w) y = Clip(c, , six)", "y", "c", "x c", {}, ""),
    "conv as a bound": (
        "s = ReduceMean<keepdims=0>(x) c = Conv(x, w) y = Clip(s, zero, c)",
        "y",
        "c",
        "x c",
        {},
        "",
    ),
    "conv relu, conv seen outside": (
        "c = Conv(x, w, b) y = Relu(c)",
        "y c",
        "c",
        "x c",
        {},
        "",
    ),
    "conv with two readers": (
        "c = Conv(x, w, b) y = Relu(c) z = Abs(c)",
        "y z",
        "c",
        "x c",
        {},
        "",
    ),
    "residual": ("c = Conv(x, k) y = Add(x, c)", "y", "c", "x c y", {}, "Add"),
    "residual relu": (
        "c = Conv(x, k) s = Add(c, x) y = Relu(s)",
        "y",
        "c",
        "x c y",
        {},
        "Add",
    ),
    "residual in a chain": (
        "c = Conv(x, k) r = Relu(c) d = Conv(r, k2) s = Add(d, r) t = Relu(s) y = Conv(t, k)",
        "y",
        "c d y",
        "x r d t y",
        {},
        "Add",
    ),
    "max pool": (
        "c = Conv(x, k) m = MaxPool<kernel_shape=[2,2]>(c) y = Conv(m, k2)",
        "y",
        "c y",
        "x c y",
        {"m": "c"},
        "",
    ),
    "max pool at the end": (
        "c = Conv(x, k) y = MaxPool<kernel_shape=[2,2]>(c)",
        "y",
        "c",
        "x c",
        {},
        "",
    ),
    "two movers": (
        """c = Conv(x, k) m = MaxPool<kernel_shape=[2,2]>(c)
        t = Transpose<perm=[0,1,3,2]>(m) y = Conv(t, k2)""",
        "y",
        "c y",
        "x c y",
        {"m": "c", "t": "c"},
        "",
    ),
    "option A shortcut": (
        """c = Conv(x, k) r = Relu(c) s = Slice(r, starts, ends, axes, steps) p = Pad(s, ring)
        d = Conv<strides=[2,2], pads=[1,1,1,1]>(r, w) y = Add(d, p)""",
        "y",
        "c d",
        "x r d y",
        {"s": "r", "p": "r"},
        "Add",
    ),
    "reflecting pad": (
        'c = Conv(x, k) p = Pad<mode="reflect">(c, ring) y = Conv(p, w)',
        "y",
        "c y",
        "x c y",
        {"p": "c"},
        "",
    ),
    "pad with one": (
        "c = Conv(x, k) p = Pad(c, ring, six) y = Conv(p, w)",
        "y",
        "c y",
        "x c p y",
        {},
        "",
    ),
    "concat": (
        "c = Conv(x, k) d = Conv(x, k2) y = Concat<axis=1>(c, d, x)",
        "y",
        "c d",
        "x c d y",
        {},
        "Concat",
    ),
    "gemm": (
        "v = Reshape(x, flat) y = Gemm<transB=1>(v, fc, fb)",
        "y",
        "y",
        "v",
        {},
        "",
    ),
    "gemm behind a pool": (
        "c = Conv(x, k) v = Reshape(c, flat) y = Gemm<transB=1>(v, fc)",
        "y",
        "c y",
        "x c",
        {"v": "c"},
        "",
    ),
    "gemm relu gemm": (
        "v = Flatten(x) f = Gemm<transB=1>(v, fc) r = Relu(f) y = Gemm(r, fc2, fb)",
        "y",
        "f y",
        "v r",
        {},
        "",
    ),
    "gemm into a join": (
        "v = Flatten(x) f = Gemm<transB=1>(v, fc) h = Gemm<transB=1>(v, fc, fb) y = Add(f, h)",
        "y",
        "f h",
        "v f h y",
        {},
        "Add",
    ),
    "gemm through a mover into a join": (
        "v = Flatten(x) f = Gemm<transB=1>(v, fc) t = Transpose(f) y = Add(t, t)",
        "y",
        "f",
        "v f y",
        {"t": "f"},
        "Add",
    ),
    "join of joins": (
        "c = Conv(x, k) a = Add(c, x) m = Mul(a, c) y = Conv(m, k2)",
        "y",
        "c y",
        "x c a m y",
        {},
        "Add Mul",
    ),
    "constant x constant": ("v = Flatten(x) y = MatMul(v, fct)", "y", "y", "v", {}, ""),
}
CONSTANTS["fct"] = np.ones((256, 5), F)


@pytest.mark.parametrize("case", PLACED)
def test_placed(case: str) -> None:
    body, outputs, layers, measured, shared, joins = PLACED[case]
    found = plan(graph(body, outputs))
    assert " ".join(layer.output for layer in found.layers) == layers
    assert sorted(found.measured) == sorted(measured.split())
    assert found.shared == shared
    assert " ".join(join.op for join in found.joins) == joins


def test_layers_are_described() -> None:
    body = "c = Conv(x, k, b) v = Flatten(c) f = Gemm<transB=1>(v, fc) m = MatMul(f, fc2) "
    found = plan(graph(body + "y = Gemm(m, fc2, fb)"))
    axes = {layer.output: (layer.op, layer.weight, layer.channel_axis) for layer in found.layers}
    assert axes == {
        "c": ("Conv", "k", 0),
        "f": ("Gemm", "fc", 0),
        "m": ("MatMul", "fc2", 1),
        "y": ("Gemm", "fc2", 1),
    }
    assert [layer.input for layer in found.layers] == ["x", "v", "f", "m"]


def test_activations_stay_where_the_zero_point_is_in_the_middle() -> None:
    body = "c = Conv(x, k) r = Relu(c) y = Conv(r, k2)"
    assert sorted(plan(graph(body)).measured) == ["r", "x", "y"]
    assert sorted(plan(graph(body), drop=False).measured) == ["c", "r", "x", "y"]


def test_two_convolutions_may_share_a_weight() -> None:
    found = plan(graph("c = Conv(x, k) y = Conv(c, k)"))
    assert [layer.weight for layer in found.layers] == ["k", "k"]


# Body, further inputs, the node left alone, the reason.
LEFT_ALONE = {
    "dynamic x dynamic": (
        "t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)",
        "",
        "y",
        "its weight is computed at run time",
    ),
    "quantized already": (
        "d = DequantizeLinear(wq, ws) y = Conv(x, d)",
        "",
        "y",
        "it is already quantized",
    ),
    "weight in a Constant node": (
        "n = Constant<value_floats=[1.0]>() y = MatMul(x, n)",
        "",
        "y",
        "its weight is a Constant node (the pass 'cleanup' makes it an initializer)",
    ),
    "weight from outside": (
        "y = Conv(x, given)",
        ", float[4, 4, 1, 1] given",
        "y",
        "its weight is an input of the model",
    ),
    "bias from outside": (
        "y = Conv(x, k, given)",
        ", float[4] given",
        "y",
        "its bias is computed at run time",
    ),
    "alpha": (
        "v = Flatten(x) y = Gemm<transB=1, alpha=2.0>(v, fc)",
        "",
        "y",
        "alpha is 2.0, expected 1.0",
    ),
    "beta": (
        "v = Flatten(x) y = Gemm<transB=1, beta=0.5>(v, fc, fb)",
        "",
        "y",
        "beta is 0.5, expected 1.0",
    ),
    "transA": (
        "v = Flatten(x) t = Transpose(v) y = Gemm<transA=1, transB=1>(t, fc)",
        "",
        "y",
        "transA is 1, expected 0",
    ),
    "scalar bias": (
        "v = Flatten(x) y = Gemm<transB=1>(v, fc, one)",
        "",
        "y",
        "its bias has the shape [1]",
    ),
    "bias of two dimensions": (
        "v = Flatten(x) y = Gemm<transB=1>(v, fc, row)",
        "",
        "y",
        "its bias has the shape [1, 5]",
    ),
    "batched weight": ("y = MatMul(x, cube)", "", "y", "its weight has 3 dimensions"),
    "constant input": ("y = Conv(k2, k)", "", "y", "its input is constant"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    body, inputs, node, reason = LEFT_ALONE[case]
    found = plan(graph(body, inputs=inputs))
    assert found.layers == []
    assert found.measured == []
    assert [(skip.node, skip.reason) for skip in found.skipped] == [(node, reason)]


def test_half_precision_is_left_alone() -> None:
    model = graph("y = Conv(h, half)", inputs=", float16[1, 4, 8, 8] h", output_type="float16")
    (skip,) = plan(model).skipped
    assert (skip.op, skip.reason) == ("Conv", "its weight is float16, expected float")


def test_weights_that_inputs_may_override_are_left_alone() -> None:
    model = graph("y = Conv(x, k)")
    model.ir.graph.inputs.append(model.ir.graph.initializers["k"])
    (skip,) = plan(model).skipped
    assert (
        skip.reason == "its weight may be overridden by an input (the pass 'cleanup' forbids that)"
    )


def test_operators_of_other_domains_are_none_of_ours() -> None:
    model = graph("c = com.microsoft.nchwc.Conv(x, k) y = Add(c, c)")
    found = plan(model)
    assert (found.layers, found.joins, found.skipped) == ([], [], [])


NESTED = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[1, 4, 8, 8] x, bool flag, float[4, 4, 1, 1] k) => (float[1, 4, 8, 8] y) {
        c = Conv(x, k)
        y = If (flag) <
            then_branch = a () => (float[1, 4, 8, 8] p) { p = Relu(c) },
            else_branch = b () => (float[1, 4, 8, 8] q) { q = Conv(x, k) }
        >
    }"""


def test_nodes_in_subgraphs_are_left_alone_with_a_reason() -> None:
    found = plan(from_text(NESTED, k=CONSTANTS["k"]))
    assert [(s.node, s.reason) for s in found.skipped] == [
        ("q", "it lies inside a subgraph (If, Loop or Scan)")
    ]
    # The Relu in the branch cannot be drawn into the quantizer of c outside of it.
    assert sorted(found.measured) == ["c", "x"]


RESIDUAL = "c = Conv(x, k) d = Conv(c, k2) s = Add(c, d) y = Conv(s, k)"


@pytest.mark.parametrize(
    ("options", "layers", "measured", "reasons"),
    [
        ({"nodes": {"d": False}}, "c y", "x c s y", {"d": "left out by the recipe"}),
        ({"nodes": {"[cd]": False}}, "y", "s y", {"c": "left out by the recipe"}),
        ({"nodes": {"s": False}}, "c d y", "x c d s y", {"s": "left out by the recipe"}),
        ({"ops": {"Conv": False}}, "", "", {"y": "left out by the recipe"}),
        (
            {"ops": {"Conv": False}, "nodes": {"y": {"method": "minmax"}}},
            "y",
            "s y",
            {"c": "left out by the recipe", "s": "its input 'c' is not quantized"},
        ),
    ],
)
def test_what_the_recipe_leaves_out(
    options: dict[str, Any], layers: str, measured: str, reasons: dict[str, str]
) -> None:
    found = plan(graph(RESIDUAL), options)
    assert " ".join(layer.output for layer in found.layers) == layers
    assert sorted(found.measured) == sorted(measured.split())
    left = {skip.node: skip.reason for skip in found.skipped}
    assert reasons.items() <= left.items()


def test_each_range_follows_the_options_of_its_node() -> None:
    found = plan(
        graph(RESIDUAL), {"nodes": {"d": {"method": "minmax"}, "s": {"method": "entropy"}}}
    )
    body = "v = Flatten(x) f = Gemm<transB=1>(v, fc) y = Gemm(f, fc2)"
    found_behind = plan(graph(body), {"nodes": {"f": {"method": "minmax"}}}).options["f"]
    assert found_behind.options()["method"] == "minmax"
    methods = {name: options.options()["method"] for name, options in found.options.items()}
    assert methods == {"x": "mse", "c": "mse", "d": "minmax", "s": "entropy", "y": "mse"}


@pytest.mark.parametrize(
    ("missing", "node", "reason"),
    [
        ("Conv", "y", "the target does not run Conv on integers"),
        ("Add", "s", "the target does not run Add on integers"),
    ],
)
def test_operators_that_the_target_lacks(missing: str, node: str, reason: str) -> None:
    found = plan(graph(RESIDUAL), ops=X86.int8_ops - {missing})
    assert reason in {skip.node: skip.reason for skip in found.skipped}[node]
    assert not any(join.op == missing for join in found.joins)


def test_a_mover_that_the_target_lacks_breaks_the_chain() -> None:
    body = "c = Conv(x, k) m = MaxPool<kernel_shape=[2,2]>(c) y = Conv(m, k2)"
    found = plan(graph(body), ops=X86.int8_ops - {"MaxPool"})
    assert found.shared == {}
    assert sorted(found.measured) == ["c", "m", "x", "y"]


def test_joins_say_why_they_stay() -> None:
    body = "c = Conv(x, k) a = Add(c, zero) e = Erf(c) y = Add(a, e)"
    left = {skip.node: skip.reason for skip in plan(graph(body)).skipped}
    assert left == {"a": "an input is constant", "y": "its input 'a' is not quantized"}


def test_patterns_that_match_nothing() -> None:
    with pytest.raises(RecipeError, match=r"the pattern 'conv_\*' matches no node"):
        plan(graph(RESIDUAL), {"nodes": {"conv_*": False}})


def test_large_graphs_are_planned_in_linear_time() -> None:
    links = " ".join(f"v{i + 1} = Conv(v{i}, k)" for i in range(300))
    found = plan(graph(f"v0 = Relu(x) {links} y = Relu(v300)"))
    assert len(found.layers) == 300
    assert len(found.measured) == 301


STEM = "c = Conv<strides = [2, 2]>(x, w, b) r = Relu(c) d = Conv<group = 4>(r, k9) y = Conv(d, k)"
FRONT = {
    "stem and depthwise": (STEM, ["y"]),
    "depthwise behind integers": (
        "c = Conv(x, k) d = Conv<group = 4>(c, k9) y = Conv(d, k)",
        ["c", "d", "y"],
    ),
    "behind a sum": (
        "a = Add(x, x) y = Conv<strides = [2, 2]>(a, w)",
        ["y"],
    ),
    "one pixel wide": ("y = Conv(x, k)", ["y"]),
}


@pytest.mark.parametrize("case", FRONT)
def test_slow_convolutions_in_front_stay_float(case: str) -> None:
    body, expected = FRONT[case]
    model, step = graph(body), make_pass("quantize", {})
    found = place(model, step.for_node, X86.int8_ops, slow_shallow_convs=True)
    assert [layer.output for layer in found.layers] == expected
    left = {s.node for s in found.skipped if "slower on integers" in s.reason}
    convs = {"c", "d", "y"} & set(body.split())
    assert left == convs - set(expected)
    everywhere = place(model, step.for_node, X86.int8_ops, slow_shallow_convs=True, everywhere=True)
    assert {layer.output for layer in everywhere.layers} == convs
