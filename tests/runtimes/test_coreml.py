"""CoreML packages: made by coremltools, opened again and held against the model; never run here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress import target
from edgecompress.errors import MeasurementError
from edgecompress.fixed_shapes import fixed_shapes
from edgecompress.model import Model
from edgecompress.runtimes import Artifact
from edgecompress.runtimes._coreml_check import plain_name
from edgecompress.runtimes.coreml import CoreMl, CoreMlEngine, _numeric_gathers
from tests.models import from_text, small_cnn
from tests.running import run
from tests.runtimes.test_onnxruntime import one_operator

RUNTIME = CoreMl()
PROFILE = target.load("ios-coreml").model_copy(update={"runtime": "coreml"})

needs_coremltools = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="coremltools is not installed"
)


def fixed_cnn() -> Model:
    return fixed_shapes(small_cnn(), {"x": (1, 3, 16, 16)})


def test_nothing_is_run_or_timed() -> None:
    assert not RUNTIME.timed
    assert "Apple systems only" in RUNTIME.untimed_reason
    with pytest.raises(MeasurementError, match="Apple systems only"):
        RUNTIME.session(Artifact((Path("model.mlpackage/Manifest.json"),)), PROFILE)
    engine = CoreMlEngine()
    for refused in (
        lambda: engine.load("", {}),
        lambda: engine.bind({}),
        lambda: engine.collect(0),
    ):
        with pytest.raises(RuntimeError, match="Apple systems only"):
            refused()


@pytest.mark.parametrize(
    ("name", "plain"), [("x", "x"), ("input.1", "input_1"), ("1st", "_1st"), ("a/b:0", "a_b_0")]
)
def test_names_become_identifiers(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_operators_that_the_bridge_lacks_are_named() -> None:
    model = fixed_cnn()
    last = list(model.ir.graph)[-1]
    last.op_type, last.domain, last.name = "Frobnicate", "made.up", "odd"
    model.ir.opset_imports["made.up"] = 1
    assert [(u.node, u.op) for u in RUNTIME.unsupported(model, PROFILE)] == [("odd", "Frobnicate")]
    assert RUNTIME.unsupported(fixed_cnn(), PROFILE) == []


def test_free_dimensions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="expected fixed shapes"):
        RUNTIME.prepare(small_cnn(), tmp_path, PROFILE)


def test_truth_values_are_looked_up_as_numbers() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[3] x, int64[2] i, float zero) => (float[2] y)
        {
            t = Greater(x, zero)
            p = Gather(t, i)
            y = Cast<to=1>(p)
        }""",
        i=np.array([2, 0]),
        zero=np.array(0, np.float32),
    )
    numeric = _numeric_gathers(model)
    (gather,) = (node for node in numeric.ir.graph if node.op_type == "Gather")
    assert gather.outputs[0].dtype == ir.DataType.INT32
    feeds = {"x": np.array([1, -1, 0.5], np.float32)}
    np.testing.assert_array_equal(run(numeric, feeds)["y"], run(model, feeds)["y"])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if importlib.util.find_spec("coremltools") is None:
        pytest.skip("coremltools is not installed")
    return RUNTIME.prepare(fixed_cnn(), tmp_path_factory.mktemp("coreml"), PROFILE)


def test_a_package_holds_the_models_weights_and_operators(package: Artifact) -> None:
    assert package.path.name == "Manifest.json"
    assert package.path.parent.name == "model.mlpackage"
    assert [file.name for file in package.files[1:]] == ["model.mlmodel", "weight.bin"]
    assert package.notes[0] == (
        "checked, not run: inputs, outputs, 4 weights (432 numbers) agree to float16"
    )
    assert "3 conv" in package.notes[1]
    assert "1 linear" in package.notes[1]


def test_the_manifest_has_no_random_identifiers(package: Artifact) -> None:
    table = json.loads(package.path.read_text())
    assert table["rootModelIdentifier"] in table["itemInfoEntries"]
    assert len({key[14] for key in table["itemInfoEntries"]} - {"5"}) == 0  # made from names


@needs_coremltools
def test_a_package_of_another_model_fails_the_check(package: Artifact) -> None:
    from edgecompress.runtimes._coreml_check import check_package

    folder = package.path.parent
    check_package(fixed_cnn(), folder, half=True)
    other = fixed_cnn()
    weight = other.ir.graph.initializers["w3"]
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() + np.float32(0.01), name="w3")
    with pytest.raises(ValueError, match=r"weight 'w3' \[8, 8, 1, 1\] is not in the package"):
        check_package(other, folder, half=True)
    renamed = fixed_cnn()
    renamed.ir.graph.outputs[0].name = "other"
    with pytest.raises(ValueError, match="expected the outputs"):
        check_package(renamed, folder, half=True)


@needs_coremltools
def test_a_quantized_model_is_given_in_float(tmp_path: Path) -> None:
    made = RUNTIME.prepare(one_operator("Conv", "uint8"), tmp_path, PROFILE)
    assert "takes no QuantizeLinear" in made.notes[0]
    assert "1 conv" in made.notes[2]
