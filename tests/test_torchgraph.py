"""The bridge from ONNX to torch: same numbers as onnxruntime, gradients, memory, errors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor

from edgecompress.errors import DataError, ModelError, UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import TorchGraph, to_torch
from tests.models import from_text, small_cnn

Shared = Callable[[str], Path]


def run_ort(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of onnxruntime without graph optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.to_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def run_torch(graph: TorchGraph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        results = graph({name: torch.from_numpy(array) for name, array in feeds.items()})
    return {name: tensor.numpy() for name, tensor in results.items()}


def assert_same(model: Model, feeds: dict[str, np.ndarray], rel: float = 1e-4) -> None:
    """max|a - b| <= rel * max|b| for every output; float32 sums in another order."""
    got, expected = run_torch(to_torch(model), feeds), run_ort(model, feeds)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert got[name].dtype == value.dtype
        if value.size:
            assert np.abs(got[name] - value).max() <= rel * np.abs(value).max(), name


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class TestRealModels:
    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("resnet20_cifar10", (3, 32, 32)),
            ("resnet56_cifar10", (3, 32, 32)),
            ("mobilenet_v1_075_224", (3, 224, 224)),
            ("mobilenet_v2_cifar10_224", (3, 224, 224)),
        ],
    )
    def test_agrees_with_onnxruntime(
        self, shared: Shared, name: str, shape: tuple[int, ...], batch: int
    ) -> None:
        model = Model.load(shared(f"{name}.onnx"))
        assert_same(model, {"input": normal(batch, *shape)})

    @pytest.mark.parametrize("seed", [0, 1])
    def test_the_face_detector_agrees(self, shared: Shared, seed: int) -> None:
        model = Model.load(shared("ultraface_version-RFB-320.onnx"))
        assert_same(model, {"input": normal(1, 3, 240, 320, seed=seed)})

    @pytest.mark.parametrize(("boxes", "seed"), [(60, 0), (200, 1)])
    def test_the_nms_head_agrees(self, shared: Shared, boxes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        # Clusters of overlapping boxes around a few centres, with distinct scores.
        centres = rng.uniform(50, 590, (boxes // 10, 2)).repeat(10, 0) + rng.normal(
            0, 6, (boxes, 2)
        )
        sizes = rng.uniform(40, 80, (boxes, 2))
        scores = rng.permuted(np.linspace(0.01, 0.99, boxes * 80)).reshape(boxes, 80) ** 8
        detection = np.concatenate([centres, sizes, scores], 1).T[None].astype(np.float32)
        model = Model.load(shared("nms_yolov8_head.onnx"))
        feeds = {"detection": detection, "config": np.array([100, 0.45, 0.25], np.float32)}
        kept = run_torch(to_torch(model), feeds)["selected"].shape[1]
        assert 0 < kept < boxes
        assert_same(model, feeds)

    def test_every_weight_of_a_resnet_gets_a_gradient(self, shared: Shared) -> None:
        model = Model.load(shared("resnet20_cifar10.onnx"))
        graph = to_torch(model)
        (y,) = graph({"input": torch.from_numpy(normal(2, 3, 32, 32))}).values()
        y.square().sum().backward()
        without = [n for n, p in graph.parameters_by_initializer.items() if p.grad is None]
        assert without == []
        floats = {
            name
            for name, value in model.ir.graph.initializers.items()
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
        }
        assert set(graph.parameters_by_initializer) == {
            n for n in floats if model.initializer(n).ndim
        }


class TestParameters:
    def test_scalars_integers_and_statistics_are_not_parameters(self) -> None:
        graph = to_torch(small_cnn())
        assert set(graph.parameters_by_initializer) == {
            "w1",
            "b1",
            "w2",
            "b2",
            "w3",
            "b3",
            "w4",
            "b4",
        }

    def test_running_statistics_are_buffers(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            bn (float[N, 3] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[N, 3] y)
            { y = BatchNormalization(x, s, b, m, v) }""",
            s=normal(3),
            b=normal(3),
            m=normal(3),
            v=np.abs(normal(3)) + 1,
        )
        graph = to_torch(model)
        assert set(graph.parameters_by_initializer) == {"s", "b"}
        assert len(list(graph.buffers())) == 3  # the mean, the variance and the device's anchor

    def test_a_shared_initializer_is_one_parameter(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            twice (float[N, 4] x, float[4, 4] w) => (float[N, 4] y)
            { a = MatMul(x, w)  b = Identity(w)  y = MatMul(a, b) }""",
            w=normal(4, 4),
        )
        graph = to_torch(model)
        assert len(list(graph.parameters())) == 1
        assert_same(model, {"x": normal(2, 4, seed=1)})

    def test_names_that_torch_forbids_stay_distinct(self) -> None:
        graph = ir.from_onnx_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            g (float[4] x, float[4] a, float[4] b) => (float[4] y)
            { s = Add(x, a)  y = Add(s, b) }"""
        )
        names = {"a": "block.0.weight", "b": "block/0/weight"}
        for value in list(graph.graph.inputs)[1:]:
            old = value.name or ""
            graph.graph.inputs.remove(value)
            value.name = names[old]
            value.const_value = ir.tensor(np.full(4, ord(old), np.float32), name=value.name)
            graph.graph.register_initializer(value)
        found = to_torch(Model(graph)).parameters_by_initializer
        assert {name: p[0].item() for name, p in found.items()} == {
            "block.0.weight": ord("a"),
            "block/0/weight": ord("b"),
        }

    def test_training_never_writes_into_the_model(self) -> None:
        model = small_cnn()
        before = model.initializer("w1").copy()
        graph = to_torch(model)
        with torch.no_grad():
            for parameter in graph.parameters():
                parameter.add_(1)
        np.testing.assert_array_equal(model.initializer("w1"), before)

    def test_write_back_gives_the_model_that_torch_computes(self) -> None:
        model, x = small_cnn(), normal(2, 3, 16, 16)
        graph = to_torch(model)
        with torch.no_grad():
            for name in ("w2", "b4"):
                graph.parameters_by_initializer[name].mul_(1.5)
        changed = model.clone("test")
        assert sorted(graph.write_back(changed)) == ["b4", "w2"]
        got = run_torch(graph, {"x": x})["y"]
        np.testing.assert_allclose(run_ort(changed, {"x": x})["y"], got, rtol=1e-5, atol=1e-5)
        assert graph.write_back(changed) == []
        assert not np.allclose(run_ort(model, {"x": x})["y"], got)

    def test_write_back_keeps_the_element_type(self) -> None:
        model = small_cnn()
        graph = to_torch(model).double()
        with torch.no_grad():
            graph.parameters_by_initializer["b1"].add_(1)
        assert graph.write_back(model) == ["b1"]
        assert model.initializer("b1").dtype == np.float32

    @pytest.mark.parametrize("dtype", [ir.DataType.BFLOAT16, ir.DataType.FLOAT16])
    def test_half_precision_weights_come_back_bit_by_bit(self, dtype: ir.DataType) -> None:
        word = {ir.DataType.BFLOAT16: "bfloat16", ir.DataType.FLOAT16: "float16"}[dtype]
        model = from_text(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            g ({word}[N, 3] x, {word}[3] w) => ({word}[N, 3] y) {{ y = Mul(x, w) }}""",
            w=normal(3).astype(dtype.numpy()),
        )
        graph = to_torch(model)
        assert graph.write_back(model) == []
        with torch.no_grad():
            graph.parameters_by_initializer["w"].neg_()
        assert graph.write_back(model) == ["w"]
        assert model.initializer("w").dtype == dtype.numpy()


class TestInterpreter:
    def test_a_slice_has_its_own_borders(self) -> None:
        model = small_cnn()
        nodes = list(model.ir.graph)
        first, second = to_torch(model, nodes[:4]), to_torch(model, nodes[4:])
        assert first.input_names == ("x",)
        assert first.output_names == ("r1", "r2")
        assert second.input_names == ("r2", "r1")
        assert second.output_names == ("y",)
        x = torch.from_numpy(normal(2, 3, 16, 16))
        whole = to_torch(model)({"x": x})["y"]
        assert torch.equal(second(first({"x": x}))["y"], whole)

    def test_observes_in_order_of_computation_and_stops_early(self) -> None:
        model = small_cnn()
        graph = to_torch(model)
        seen: list[tuple[str, list[int]]] = []
        result = graph(
            {"x": torch.from_numpy(normal(2, 3, 16, 16))},
            observe=lambda name, tensor: seen.append((name, list(tensor.shape))),
            watch=["r1", "x", "c1"],
            outputs=[],
        )
        assert result == {}
        assert seen == [("x", [2, 3, 16, 16]), ("c1", [2, 8, 8, 8]), ("r1", [2, 8, 8, 8])]

    def test_an_input_that_is_not_needed_need_not_be_fed(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            g (float[2] a, float[2] b) => (float[2] c, float[2] d) { c = Neg(a)  d = Add(c, b) }"""
        )
        graph = to_torch(model)
        assert graph({"a": torch.ones(2)}, outputs=["c"])["c"].tolist() == [-1, -1]
        with pytest.raises(DataError, match="feed b"):
            graph({"a": torch.ones(2)})

    def test_values_are_freed_after_their_last_use(self) -> None:
        steps = 6
        lines = "\n".join(f"v{i + 1} = Mul(v{i}, v{i})" for i in range(steps))
        model = from_text(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            chain (float[N] v0) => (float[N] v{steps}) {{ {lines} }}"""
        )
        alive: list[weakref.ref[Tensor]] = []
        most = 0

        def observe(name: str, tensor: Tensor) -> None:
            nonlocal most
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))

        with torch.no_grad():
            to_torch(model)(
                {"v0": torch.ones(4)},
                observe=observe,
                watch=[f"v{i}" for i in range(1, steps + 1)],
            )
        assert most == 2

    def test_shape_arithmetic_follows_the_batch(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            g (float[N, C, H] x) => (float[N, M] y, int64[1] n)
            <int64 zero = {0}, int64[1] axes = {0}, int64[1] rest = {-1}> {
                s = Shape(x)
                first = Gather(s, zero)
                n = Unsqueeze(first, axes)
                target = Concat<axis=0>(n, rest)
                y = Reshape(x, target)
            }"""
        )
        graph = to_torch(model)
        for batch in (1, 5):
            assert graph({"x": torch.zeros(batch, 2, 3)})["y"].shape == (batch, 6)
        assert_same(model, {"x": normal(4, 2, 3)})

    def test_model_local_functions_are_inlined(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
            g (float[N] x) => (float[N] y) { y = local.twice(x) }
            <opset_import: ["" : 20], domain: "local">
            twice (a) => (b) { b = Add(a, a) }"""
        )
        assert to_torch(model)({"x": torch.ones(2)})["y"].tolist() == [2, 2]
        assert len(model.ir.functions) == 1

    def test_an_early_file_that_lists_weights_as_inputs(self) -> None:
        model = from_text(
            """<ir_version: 3, opset_import: ["" : 9]>
            g (float[N, 2] x, float[2] w) => (float[N, 2] y) { y = Mul(x, w) }""",
            w=np.array([2, 3], np.float32),
        )
        model.ir.graph.inputs.append(model.ir.graph.initializers["w"])
        graph = to_torch(model)
        assert graph.input_names == ("x",)
        assert graph({"x": torch.ones(1, 2)})["y"].tolist() == [[2, 3]]

    def test_parametrizations_of_torch_apply(self) -> None:
        graph = to_torch(small_cnn())

        class Half(torch.nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight / 2

        x = {"x": torch.from_numpy(normal(1, 3, 16, 16))}
        before = graph(x)["y"].detach()
        torch.nn.utils.parametrize.register_parametrization(graph, "w4", Half())
        torch.nn.utils.parametrize.register_parametrization(graph, "b4", Half())
        torch.testing.assert_close(graph(x)["y"], before / 2)


class TestDevices:
    """Torch's meta device has shapes and no numbers: reading one on the host is an error there."""

    def test_shape_arithmetic_reads_nothing_from_the_device(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            g (float[N, T, 4] x, float[16, 4] table, float[4, 6] w) => (float[N, T, K, 2] y)
            <int64 zero = {0}, int64 one = {1}, int64[1] front = {0}, float two = {2.0},
             int64[2] heads = {3, 2}> {
                s = Shape(x)
                t = Gather(s, one)
                places = Range(zero, t, one)
                e = Gather(table, places)
                h = Add(x, e)
                m = MatMul(h, w)
                scaled = Mul(m, two)
                until = Constant<value_ints=[2]>()
                head = Slice(s, front, until)
                to = Concat<axis=0>(head, heads)
                y = Reshape(scaled, to)
            }""",
            table=normal(16, 4),
            w=normal(4, 6),
        )
        graph = to_torch(model, device="meta")
        y = graph({"x": torch.empty(2, 5, 4)})["y"]
        assert y.device.type == "meta"
        assert y.shape == (2, 5, 3, 2)
        assert_same(model, {"x": normal(2, 5, 4)})

    def test_a_real_model_runs_without_reading_from_the_device(self, shared: Shared) -> None:
        graph = to_torch(Model.load(shared("resnet20_cifar10.onnx")), device="meta")
        (y,) = graph({"input": torch.empty(4, 3, 32, 32)}).values()
        assert y.shape == (4, 10)

    def test_a_large_table_computed_on_the_host_moves_to_the_device(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20]>
            g (int64[N, T] x) => (int64[M] y) <int64 zero = {0}, int64 one = {1}>
            { n = Size(x)  y = Range(zero, n, one) }"""
        )
        graph = to_torch(model, device="meta")
        assert graph({"x": torch.empty(2, 8, dtype=torch.int64)})["y"].device.type == "cpu"
        assert graph({"x": torch.empty(90, 90, dtype=torch.int64)})["y"].device.type == "meta"


class TestErrors:
    def test_all_missing_operators_are_named_at_once(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 20, "acme" : 3]>
            g (float[N] x) => (float[N] y)
            { a = acme.Blend(x)  b = Bernoulli(a)  c = Neg(b)  y = acme.Blur(c) }"""
        )
        with pytest.raises(UnsupportedOperatorError) as caught:
            to_torch(model)
        assert caught.value.operators == (
            "acme::Blend (opset 3)",
            "acme::Blur (opset 3)",
            "ai.onnx::Bernoulli (opset 20)",
        )
        assert caught.value.cure

    def test_an_attribute_without_translation_is_refused_not_ignored(self) -> None:
        model = from_text(
            """<ir_version: 10, opset_import: ["" : 6]>
            g (float[N, 2] x, float[2] w) => (float[N, 2] y)
            { y = Add<axis=0, broadcast=1>(x, w) }"""
        )
        with pytest.raises(UnsupportedOperatorError, match=r"Add \(opset 6\)"):
            to_torch(model)

    def test_wrong_shapes_name_the_node(self) -> None:
        with pytest.raises(
            ModelError, match=r"Conv node .*cannot run on \(float32\[1, 2, 16, 16\]"
        ):
            to_torch(small_cnn())({"x": torch.zeros(1, 2, 16, 16)})

    def test_an_unknown_value_is_named_with_the_nearest(self) -> None:
        with pytest.raises(ModelError, match="did you mean 'r1'"):
            to_torch(small_cnn())({"x": torch.zeros(1, 3, 16, 16)}, outputs=["rr1"])


_GRADIENT_CASES = {
    "conv": ("y = Conv<pads=[1,0,2,1], strides=[2,1], group=2>(x, w)", (2, 4, 5, 5), (4, 2, 3, 3)),
    "conv_transpose": (
        "y = ConvTranspose<strides=[2,2], output_padding=[1,0], pads=[1,0,0,1]>(x, w)",
        (1, 2, 3, 3),
        (2, 2, 3, 3),
    ),
    "average_pool": (
        "p = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)  y = Mul(p, w)",
        (1, 2, 5, 5),
        (1, 2, 1, 1),
    ),
    "layer_norm": ("y = LayerNormalization(x, w)", (3, 6), (6,)),
    "rms_norm": ("y = RMSNormalization(x, w)", (3, 6), (6,)),
    "gemm": ("y = Gemm<alpha=0.5, transB=1>(x, w)", (3, 4), (5, 4)),
    "softmax_attention": ("y = Attention<is_causal=1>(x, w, x)", (1, 2, 3, 4), (1, 2, 3, 4)),
    "prelu_gelu": ("a = PRelu(x, w)  y = Gelu(a)", (2, 3, 4), (3, 1)),
    "gather": (
        "i = Constant<value_ints=[2,0,-1]>()  g = Gather(w, i)  y = MatMul(x, g)",
        (2, 3),
        (4, 5),
    ),
    "resize_cubic": (
        """s = Constant<value_floats=[1.0,1.0,1.5,0.8]>()
        r = Resize<mode="cubic">(x, , s)  y = Mul(r, w)""",
        (1, 2, 4, 5),
        (1, 2, 1, 1),
    ),
    "reflect_pad": (
        'p = Constant<value_ints=[0,2,0,1]>()  r = Pad<mode="reflect">(x, p)  y = MatMul(r, w)',
        (2, 4),
        (7, 2),
    ),
    "scatter": (
        """i = Constant<value_ints=[1,1]>()  a = Constant<value_ints=[-1]>()
        j = Unsqueeze(i, a)  y = ScatterND<reduction="add">(x, j, w)""",
        (3, 2),
        (2, 2),
    ),
    "reductions": (
        "a = ReduceL2<keepdims=0>(x)  b = ReduceLogSumExp(w)  y = Mul(a, b)",
        (2, 3),
        (3,),
    ),
}


@pytest.mark.parametrize("case", _GRADIENT_CASES)
def test_gradients_agree_with_finite_differences(case: str) -> None:
    body, x_shape, w_shape = _GRADIENT_CASES[case]
    ranks = [", ".join(map(str, shape)) for shape in (x_shape, w_shape)]
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g (double[{ranks[0]}] x, double[{ranks[1]}] w) => (double y) {{ {body} }}"""
    graph = to_torch(Model(ir.from_onnx_text(text)))
    x = torch.from_numpy(normal(*x_shape, seed=3)).double().requires_grad_()
    w = torch.from_numpy(normal(*w_shape, seed=4)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: graph({"x": x, "w": w})["y"], (x, w))
