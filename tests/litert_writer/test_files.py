"""Whole files: names, shapes, notes, refusals and bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import MissingDependencyError, TargetError
from edgecompress.litert_writer import read_shapes, translate
from edgecompress.model import Model
from tests.litert_writer.encoder import encoder
from tests.litert_writer.running import F, assert_equal, litert, normal, one_op
from tests.models import from_text, small_cnn
from tests.running import run

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")

Shared = Callable[[str], Path]

FREE = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[batch, length, 4] x, float[4, 3] w) => (float[batch, length, 3] y)
    { y = MatMul(x, w) }
"""


def test_an_encoder() -> None:
    feeds = {
        "ids": np.arange(12).reshape(2, 6) * 4,
        "mask": np.array([[1] * 6, [1, 1, 1, 1, 0, 0]]),
    }
    assert_equal(encoder(), feeds, shapes={"N": 2, "S": 6})


def test_a_small_network() -> None:
    assert_equal(small_cnn(), {"x": normal(1, 3, 16, 16)})
    assert_equal(small_cnn(), {"x": normal(3, 3, 16, 16)}, shapes={"N": 3})


@pytest.mark.parametrize(
    "name", ["resnet20_cifar10", "mobilenet_v1_075_224", "ultraface_version-RFB-320"]
)
def test_real_networks(shared: Shared, name: str) -> None:
    model = Model.load(shared(f"{name}.onnx"))
    spec = next(s for s in model.signature.inputs if s.name == "input")
    shape = [d if isinstance(d, int) else 1 for d in spec.shape or ()]
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(F)
    want, got = run(model, {"input": x}, optimize=True), litert(model, {"input": x})
    assert set(want) == set(got)
    for each, array in want.items():
        np.testing.assert_allclose(got[each], array, rtol=0, atol=1e-5 * np.abs(array).max())


def test_the_same_model_gives_the_same_bytes() -> None:
    assert translate(small_cnn()).data == translate(small_cnn()).data


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(MissingDependencyError, match=r"'flatbuffers', which is not installed") as e:
        translate(small_cnn())
    assert e.value.cure == 'pip install "edgecompress[litert]"'


def test_the_model_is_not_changed() -> None:
    model = small_cnn()
    before = model.digest
    translate(model)
    assert model.digest == before


def test_constants_are_aligned() -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    data = translate(small_cnn()).data
    file = schema.Model.GetRootAsModel(data, 0)
    for i in range(1, file.BuffersLength()):
        buffer = file.Buffers(i)
        start = buffer._tab.Vector(buffer._tab.Offset(4))
        assert start % 16 == 0


def test_a_free_batch_becomes_one_row_and_is_noted() -> None:
    found = translate(from_text(FREE, w=normal(4, 3)), {"length": 5})
    assert found.notes == ("the free dimension batch was fixed at 1",)


def test_another_free_dimension_is_refused_with_the_cure() -> None:
    refused = translate(from_text(FREE, w=normal(4, 3))).refused
    assert [(each.node, each.op) for each in refused] == [("x", "graph input")]
    assert "length has no number" in refused[0].reason
    assert 'shapes = "batch=1, sequence=128"' in refused[0].reason


def test_a_dimension_without_a_name_is_named_by_its_place() -> None:
    text = FREE.replace("[batch, length, 4] x", "[batch, ?, 4] x")
    model = from_text(text, w=normal(4, 3))
    assert "x[1] has no number" in translate(model).refused[0].reason
    assert_equal(model, {"x": normal(1, 6, 4)}, shapes={"x[1]": 6})


def test_shapes_are_read() -> None:
    assert read_shapes("") == {}
    assert read_shapes(" batch=1, sequence = 128 ,x[1]=3") == {
        "batch": 1,
        "sequence": 128,
        "x[1]": 3,
    }


@pytest.mark.parametrize("text", ["batch", "batch=", "=3", "batch=0", "batch=-1", "batch=two"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(TargetError, match="expected NAME=NUMBER"):
        read_shapes(text)


def test_an_output_that_is_an_input_or_a_constant() -> None:
    model = one_op("z = Relu(x)  y = Identity(z)", {"x": normal(2, 3)})
    model.ir.graph.outputs.append(model.ir.graph[0].outputs[0])
    assert_equal(model, {"x": normal(2, 3)})
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[2] x) => (float[2] y, float[2] c)
        { y = Identity(x)  c = Constant<value_floats=[1.0, 2.0]>() }
    """
    assert_equal(from_text(text), {"x": normal(2)})
