from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError, TargetError
from edgecompress.machine.host import host
from edgecompress.model import Model
from edgecompress.runtimes import Artifact, runtime_class, runtime_names
from tests.models import from_text, small_cnn

CPU = target.load(target.host_target())
RUNTIME = runtime_class("onnxruntime")()
ONE_SCALE = {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace"}
ONE_SCALE |= {"Gather", "Slice", "Expand", "Tile", "Resize", "Split"}


class Graph:
    """A Q/DQ graph written line by line; activations have scale 0.02 and mid-range zero points."""

    def __init__(self, activation: str) -> None:
        self.dtype = np.dtype(activation)
        self.lines: list[str] = []
        self.constants: dict[str, np.ndarray] = {}

    def const(self, name: str, array: Any) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def add(self, line: str) -> str:
        self.lines.append(line)
        return line.split("=")[0].strip()

    def qdq(self, value: str, scale: float = 0.02, zero: int | None = None) -> str:
        middle = 128 if self.dtype == np.uint8 else 0
        s = self.const(f"{value}_s", np.float32(scale))
        z = self.const(f"{value}_z", self.dtype.type(middle if zero is None else zero))
        self.add(f"{value}_q = QuantizeLinear({value}, {s}, {z})")
        return self.add(f"{value}_d = DequantizeLinear({value}_q, {s}, {z})")

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        values = np.random.default_rng(0).integers(-60, 60, shape).astype(np.int8)
        n = shape[axis]
        q, s = self.const("wq", values), self.const("ws", np.full(n, 0.01, np.float32))
        z = self.const("wz", np.zeros(n, np.int8))
        return self.add(f"w = DequantizeLinear<axis={axis}>({q}, {s}, {z})")

    def bias(self, n: int) -> str:
        s = self.const("bs", np.full(n, 2e-4, np.float32))
        q, z = self.const("bq", np.zeros(n, np.int32)), self.const("bz", np.zeros(n, np.int32))
        return self.add(f"b = DequantizeLinear<axis=0>({q}, {s}, {z})")

    def model(self, output: str) -> Model:
        types = {"float32": "float", "bool": "bool"}
        declared = "".join(
            f", {types.get(a.dtype.name, a.dtype.name)}"
            f"{[*a.shape] if a.ndim else ''} {name}".replace("'", "")
            for name, a in self.constants.items()
        )
        return from_text(
            f"""<ir_version: 10, opset_import: ["" : 20]>
            g (float[1, 4, 8, 8] x, float[1, 4, 8, 8] x2{declared}) => (float {output})
            {{ {chr(10).join(self.lines)} }}""",
            **self.constants,
        )


def one_operator(op: str, activation: str) -> Model:
    """``x -> Q/DQ -> op -> Q/DQ -> y``."""
    g = Graph(activation)
    x = g.qdq("x")
    ints = np.array
    unary = {
        "Transpose": "<perm=[0,2,3,1]>",
        "DepthToSpace": "<blocksize=2>",
        "SpaceToDepth": "<blocksize=2>",
        "AveragePool": "<kernel_shape=[2,2]>",
        "MaxPool": "<kernel_shape=[2,2]>",
    }
    if op == "Conv":
        g.add(f"y = Conv({x}, {g.weight((6, 4, 3, 3), 0)}, {g.bias(6)})")
    elif op == "ConvTranspose":
        g.add(f"y = ConvTranspose({x}, {g.weight((4, 6, 3, 3), 1)}, {g.bias(6)})")
    elif op == "MatMul":
        g.add(f"y = MatMul({x}, {g.weight((8, 5), 1)})")
    elif op == "Gemm":
        g.add(f"f = Flatten({x})")
        flat = g.qdq("f")
        g.add(f"y = Gemm<transB=1>({flat}, {g.weight((5, 256), 0)}, {g.bias(5)})")
    elif op in ("Add", "Mul", "Sub", "Div"):
        g.add(f"y = {op}({x}, {g.qdq('x2')})")
    elif op == "Concat":
        g.add(f"y = Concat<axis=1>({x}, {g.qdq('x2')})")
    elif op == "Where":
        condition = g.const("condition", np.zeros(8, bool))
        g.add(f"y = Where({condition}, {x}, {g.qdq('x2')})")
    elif op == "Split":
        g.add(f"y, y2 = Split<axis=1>({x}, {g.const('k', ints([2, 2]))})")
        g.qdq("y2")
    elif op == "Resize":
        scales = g.const("k", np.array([1, 1, 2, 2], np.float32))
        g.add(f'y = Resize<mode="nearest">({x}, , {scales})')
    elif op == "Slice":
        a, b, c = (g.const(f"k{i}", ints([i])) for i in (0, 2, 1))
        g.add(f"y = Slice({x}, {a}, {b}, {c})")
    elif op in ("Reshape", "Squeeze", "Unsqueeze", "Gather", "Expand", "Tile", "ReduceMean", "Pad"):
        second = {
            "Reshape": [1, -1],
            "Squeeze": [0],
            "Unsqueeze": [0],
            "Gather": [0],
            "Expand": [2, 4, 8, 8],
            "Tile": [2, 1, 1, 1],
            "ReduceMean": [2, 3],
            "Pad": [0, 0, 1, 1, 0, 0, 1, 1],
        }[op]
        g.add(f"y = {op}({x}, {g.const('k', ints(second))})")
    else:
        g.add(f"y = {op}{unary.get(op, '')}({x})")
    return g.model(g.qdq("y", 0.02 if op in ONE_SCALE else 0.01))


def conv_chain(lines: list[str], *, scale: float, zero: int) -> Model:
    g = Graph("uint8")
    g.const("lo", np.float32(0))
    g.const("hi", np.float32(6))
    g.add(f"c = Conv({g.qdq('x')}, {g.weight((4, 4, 3, 3), 0)}, {g.bias(4)})")
    for line in lines:
        g.add(line)
    return g.model(g.qdq("y", scale, zero))


def test_it_is_a_member() -> None:
    assert "onnxruntime" in runtime_names()
    with pytest.raises(TargetError, match="unknown name 'onnxruntim'"):
        runtime_class("onnxruntim")


@pytest.mark.parametrize("name", ["cpu-x86-64", "cpu-arm64"])
@pytest.mark.parametrize("op", sorted(target.load("cpu-x86-64").constraints(host()).int8_ops))
def test_listed_operators_run_on_integers(op: str, name: str) -> None:
    profile = target.load(name)
    assert profile.int8 is not None
    model = one_operator(op, profile.int8.activation)
    coverage = RUNTIME.coverage(model, ["y"], profile)
    assert (coverage.fused, dict(coverage.unfused)) == (1, {})


@pytest.mark.parametrize(
    "op",
    [
        *("ConvTranspose", "Sub", "Div", "ReduceMean", "GlobalMaxPool", "SpaceToDepth", "Pad"),
        *("Tanh", "Gelu", "Erf", "HardSigmoid", "Relu"),
    ],
)
def test_unlisted_operators_stay_float(op: str) -> None:
    coverage = RUNTIME.coverage(one_operator(op, "uint8"), ["y"], target.load("cpu-x86-64"))
    assert coverage.fused == 0
    assert dict(coverage.unfused) == {"y": f"{op} in float"}


def test_activations_that_the_output_range_contains_are_absorbed() -> None:
    model = conv_chain(["y = Clip(c, lo, hi)"], scale=6 / 255, zero=0)
    coverage = RUNTIME.coverage(model, ["c", "y"], CPU)
    assert (coverage.claimed, coverage.fused) == (2, 2)
    assert coverage.integer_kernels == 1


def test_a_clip_that_cuts_more_than_the_output_range_blocks_fusion() -> None:
    model = conv_chain(["y = Clip(c, lo, hi)"], scale=0.1, zero=128)
    coverage = RUNTIME.coverage(model, ["c"], CPU)
    assert (coverage.claimed, coverage.fused, coverage.integer_kernels) == (1, 0, 0)
    assert dict(coverage.unfused) == {"c": "FusedConv in float"}


def test_quantizers_around_other_nodes_do_not_count_for_the_claimed_one() -> None:
    model = conv_chain(["t = Erf(c)", "y = Identity(t)"], scale=0.01, zero=128)
    coverage = RUNTIME.coverage(model, ["c", "t"], CPU)
    assert coverage.fused == 0
    assert dict(coverage.unfused) == {"c": "Conv in float", "t": "Erf in float"}


def test_an_activation_absorbed_by_a_float_kernel_is_not_fused() -> None:
    coverage = RUNTIME.coverage(conv_chain(["y = Tanh(c)"], scale=0.01, zero=128), ["c", "y"], CPU)
    assert dict(coverage.unfused) == {"c": "FusedConv in float", "y": "FusedConv in float"}


def test_a_convolution_without_output_quantizer_stays_float() -> None:
    g = Graph("uint8")
    g.add(f"y = Conv({g.qdq('x')}, {g.weight((4, 4, 3, 3), 0)}, {g.bias(4)})")
    coverage = RUNTIME.coverage(g.model("y"), ["y"], CPU)
    assert dict(coverage.unfused) == {"y": "Conv in float"}


def test_matmul_and_its_bias_become_one_kernel() -> None:
    g = Graph("uint8")
    g.add(f"m = MatMul({g.qdq('x')}, {g.weight((8, 5), 1)})")
    g.add(f"y = Add(m, {g.const('bias', np.ones(5, np.float32))})")
    coverage = RUNTIME.coverage(g.model(g.qdq("y")), ["m", "y"], CPU)
    assert (coverage.fused, dict(coverage.unfused)) == (2, {})
    assert "QGemm" in {n.op_type for n in RUNTIME.optimized_nodes(g.model("y_d"), CPU)}


def test_a_float_model_has_no_integer_kernels() -> None:
    model = small_cnn()
    coverage = RUNTIME.coverage(model, ["c1", "c2", "c3", "s", "y"], CPU)
    assert (coverage.claimed, coverage.fused, coverage.integer_kernels) == (5, 0, 0)
    assert coverage.unfused["y"] == "Gemm in float"
    assert [n.name for n in model.ir.graph] == [n.name for n in small_cnn().ir.graph]


def test_a_claim_that_names_no_node_is_not_fused() -> None:
    coverage = RUNTIME.coverage(small_cnn(), ["nowhere"], CPU)
    assert dict(coverage.unfused) == {"nowhere": "the model has no node with this output"}


def test_a_provider_that_stands_in_is_named() -> None:
    coverage = RUNTIME.coverage(one_operator("Conv", "uint8"), ["y"], target.load("web-wasm"))
    assert coverage.fused == 1
    assert coverage.note is not None
    assert "wasm is not installed here" in coverage.note


def test_optimized_nodes_are_the_runtimes_own() -> None:
    nodes = RUNTIME.optimized_nodes(small_cnn(), CPU)
    assert "FusedConv" in {node.op_type for node in nodes}
    assert {node.provider for node in nodes} == {"CPUExecutionProvider"}


@pytest.mark.parametrize("bits", [7, 8])
def test_full_range_weights_are_exact_where_eight_bits_are_promised(bits: int) -> None:
    int8 = CPU.constraints(host()).int8
    assert int8 is not None
    if bits > int8.weight_bits:
        pytest.skip("this processor saturates with full-range weights")
    largest = 2 ** (bits - 1) - 1
    w = np.full((64, 16), largest, np.int8)
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (uint8[4, 64] x, int8[64, 16] w) => (int32[4, 16] y) { y = MatMulInteger(x, w) }""",
        w=w,
    )
    x = np.full((4, 64), 255, np.uint8)
    np.testing.assert_array_equal(run(model, x=x)["y"], x.astype(np.int32) @ w.astype(np.int32))


def run(model: Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        artifact = RUNTIME.prepare(model, Path(folder), CPU)
        return RUNTIME.session(artifact, CPU).run(feeds)


def test_prepared_files_run_and_have_a_size(tmp_path: Path) -> None:
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, CPU)
    assert artifact.path == tmp_path / "model.onnx"
    assert artifact.size_bytes == artifact.path.stat().st_size
    session = RUNTIME.session(artifact, CPU)
    x = np.zeros((2, 3, 16, 16), np.float32)
    assert session.run({"x": x})["y"].shape == (2, 10)
    with pytest.raises(MeasurementError, match="could not run it"):
        session.run({"x": x[:, :2]})


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(small_cnn().to_bytes()[:500])
    with pytest.raises(MeasurementError, match="could not load it") as caught:
        RUNTIME.session(Artifact((file,)), CPU)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("domain", "op", "said"),
    [
        ("made.up", "Frobnicate", "no kernel for made.up::Frobnicate"),
        ("", "BitwiseAnd", None),
        ("", "HardSwish", None),
        ("com.microsoft", "QGemm", None),
        ("", "NegativeLogLikelihoodLoss", None),
    ],
)
def test_unsupported_operators_are_found(domain: str, op: str, said: str | None) -> None:
    model = small_cnn()
    last = list(model.ir.graph)[-1]
    last.op_type, last.domain, last.name = op, domain, "odd"
    model.ir.opset_imports.setdefault(domain, 1)
    found = RUNTIME.unsupported(model, CPU)
    if said is None:
        assert found == []
    else:
        assert [(u.node, u.op) for u in found] == [("odd", op)]
        assert said in found[0].reason


@pytest.mark.parametrize("name", ["resnet20_cifar10", "silero_vad", "nms_yolov8_head"])
def test_real_models_are_supported(name: str, shared: Any) -> None:
    assert RUNTIME.unsupported(Model.load(shared(f"{name}.onnx")), CPU) == []


def test_functions_of_the_model_are_looked_into() -> None:
    model = small_cnn()
    x = ir.val("x")
    bad = ir.node("Frobnicate", [x], domain="made.up", name="inner")
    body = ir.Graph([x], bad.outputs, nodes=[bad], opset_imports={"": 20, "made.up": 1})
    function = ir.Function("local", "wrap", graph=body, attributes=[])
    model.ir.functions[function.identifier()] = function
    assert [u.node for u in RUNTIME.unsupported(model, CPU)] == ["inner"]
