"""cleanup and weights in files: what it reads, what it makes, and where that lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.passes import cleanup
from edgecompress.rewrite import merge_equal_initializers, strip_provenance
from edgecompress.weights import spool as weight_spool
from edgecompress.weights.data_file import DataFile
from edgecompress.weights.external_data import FileTensor
from tests.models import from_text
from tests.running import run

F = np.float32
WIDTH = 64

TRANSPOSED = """<ir_version: 10, opset_import: ["" : {opset}]>
    g (float[N, 64] x, float[64, 64] a, float[64, 64] b, float[64] c) => (float[N, 64] y) {{
        at = Transpose<perm=[1, 0]>(a)  p = MatMul(x, at)  q = Relu(p)
        bt = Transpose<perm=[1, 0]>(b)  r = MatMul(q, bt)  y = Add(r, c)
    }}"""

SHARED_WEIGHT = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 64] x, float[64, 64] a) => (float[N, 64] y) {
        t = Transpose<perm=[1, 0]>(a)  p = MatMul(x, t)  y = MatMul(p, a)
    }"""

BATCH_NORM = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 64, 4, 4] x, float[64, 64, 3, 3] w, float[64] s, float[64] m) =>
      (float[N, 64, 4, 4] y) {
        p = Conv<pads=[1, 1, 1, 1]>(x, w)  y = BatchNormalization(p, s, m, m, s)
    }"""


def matrix(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, shape or (WIDTH, WIDTH)).astype(F)


def stored(model: Model, folder: Path) -> Model:
    model.save(folder / "m.onnx", external_data=True)
    return Model.load(folder / "m.onnx")


def clean(model: Model, **options: object) -> Applied:
    return run_pass(make_pass("cleanup", options), model, Context())


def lying_in_files(model: Model) -> int:
    held = [v.const_value for v in model.ir.graph.initializers.values()]
    return sum(isinstance(tensor, FileTensor) for tensor in held)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new constant goes to disk."""
    keep = weight_spool.WeightSpool.__init__
    monkeypatch.setattr(cleanup, "_LARGE_BYTES", 0)
    monkeypatch.setattr(weight_spool.WeightSpool, "__init__", lambda self: keep(self, keep_bytes=0))


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("opset", [11, 20])
def test_folded_weights_wait_on_disk(tmp_path: Path, opset: int) -> None:
    text = TRANSPOSED.format(opset=opset)
    model = stored(from_text(text, a=matrix(0), b=matrix(1), c=matrix(2, WIDTH)), tmp_path)
    applied = clean(model, opset=20)
    assert [node.op_type for node in applied.model.ir.graph] == ["MatMul", "Relu", "Gemm"]
    assert lying_in_files(applied.model) == 2
    x = {"x": matrix(3, 2, WIDTH)}
    np.testing.assert_allclose(run(applied.model, x)["y"], run(model, x)["y"], atol=1e-5)
    applied.model.save(tmp_path / "out.onnx", external_data=True)
    assert Model.load(tmp_path / "out.onnx").digest == applied.model.digest


@pytest.mark.usefixtures("no_memory")
def test_weights_with_a_batch_norm_in_them_wait_on_disk(tmp_path: Path) -> None:
    ones = np.linspace(0.5, 1.5, WIDTH).astype(F)
    original = from_text(BATCH_NORM, w=matrix(0, WIDTH, WIDTH, 3, 3), s=ones, m=matrix(1, WIDTH))
    model = stored(original, tmp_path)
    applied = clean(model)
    assert [node.op_type for node in applied.model.ir.graph] == ["Conv"]
    assert lying_in_files(applied.model) == 2
    x = {"x": matrix(3, 2, WIDTH, 4, 4)}
    np.testing.assert_allclose(run(applied.model, x)["y"], run(model, x)["y"], atol=1e-4)


def test_what_would_grow_is_not_even_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stored(from_text(SHARED_WEIGHT, a=matrix(0)), tmp_path)

    def read(self: DataFile, start: int, buffer: memoryview) -> None:
        pytest.fail("a weight was read")

    monkeypatch.setattr(DataFile, "fill", read)
    applied = clean(model)
    assert [node.op_type for node in applied.model.ir.graph] == ["Transpose", "MatMul", "MatMul"]


def test_equal_weights_become_one_and_similar_ones_stay(tmp_path: Path) -> None:
    similar = matrix(0)
    similar[-1, -1] += 1
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 64] x, float[64, 64] a, float[64, 64] b, float[64, 64] c) => (float[N, 64] y) {
        p = MatMul(x, a)  q = MatMul(p, b)  y = MatMul(q, c)
    }"""
    inside = from_text(text, a=matrix(0), b=similar, c=matrix(0))
    for model in (inside.clone(), stored(inside, tmp_path)):
        assert merge_equal_initializers(model) == 1
        assert set(model.ir.graph.initializers) == {"a", "b"}
        x = {"x": matrix(3, 2, WIDTH)}
        np.testing.assert_array_equal(run(model, x)["y"], run(inside, x)["y"])


def test_metadata_of_weights_go_and_the_weights_stay_in_their_file(tmp_path: Path) -> None:
    text = TRANSPOSED.format(opset=20)
    model = stored(from_text(text, a=matrix(0), b=matrix(1), c=matrix(2, WIDTH)), tmp_path)
    tensor = model.ir.graph.initializers["a"].const_value
    assert tensor is not None
    tensor.doc_string = "from /home/somebody"
    twin = model.clone()
    assert strip_provenance(twin) == 1
    stripped = twin.ir.graph.initializers["a"].const_value
    assert isinstance(stripped, FileTensor)
    assert (stripped.doc_string, tensor.doc_string) == (None, "from /home/somebody")
    np.testing.assert_array_equal(stripped.numpy(), matrix(0))
    assert isinstance(stripped, ir.ExternalTensor)
