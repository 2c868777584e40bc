"""If, Loop and Scan by sub-graph, sequences, slices of wanted values, gradients across Q/DQ."""

from __future__ import annotations

import weakref

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import TorchGraph, to_torch
from tests.models import from_text
from tests.test_torchgraph import assert_same, normal, run_ort, run_torch

_HEAD = '<ir_version: 10, opset_import: ["" : 21]>'


def _give(graph: ir.Graph, **arrays: np.ndarray) -> None:
    """Turn inputs of a sub-graph, as the text form must have them, into initializers of it."""
    for name, array in arrays.items():
        value = next(v for v in graph.inputs if v.name == name)
        graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        graph.register_initializer(value)


def _body(model: Model, *path: tuple[int, str]) -> ir.Graph:
    graph = model.ir.graph
    for position, attribute in path:
        graph = list(graph)[position].attributes[attribute].as_graph()
    return graph


def branches() -> Model:
    """Siblings whose values bear the same names, one of which the main graph has too.

    The outer weight ``w`` is only read two levels down; ``v`` is an initializer of each branch.
    """
    model = from_text(
        f"""{_HEAD}
        g (float[N, 3] x, bool up, bool deep, float[3] w) => (float[N, 3] y, float[N, 3] t) {{
            h = Neg(x)
            t = Abs(x)
            y = If (up) <
                then_branch = up_branch (float[3] v) => (float[N, 3] a) {{
                    h_ = Mul(x, v)
                    a = If (deep) <
                        then_branch = inner () => (float[N, 3] a) {{ a = Mul(h_, w) }},
                        else_branch = other () => (float[N, 3] a) {{ a = Sub(h_, t) }}
                    >
                }},
                else_branch = down_branch (float[3] v) => (float[N, 3] a) {{
                    c = Constant<value_floats=[1.0, 2.0, 3.0]>()
                    h_ = Add(h, v)
                    a = Mul(h_, c)
                }}
            >
        }}""",
        w=np.array([2, 3, 4], np.float32),
    )
    up, down = (_body(model, (2, name)) for name in ("then_branch", "else_branch"))
    _give(up, v=np.array([1, -1, 2], np.float32))
    _give(down, v=np.array([5, 6, 7], np.float32))
    return model


def loop(condition: str = "proceed = Less(total, limit)", scanned: str = "float[3]") -> Model:
    return from_text(
        f"""{_HEAD}
        g (int64 n, bool go, float[3] x, float limit, float[3] w)
            => (float[3] y, float[K, 3] all) {{
            y, all = Loop (n, go, x) <body = trip (int64 i, bool c, float[3] s)
                => (bool proceed, float[3] next, {scanned} row) {{
                f = Cast<to=1>(i)
                p = Mul(s, w)
                next = Add(p, f)
                row = Neg(next)
                total = ReduceSum<keepdims=0>(next)
                {condition}
            }}>
        }}""",
        w=np.array([1, 2, 1.5], np.float32),
    )


def scan(attributes: str) -> Model:
    return from_text(
        f"""{_HEAD}
        g (float[2] s, float[A, B] a, float[C, D] b, float[2] w)
            => (float[2] last, float[E, F] y) {{
            last, y = Scan <num_scan_inputs=2, {attributes}body = step
                (float[2] s0, float[2] a0, float[2] b0) => (float[2] s1, float[2] row) {{
                m = Mul(s0, w)
                n = Add(m, a0)
                s1 = Sub(n, b0)
                row = Identity(n)
            }}> (s, a, b)
        }}""",
        w=np.array([0.5, 2], np.float32),
    )


class TestIf:
    @pytest.mark.parametrize("up", [True, False])
    @pytest.mark.parametrize("deep", [True, False])
    def test_values_of_all_outer_levels_reach_a_branch(self, up: bool, deep: bool) -> None:
        assert_same(branches(), {"x": normal(2, 3), "up": np.array(up), "deep": np.array(deep)})

    def test_initializers_of_branches_are_parameters_with_names_of_their_own(self) -> None:
        found = to_torch(branches()).parameters_by_initializer
        assert {name: p.tolist() for name, p in found.items()} == {
            "w": [2, 3, 4],
            "v": [1, -1, 2],
            "v_2": [5, 6, 7],
        }

    @pytest.mark.parametrize(("up", "reached"), [(True, {"w", "v"}), (False, {"v_2"})])
    def test_only_the_branch_taken_gets_gradients(self, up: bool, reached: set[str]) -> None:
        graph = to_torch(branches())
        feeds = {"x": torch.ones(1, 3), "up": torch.tensor(up), "deep": torch.tensor(True)}
        graph(feeds)["y"].sum().backward()
        found = graph.parameters_by_initializer.items()
        assert {name for name, p in found if p.grad is not None} == reached

    def test_write_back_reaches_the_branches(self) -> None:
        model = branches()
        graph = to_torch(model)
        with torch.no_grad():
            graph.parameters_by_initializer["v_2"].mul_(2)
            graph.parameters_by_initializer["w"].neg_()
        changed = model.clone("test")
        assert sorted(graph.write_back(changed)) == ["v_2", "w"]
        assert graph.write_back(changed) == []
        for up in (True, False):
            feeds = {"x": normal(2, 3), "up": np.array(up), "deep": np.array(True)}
            expected, got = run_ort(changed, feeds)["y"], run_torch(graph, feeds)["y"]
            np.testing.assert_allclose(got, expected, rtol=1e-6)
        feeds["up"] = np.array(True)
        assert not np.allclose(run_ort(model, feeds)["y"], run_torch(graph, feeds)["y"])

    def test_write_back_into_a_model_without_the_branch_names_it(self) -> None:
        graph, other = to_torch(branches()), branches()
        del list(other.ir.graph)[2].attributes["else_branch"]
        with pytest.raises(ModelError, match="no initializer 'v' in else_branch"):
            graph.write_back(other)

    def test_a_captured_value_lives_until_the_last_branch_that_may_read_it(self) -> None:
        model = branches()
        graph = to_torch(model)
        seen: dict[str, weakref.ref[Tensor]] = {}
        feeds = {"x": torch.ones(2, 3), "up": torch.tensor(False), "deep": torch.tensor(False)}

        def observe(name: str, value: Tensor) -> None:
            if name == "h":
                seen[name] = weakref.ref(value)
            else:
                assert name == "y"
                assert seen["h"]() is not None

        with torch.no_grad():
            result = graph(feeds, observe=observe, watch=["h", "y"])
        assert seen["h"]() is None
        assert result["y"].shape == (2, 3)

    def test_a_slice_lists_what_its_branches_capture(self) -> None:
        model = branches()
        nodes = list(model.ir.graph)
        before, after = to_torch(model, nodes[:2]), to_torch(model, nodes[2:])
        assert before.output_names == ("h", "t")
        assert set(after.input_names) == {"x", "up", "deep", "h", "t"}
        assert after.output_names == ("y",)
        feeds = {"x": torch.ones(2, 3), "up": torch.tensor(True), "deep": torch.tensor(False)}
        parts = after({**feeds, **before(feeds)})["y"]
        assert torch.equal(parts, to_torch(model)(feeds)["y"])

    def test_a_value_used_only_in_the_slices_own_branches_is_no_output(self) -> None:
        model = branches()
        nodes = list(model.ir.graph)
        assert to_torch(model, [nodes[0], nodes[2]]).output_names == ("y",)

    def test_a_name_of_the_main_graph_inside_a_branch_shadows_nothing(self) -> None:
        model = branches()
        for inner in _body(model, (2, "then_branch")):
            inner.outputs[0].name = {"h_": "t", "a": "h"}[inner.outputs[0].name or ""]
        feeds = {"x": normal(2, 3), "up": np.array(True), "deep": np.array(False)}
        expected = run_ort(branches(), feeds)
        got = run_torch(to_torch(model), feeds)
        np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-6)
        np.testing.assert_array_equal(got["t"], expected["t"])

    def test_missing_operators_of_all_levels_are_named_at_once(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20, "acme" : 3]>
            g (float[N] x, bool c) => (float[N] y) {
                a = acme.Blend(x)
                y = If (c) <
                    then_branch = p () => (float[N] b) { b = acme.Blur(a) },
                    else_branch = q () => (float[N] b) { b = Neg(a) }>
            }"""
        )
        with pytest.raises(UnsupportedOperatorError) as caught:
            to_torch(model)
        assert caught.value.operators == ("acme::Blend (opset 3)", "acme::Blur (opset 3)")

    def test_functions_called_in_a_branch_are_inlined(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
            g (float[N, 3] x, bool c, float[3] w) => (float[N, 3] y) {
                a = local.scaled(x, w)
                y = If (c) <
                    then_branch = p () => (float[N, 3] b) { b = local.scaled(a, w) },
                    else_branch = q () => (float[N, 3] b) { b = Neg(a) }>
            }
            <domain: "local", opset_import: ["" : 21]>
            scaled (u, v) => (b) { a = Mul(u, v)  b = Neg(a) }""",
            w=np.array([1, 2, 3], np.float32),
        )
        for c in (True, False):
            assert_same(model, {"x": normal(2, 3), "c": np.array(c)})


class TestLoop:
    @pytest.mark.parametrize(
        ("trips", "go", "limit"), [(4, True, 1e9), (9, True, 12), (0, True, 1), (3, False, 1)]
    )
    def test_trips_and_condition(self, trips: int, go: bool, limit: float) -> None:
        feeds = {"n": np.array(trips), "go": np.array(go), "x": normal(3)}
        assert_same(loop(), {**feeds, "limit": np.array(limit, np.float32)})

    @pytest.mark.parametrize("absent", [0, 1])
    def test_an_empty_input_stands_for_no_bound(self, absent: int) -> None:
        model = loop()
        node = next(iter(model.ir.graph))
        model.ir.graph.inputs.remove(node.inputs[absent])  # type: ignore[arg-type]
        node.replace_input_with(absent, None)
        feeds = {"n": np.array(3), "go": np.array(True), "x": np.ones(3, np.float32)}
        del feeds[("n", "go")[absent]]
        assert_same(model, {**feeds, "limit": np.array(50, np.float32)})

    def test_no_trips_and_no_declared_shape_is_refused(self) -> None:
        model = loop(scanned="float[3]")
        _body(model, (0, "body")).outputs[2].shape = None
        feeds = {"n": torch.tensor(0), "go": torch.tensor(True), "x": torch.ones(3)}
        with pytest.raises(ModelError, match="no trips"):
            to_torch(model)({**feeds, "limit": torch.tensor(1.0)})

    def test_a_loop_that_carries_a_sequence(self) -> None:
        model = from_text(
            f"""{_HEAD}
            g (int64 n, float[2] x) => (float[K, 2] y, int64 k) {{
                empty = SequenceEmpty()
                full = Loop (n, , empty) <body = trip (int64 i, bool c, seq(float[2]) s)
                    => (bool c1, seq(float[2]) s1) {{
                    c1 = Identity(c)
                    f = Cast<to=1>(i)
                    e = Mul(x, f)
                    s1 = SequenceInsert(s, e)
                }}>
                y = ConcatFromSequence<axis=0, new_axis=1>(full)
                k = SequenceLength(full)
            }}"""
        )
        assert_same(model, {"n": np.array(4), "x": normal(2)})


class TestScan:
    @pytest.mark.parametrize(
        ("attributes", "a", "b"),
        [
            ("", (5, 2), (5, 2)),
            ("scan_input_axes=[1, 0], ", (2, 5), (5, 2)),
            ("scan_input_axes=[-1, -2], ", (2, 5), (5, 2)),
            ("scan_input_directions=[1, 0], scan_output_directions=[1], ", (5, 2), (5, 2)),
            ("scan_output_axes=[1], ", (5, 2), (5, 2)),
            ("scan_output_axes=[-1], scan_output_directions=[1], ", (4, 2), (4, 2)),
        ],
    )
    def test_axes_and_directions(
        self, attributes: str, a: tuple[int, int], b: tuple[int, int]
    ) -> None:
        feeds = {"s": normal(2), "a": normal(*a, seed=1), "b": normal(*b, seed=2)}
        assert_same(scan(attributes), feeds)

    def test_inputs_of_different_lengths_are_refused(self) -> None:
        with pytest.raises(ModelError, match="Scan node"):
            to_torch(scan(""))({"s": torch.ones(2), "a": torch.ones(3, 2), "b": torch.ones(4, 2)})

    def test_nothing_to_scan(self) -> None:
        feeds = {"s": torch.ones(2), "a": torch.ones(0, 2), "b": torch.ones(0, 2)}
        result = to_torch(scan("scan_output_axes=[1], "))(feeds)
        assert result["last"].tolist() == [1, 1]
        assert result["y"].shape == (2, 0)


def _gradcheck(model: Model, feeds: dict[str, np.ndarray], output: str) -> None:
    graph = to_torch(model).double()
    names = list(graph.parameters_by_initializer)
    fixed = {name: torch.from_numpy(array) for name, array in feeds.items()}
    fixed = {n: t.double() if t.is_floating_point() else t for n, t in fixed.items()}

    def run(*weights: Tensor) -> Tensor:
        keyed = dict(zip(map(graph._keys.get, names), weights, strict=True))
        result: dict[str, Tensor] = torch.func.functional_call(graph, keyed, (fixed,))
        return result[output]

    weights = [p.detach().clone().requires_grad_() for p in graph.parameters()]
    assert torch.autograd.gradcheck(run, weights)


def test_gradients_of_loops_agree_with_finite_differences() -> None:
    model = loop()
    cast = next(node for node in _body(model, (0, "body")) if node.op_type == "Cast")
    cast.attributes["to"] = ir.AttrInt64("to", ir.DataType.DOUBLE)
    feeds = {"n": np.array(3), "go": np.array(True), "limit": np.array(1e9)}
    _gradcheck(model, {**feeds, "x": normal(3)}, "all")


def test_gradients_of_scans_and_branches_agree_with_finite_differences() -> None:
    _gradcheck(scan(""), {"s": normal(2), "a": normal(3, 2), "b": normal(3, 2)}, "last")
    model = branches()
    constant = next(iter(_body(model, (2, "else_branch"))))
    constant.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.array([1.0, 2, 3])))
    del constant.attributes["value_floats"]
    feeds = {"x": normal(2, 3), "deep": np.array(True)}
    for up in (True, False):
        graph = to_torch(model).double()
        given = {name: torch.from_numpy(array) for name, array in feeds.items()}
        x = given["x"].double().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, graph=graph, up=up, given=given: graph(
                {**given, "x": x, "up": torch.tensor(up)}
            )["y"],
            (x,),
        )


class TestDevices:
    def test_a_loop_reads_nothing_from_the_device(self) -> None:
        model = from_text(
            f"""{_HEAD}
            g (float[N, 3] x, float[3] w) => (float[N, 3] y) {{
                s = Shape(x)
                zero = Constant<value_int=0>()
                n = Gather(s, zero)
                y = Loop (n, , x) <body = trip (int64 i, bool c, float[N, 3] v)
                    => (bool c1, float[N, 3] v1) {{
                    c1 = Identity(c)
                    f = Cast<to=1>(i)
                    a = Add(v, f)
                    r = Reshape(a, s)
                    v1 = Mul(r, w)
                }}>
            }}""",
            w=normal(3),
        )
        y = to_torch(model, device="meta")({"x": torch.empty(4, 3)})["y"]
        assert y.device.type == "meta"
        assert y.shape == (4, 3)
        assert_same(model, {"x": normal(4, 3)})


class TestWantedOutputs:
    text = """<ir_version: 10, opset_import: ["" : 20, "acme" : 3]>
        g (float[N] x, float[N] z, bool c, float[2] w) => (float[N] y, float[N] u) {
            h = Mul(x, w)
            y = acme.Blend(h, z)
            b = Neg(h)
            u = If (c) <
                then_branch = p () => (float[N] o) { o = Abs(b) },
                else_branch = q () => (float[N] o) { o = Identity(b) }>
        }"""

    def test_operators_that_nobody_needs_need_no_translation(self) -> None:
        model = from_text(self.text, w=np.array([2, 3], np.float32))
        with pytest.raises(UnsupportedOperatorError, match="Blend"):
            to_torch(model)
        graph = to_torch(model, outputs=["u", "h"])
        assert graph.output_names == ("u", "h")
        assert graph.input_names == ("x", "c")
        result = graph({"x": torch.tensor([1.0, -1]), "c": torch.tensor(True)})
        assert result["u"].tolist() == [2, 3]
        assert result["h"].tolist() == [2, -3]

    def test_of_a_slice(self) -> None:
        model = from_text(self.text, w=np.array([2, 3], np.float32))
        nodes = list(model.ir.graph)[1:]
        graph = to_torch(model, nodes, outputs=["b"])
        assert graph.input_names == ("h",)
        assert graph({"h": torch.ones(2)})["b"].tolist() == [-1, -1]

    def test_an_unknown_one_is_named_with_the_nearest(self) -> None:
        with pytest.raises(ModelError, match="no value 'hh'"):
            to_torch(from_text(self.text, w=normal(2)), outputs=["hh"])


_QDQ = f"""{_HEAD}
    g (float[N, 3] x, float[4, 3] w, float sx, int8 zx, float[4] sw, int8[4] zw)
        => (float[N, 4] y) {{
        xq = QuantizeLinear(x, sx, zx)
        xd = DequantizeLinear(xq, sx, zx)
        wq = QuantizeLinear<axis=0>(w, sw, zw)
        wd = DequantizeLinear<axis=0>(wq, sw, zw)
        y = Gemm<transB=1>(xd, wd)
    }}"""


def qdq() -> Model:
    return from_text(
        _QDQ,
        w=normal(4, 3, seed=1),
        sx=np.array(0.02, np.float32),
        zx=np.array(5, np.int8),
        sw=np.array([0.01, 0.004, 0.02, 0.03], np.float32),
        zw=np.zeros(4, np.int8),
    )


class TestStraightThrough:
    def test_values_are_those_of_the_separate_nodes(self) -> None:
        graph, x = to_torch(qdq()), torch.from_numpy(normal(50, 3) * 2)
        with torch.no_grad():
            plain = graph({"x": x}, outputs=["xq", "xd", "wd", "y"])
        trained = graph({"x": x.requires_grad_()}, outputs=["xq", "xd", "wd", "y"])
        assert plain["xq"].dtype == torch.int8
        for name, value in plain.items():
            assert torch.equal(trained[name], value)
        assert_same(qdq(), {"x": normal(50, 3) * 2}, rel=1e-6)

    def test_gradients_pass_where_nothing_saturates(self) -> None:
        model = qdq()
        graph = to_torch(model)
        x = torch.tensor([[0.1, 2.6, -3.0]], requires_grad=True)  # the range is [-2.66, 2.44]
        graph({"x": x}, outputs=["xd"])["xd"].sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[1, 0, 0]]
        graph({"x": torch.ones(1, 3)})["y"].sum().backward()
        weight, scale = model.initializer("w"), model.initializer("sw")[:, None]
        inside = (np.round(weight / scale) >= -128) & (np.round(weight / scale) <= 127)
        assert 0 < inside.sum() < inside.size
        gradient = graph.parameters_by_initializer["w"].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient.numpy(), inside.astype(np.float32), rtol=1e-6)

    def test_a_quantized_value_can_be_watched(self) -> None:
        seen: dict[str, torch.dtype] = {}
        to_torch(qdq())(
            {"x": torch.ones(1, 3)},
            observe=lambda name, value: seen.update({name: value.dtype}),
            watch=["wq", "xq"],
            outputs=[],
        )
        assert seen == {"xq": torch.int8, "wq": torch.int8}

    def test_other_parameters_of_the_inverse_are_no_pair(self) -> None:
        model = from_text(
            _QDQ.replace("DequantizeLinear(xq, sx", "DequantizeLinear(xq, other").replace(
                "float sx,", "float sx, float other,"
            ),
            w=normal(4, 3),
            sx=np.array(0.02, np.float32),
            other=np.array(0.03, np.float32),
            zx=np.array(5, np.int8),
            sw=np.ones(4, np.float32),
            zw=np.zeros(4, np.int8),
        )
        x = torch.ones(1, 3, requires_grad=True)
        assert not to_torch(model)({"x": x}, outputs=["xd"])["xd"].requires_grad

    def test_without_gradients_the_float_value_is_freed_at_once(self) -> None:
        model = from_text(
            f"""{_HEAD}
            g (float[N] x, float s, uint8 z) => (float[N] y) {{
                a = Neg(x)  q = QuantizeLinear(a, s, z)  b = Abs(x)
                d = DequantizeLinear(q, s, z)  y = Add(b, d)
            }}""",
            s=np.array(0.1, np.float32),
            z=np.array(128, np.uint8),
        )
        alive: dict[str, bool] = {}
        held: list[weakref.ref[Tensor]] = []

        def observe(name: str, value: Tensor) -> None:
            if name == "a":
                held.append(weakref.ref(value))
            else:
                alive[str(torch.is_grad_enabled())] = held[-1]() is not None

        def run(graph: TorchGraph) -> None:
            graph({"x": torch.ones(2)}, observe=observe, watch=["a", "b"])

        graph = to_torch(model)
        run(graph)
        with torch.no_grad():
            run(graph)
        assert alive == {"True": True, "False": False}
