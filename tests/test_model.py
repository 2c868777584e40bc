"""Model: refused files, weights inside and outside the file, and a digest of the content."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgecompress import files
from edgecompress import model as model_module
from edgecompress.errors import ModelError, OutputError, UnsupportedOperatorError
from edgecompress.model import Model, TensorSpec
from edgecompress.weights import model_file
from tests.models import from_text, small_cnn
from tests.running import run

FEEDS = {"x": np.random.default_rng(0).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)}

BRANCHES = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[64, 64] x, bool flag, float[64, 64] k) => (float[64, 64] y) {
        y = If (flag) <
            then_branch = a () => (float[64, 64] p)
                <float[64, 64] w = {0}, float[2] small = {1, 2}> { p = MatMul(x, w) },
            else_branch = b () => (float[64, 64] q)
                <float[64, 64] w = {0}> { r = MatMul(k, w) q = Add(r, x) }
        >
    }"""


def branches() -> Model:
    """Both branches hold a large weight of the same name."""
    rng = np.random.default_rng(0)
    model = from_text(
        BRANCHES.replace("float[64, 64] w = {0}", "float w = {0}"),
        k=rng.normal(0, 1, (64, 64)).astype(np.float32),
    )
    for graph in model.ir.graph.subgraphs():
        value = graph.initializers["w"]
        value.const_value = ir.tensor(rng.normal(0, 1, (64, 64)).astype(np.float32), name="w")
        value.shape = ir.Shape([64, 64])
    return model


def with_strings() -> Model:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (int64[N] x) => (string[N] y) { y = Gather(words, x) }""".replace(
            "(int64[N] x)", "(int64[N] x, string[2] words)"
        )
    )
    graph = model.ir.graph
    value = next(v for v in graph.inputs if v.name == "words")
    graph.inputs.remove(value)
    value.const_value = ir.tensor(["cat", "größer"], name="words")
    graph.register_initializer(value)
    return model


def big_cnn() -> Model:
    """Weights above and below the size that goes to the data file."""
    return small_cnn(channels=64)


def stored_externally(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    big_cnn().save(folder / "m.onnx", external_data=True)
    return folder / "m.onnx"


# ---------------------------------------------------------------- refused files


def truncated(folder: Path) -> None:
    small_cnn().save(folder / "m.onnx")
    content = (folder / "m.onnx").read_bytes()
    (folder / "m.onnx").write_bytes(content[: len(content) // 2])


def text_file(folder: Path) -> None:
    (folder / "m.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n")


def unknown_operator(folder: Path) -> None:
    proto = onnx.load_from_string(small_cnn().to_bytes())
    proto.graph.node[1].op_type = "Rellu"
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


def invalid_graph(folder: Path) -> None:
    proto = onnx.load_from_string(small_cnn().to_bytes())
    proto.graph.node[1].input[0] = "nowhere"
    (folder / "m.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: None, "m.onnx: no such file\n  -> check the path"),
        (lambda d: (d / "m.onnx").mkdir(), "m.onnx: is a folder, expected an ONNX file"),
        (lambda d: (d / "m.onnx").touch(), r"m.onnx: holds no ONNX graph"),
        (truncated, r"m.onnx: is not an ONNX file, or it is truncated \([\d,]+ bytes"),
        (text_file, r"m.onnx: is not an ONNX file, or it is truncated \(\d+ bytes"),
        (invalid_graph, "m.onnx: fails the ONNX checker: .*nowhere"),
    ],
)
def test_refused_files(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(ModelError, match=message):
        Model.load(tmp_path / "m.onnx")


def test_unknown_operators_are_listed(tmp_path: Path) -> None:
    unknown_operator(tmp_path)
    with pytest.raises(
        UnsupportedOperatorError, match="operators that ONNX does not define: Rellu"
    ):
        Model.load(tmp_path / "m.onnx")


def relocate(file: Path, **entries: str) -> None:
    """Write other external-data entries into all tensors of ``file``."""
    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    file.write_bytes(proto.SerializeToString())


def shorten(file: Path) -> None:
    data = file.with_name("m.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])


def move_up(file: Path) -> None:
    shutil.move(file.with_name("m.onnx.data"), file.parent.parent / "m.data")
    relocate(file, location="../m.data")


def absolute(file: Path) -> None:
    relocate(file, location=str(file.with_name("m.onnx.data")))


def link_outside(file: Path) -> None:
    data = file.with_name("m.onnx.data")
    shutil.move(data, file.parent.parent / "m.data")
    data.symlink_to(file.parent.parent / "m.data")


def link_inside(file: Path) -> None:
    data = file.with_name("m.onnx.data")
    data.rename(file.with_name("other"))
    data.symlink_to("other")


def hard_link(file: Path) -> None:
    os.link(file.with_name("m.onnx.data"), file.with_name("other"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: f.with_name("m.onnx.data").unlink(),
            "its external data file 'm.onnx.data' is mi",
        ),
        (shorten, r"is truncated: expected at least [\d,]+ bytes, got [\d,]+"),
        (absolute, "point outside the model's folder: '/"),
        (move_up, r"point outside the model's folder: '\.\./m.data'"),
        (link_outside, "point outside the model's folder: 'm.onnx.data'"),
        (link_inside, "is a link, which onnx and onnxruntime refuse"),
        (hard_link, "is a link, which onnx and onnxruntime refuse"),
        (lambda f: relocate(f, length="12"), "are 12 bytes at offset .* for float"),
    ],
)
def test_refused_external_data(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    file = stored_externally(tmp_path / "models")
    damage(file)
    with pytest.raises(ModelError, match=rf"m.onnx: tensor 'w\d': .*{message}"):
        Model.load(file)


def test_a_link_to_a_model_has_its_data_beside_the_link(tmp_path: Path) -> None:
    file = stored_externally(tmp_path / "real")
    (tmp_path / "m.onnx").symlink_to(file)
    with pytest.raises(ModelError, match=r"m\.onnx\.data' is missing"):
        Model.load(tmp_path / "m.onnx")
    shutil.copy(file.with_name("m.onnx.data"), tmp_path)
    assert Model.load(tmp_path / "m.onnx").digest == Model.load(file).digest


# ---------------------------------------------------------------- weights inside and outside


def test_external_weights_survive_every_way_of_saving(tmp_path: Path) -> None:
    original = big_cnn()
    expected = run(original, FEEDS)["y"]
    loaded = Model.load(stored_externally(tmp_path / "a"))
    loaded.check()
    written = loaded.save(tmp_path / "b" / "inside.onnx")
    assert [f.name for f in written] == ["inside.onnx"]
    written = loaded.save(tmp_path / "c" / "outside.onnx", external_data=True)
    assert [f.name for f in written] == ["outside.onnx", "outside.onnx.data"]
    shutil.rmtree(tmp_path / "a")
    for file in ("b/inside.onnx", "c/outside.onnx"):
        again = Model.load(tmp_path / file)
        assert again.digest == original.digest
        np.testing.assert_array_equal(run(again, FEEDS)["y"], expected)


def test_saving_over_its_own_data_file(tmp_path: Path) -> None:
    file = stored_externally(tmp_path)
    loaded = Model.load(file)
    digest, weight = loaded.digest, np.array(loaded.initializer("w3"))
    smaller = loaded.clone()
    smaller.ir.graph.initializers["w1"].const_value = ir.tensor(np.zeros((64, 3, 3, 3), "f"))
    smaller.ir.graph.sort()
    smaller.save(file, external_data=True)
    np.testing.assert_array_equal(loaded.initializer("w3"), weight)
    assert loaded.digest == digest
    assert Model.load(file).digest == smaller.digest != digest


def test_relative_paths_outlive_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_externally(tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = Model.load("m.onnx")
    monkeypatch.chdir("/")
    assert loaded.digest == big_cnn().digest


@pytest.mark.parametrize("make", [small_cnn, branches, with_strings], ids=["cnn", "if", "strings"])
@pytest.mark.parametrize("external", [False, True])
def test_size_and_digest_are_those_of_the_file(
    tmp_path: Path, make: Callable[[], Model], external: bool
) -> None:
    model = make()
    model.save(tmp_path / "in.onnx")
    model.save(tmp_path / "m.onnx", external_data=external)
    loaded = Model.load(tmp_path / "m.onnx")
    loaded.check()
    assert loaded.digest == model.digest
    assert loaded.size_bytes == model.size_bytes == len(loaded.to_bytes())
    assert loaded.size_bytes == (tmp_path / "in.onnx").stat().st_size
    assert loaded.weight_bytes == model.weight_bytes


def test_weight_bytes() -> None:
    model = small_cnn()
    arrays = [model.initializer(name) for name in model.ir.graph.initializers]
    assert model.weight_bytes == sum(a.nbytes for a in arrays)
    assert with_strings().weight_bytes == len("catgrößer".encode())
    assert branches().weight_bytes == 3 * 64 * 64 * 4 + 2 * 4


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = small_cnn().to_bytes(), small_cnn().to_bytes()
    assert first == second == small_cnn().clone().to_bytes()
    for name in ("a.onnx", "b.onnx"):
        Model.load(stored_externally(tmp_path / name)).save(tmp_path / name / "out.onnx")
    assert (tmp_path / "a.onnx/out.onnx").read_bytes() == (
        tmp_path / "b.onnx/out.onnx"
    ).read_bytes()


@pytest.mark.parametrize("make", [small_cnn, big_cnn, branches, with_strings])
def test_the_file_is_what_protobuf_itself_writes(tmp_path: Path, make: Callable[[], Model]) -> None:
    model = make()
    whole = ir.to_proto(model.ir).SerializeToString(deterministic=True)
    model.save(tmp_path / "m.onnx", external_data=True)
    assert model.to_bytes() == whole
    assert Model.load(tmp_path / "m.onnx").to_bytes() == whole


def test_constants_in_files_of_their_own_are_taken_in(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x) => (float[N, 4] y) {
            c = Constant<value = float[4] {1, 2, 3, 4}>()  y = Add(x, c)
        }"""
    )
    proto = ir.to_proto(model.ir)
    values = proto.graph.node[0].attribute[0].t
    values.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(values), "d"))
    onnx.save(
        proto,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        convert_attribute=True,
        size_threshold=0,
        location="d",
    )
    loaded = Model.load(tmp_path / "m.onnx")
    assert (tmp_path / "d").exists()
    (tmp_path / "d").unlink()
    held = next(iter(loaded.ir.graph)).attributes["value"].as_tensor()
    np.testing.assert_array_equal(held.numpy(), [1, 2, 3, 4])
    loaded.check()
    with pytest.raises(ModelError, match="external data file 'd' is missing"):
        Model.load(tmp_path / "m.onnx")


def test_models_too_large_for_one_protobuf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = big_cnn()
    monkeypatch.setattr(model_module, "_EXTERNAL_DATA_ABOVE_BYTES", 1000)
    model.check()
    written = model.save(tmp_path / "m.onnx")
    assert [f.name for f in written] == ["m.onnx", "m.onnx.data"]
    whole = sum(f.stat().st_size for f in written)
    assert model.size_bytes == pytest.approx(whole, rel=0.1)
    with pytest.raises(ModelError, match="too large for one protobuf"):
        model.save(tmp_path / "m.onnx", external_data=False)
    with pytest.raises(ModelError, match="too large for one protobuf"):
        model.to_bytes()
    assert Model.load(written[0]).digest == model.digest


# ---------------------------------------------------------------- check


def test_check_reads_no_large_weights() -> None:
    def read() -> ir.Tensor:
        pytest.fail("the values were read")

    model = big_cnn()
    value = model.ir.graph.initializers["w3"]
    shape = ir.Shape(value.shape or ())
    value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, shape, name="w3")
    model.check()


def wrong_rank(model: Model) -> None:
    for value in (v for g in model.ir.graph.subgraphs() for v in g.initializers.values()):
        if value.name == "w":
            value.const_value = ir.tensor(np.zeros((3, 2000), np.float32), name="w")
            value.shape = ir.Shape([3, 2000])


def test_check_looks_into_subgraphs() -> None:
    model = branches()
    model.check()
    wrong_rank(model)
    with pytest.raises(ModelError, match="the graph is not valid ONNX"):
        model.check()


def test_check_leaves_the_model_alone(tmp_path: Path) -> None:
    for model in (branches(), big_cnn(), Model.load(stored_externally(tmp_path))):
        before = model.to_bytes()
        model.check()
        assert model.digest == model.digest
        assert model.to_bytes() == before


# ---------------------------------------------------------------- digest


def bias(model: Model) -> None:
    model.set_initializer("b1", np.zeros(8, np.float32))


def attribute(model: Model) -> None:
    next(n for n in model.ir.graph if n.op_type == "Gemm").attributes["alpha"] = ir.AttrFloat32(
        "alpha", 2.0
    )


def opset(model: Model) -> None:
    model.ir.opset_imports[""] = 21


def dimension(model: Model) -> None:
    model.ir.graph.inputs[0].shape = ir.Shape([1, 3, 16, 16])


@pytest.mark.parametrize("change", [bias, attribute, opset, dimension])
def test_the_digest_sees_changes(change: Callable[[Model], None]) -> None:
    model = small_cnn()
    other = model.clone()
    assert other.digest == model.digest
    change(other)
    assert other.digest != model.digest


def test_the_digest_sees_subgraphs_strings_and_functions() -> None:
    model = branches()
    other = branches()
    graph = next(iter(other.ir.graph.subgraphs()))
    graph.initializers["w"].const_value = ir.tensor(np.zeros((64, 64), np.float32), name="w")
    assert branches().digest == model.digest != other.digest

    words = with_strings()
    words.ir.graph.initializers["words"].const_value = ir.tensor(["ca", "tgrößer"], name="words")
    assert words.digest != with_strings().digest

    text = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        g (float[N] x) => (float[N] y) {{ y = own.f(x) }}
        <domain: "own", opset_import: ["" : 20]> f (a) => (b) {{ b = {op}(a) }}"""
    assert from_text(text.format(op="Relu")).digest != from_text(text.format(op="Abs")).digest


def test_the_digest_does_not_see_history() -> None:
    model = small_cnn()
    assert model.clone("cleanup").digest == Model(model.ir, path=Path("x")).digest == model.digest


# ---------------------------------------------------------------- saving


def refuse(number: int) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, "refused")

    return fail


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no space left on the disk"), (errno.EROFS, "the folder is not writable")],
)
def test_saving_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, number: int, message: str
) -> None:
    model = big_cnn()
    model.save(tmp_path / "m.onnx", external_data=external)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    bias_changed = model.clone()
    bias_changed.set_initializer("b1", np.ones(64, np.float32))
    if external:
        monkeypatch.setattr(model_file, "chunks", refuse(number))
    else:
        monkeypatch.setattr(files.os, "replace", refuse(number))
    with pytest.raises(OutputError, match=message):
        bias_changed.save(tmp_path / "m.onnx", external_data=external)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    for external in (False, True):
        with pytest.raises(OutputError, match="cannot be written"):
            small_cnn().save(tmp_path / "out/m.onnx", external_data=external)


# ---------------------------------------------------------------- the rest


def test_signature() -> None:
    signature = small_cnn().signature
    assert signature.inputs == (TensorSpec("x", "float32", ("N", 3, 16, 16)),)
    assert str(signature.outputs[0]) == "y: float32[N, 10]"
    assert signature.as_json()["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["N", 3, 16, 16]}
    ]
    unknown = from_text(
        """<ir_version: 10, opset_import: ["" : 20]> g (float x) => (float[] y) { y = Relu(x) }"""
    )
    assert [str(s) for s in unknown.signature.outputs] == ["y: float32[?]"]


def test_initializers_that_are_inputs_are_no_inputs() -> None:
    model = small_cnn()
    model.ir.graph.inputs.append(model.ir.graph.initializers["w1"])
    assert [s.name for s in model.signature.inputs] == ["x"]
    model.check()


def test_initializers_by_name() -> None:
    model = small_cnn()
    with pytest.raises(ModelError, match="has no initializer 'w9'"):
        model.initializer("w9")
    with pytest.raises(ModelError, match=r"expected float32\[8\], got float32\[9\]"):
        model.set_initializer("b1", np.zeros(9, np.float32))
    with pytest.raises(ModelError, match=r"expected float32\[8\], got float64\[8\]"):
        model.set_initializer("b1", np.zeros(8))


def test_clones_share_weights_and_nothing_else() -> None:
    model = small_cnn()
    before, digest = model.to_bytes(), model.digest
    clone = model.clone("step")
    weights = model.ir.graph.initializers["w1"].const_value
    assert clone.ir.graph.initializers["w1"].const_value is weights
    clone.ir.graph.initializers["w1"].name = "renamed"
    clone.ir.graph.inputs[0].dtype = ir.DataType.FLOAT16
    clone.ir.graph[0].outputs[0].dtype = ir.DataType.FLOAT16
    clone.ir.graph.inputs[0].name = "image"
    clone.ir.graph[0].op_type = "Other"
    clone.ir.opset_imports[""] = 7
    clone.ir.metadata_props["by"] = "somebody"
    assert model.to_bytes() == before
    assert model.digest == digest
    assert (clone.steps, model.steps) == (("step",), ())


def test_opset() -> None:
    assert small_cnn().opset == 20
    model = small_cnn()
    del model.ir.opset_imports[""]
    with pytest.raises(ModelError, match="imports no standard operator set"):
        _ = model.opset
