from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgecompress.errors import ExportMismatchError, ModelError, SourceError
from edgecompress.model import Model
from edgecompress.rewrite import strip_provenance
from edgecompress.sources import load, load_checkpoint
from edgecompress.sources.agreement import relative_error
from tests.models import small_cnn

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = "examples/torch_module.py:build"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(image)).relu().mean((2, 3))))


class Named(nn.Module):
    """Takes keywords, integers and masks; returns a nested dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, object]:
        rows = self.table(ids) * mask[..., None]
        return {"rows": rows, "sums": (rows.sum(1), rows.sum(2))}


class Recurrent(nn.Module):
    """The second input carries the batch at its second place."""

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + state[0, 0], state * 2


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, -1) if x.shape[0] == 4 else x


class Wrong(nn.Module):
    """Computes one thing while it is traced, and another one outside."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if torch.compiler.is_exporting() else x * 3


def image(rows: int = 2) -> tuple[torch.Tensor]:
    return (torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)


@pytest.fixture(scope="module")
def exported() -> object:
    return load(EXAMPLE, base=ROOT)


def test_an_onnx_file_stays_as_it_is(tmp_path: Path) -> None:
    small_cnn().save(tmp_path / "net.onnx")
    loaded = load("net.onnx", base=tmp_path)
    assert loaded.kind == "onnx"
    assert loaded.origin == "net.onnx"
    assert loaded.export_error is None
    assert loaded.reference is None
    assert loaded.model.digest == Model.load(tmp_path / "net.onnx").digest


def test_a_callable_is_built_exported_and_checked(exported) -> None:
    assert exported.kind == "torch"
    assert exported.origin == EXAMPLE
    assert [str(s) for s in exported.model.signature.inputs] == ["image: float32[batch, 3, 32, 32]"]
    assert [str(s) for s in exported.model.signature.outputs] == ["output: float32[batch, 10]"]
    assert exported.model.opset == 20
    assert 0 <= exported.export_error < 1e-5
    assert exported.reference.outputs["output"].shape == (2, 10)
    assert "BatchNormalization" not in {node.op_type for node in exported.model.ir.graph}


def test_the_export_tells_nothing_of_the_machine(exported) -> None:
    data = exported.model.to_bytes()
    for secret in (str(Path.cwd()), str(Path.home()), str(ROOT), "site-packages", 'File "', "aten"):
        assert secret.encode() not in data


def test_the_same_source_gives_the_same_bytes(exported) -> None:
    again = load(EXAMPLE, base=ROOT)
    assert again.model.to_bytes() == exported.model.to_bytes()
    assert again.export_error == exported.export_error


def test_a_module_keeps_its_training_flags_and_its_weights_apart() -> None:
    module = Net().train()
    module.norm.eval()
    before = module.head.weight.detach().clone()
    loaded = load(module, example_inputs=image())
    assert module.training
    assert module.conv.training
    assert not module.norm.training
    with torch.no_grad():
        module.head.weight.zero_()
    names = loaded.model.ir.graph.initializers
    kept = next(name for name in names if "head.weight" in name)
    assert np.array_equal(loaded.model.initializer(kept), before.numpy())


def test_inputs_by_name_and_nested_outputs() -> None:
    inputs = {"mask": torch.ones(2, 5), "ids": torch.arange(10).reshape(2, 5) % 7}
    loaded = load(Named(), example_inputs=inputs)
    assert [s.name for s in loaded.model.signature.inputs] == ["ids", "mask"]
    assert [s.name for s in loaded.model.signature.outputs] == ["rows", "sums_0", "sums_1"]
    assert [s.shape for s in loaded.model.signature.inputs] == [("batch", 5), ("batch", 5)]
    assert loaded.export_error < 1e-6


def test_inputs_with_another_first_dimension_stay_fixed() -> None:
    loaded = load(Recurrent(), example_inputs=(torch.randn(4, 3), torch.randn(2, 4, 3)))
    assert [s.shape for s in loaded.model.signature.inputs] == [("batch", 3), (2, 4, 3)]
    assert [s.name for s in loaded.model.signature.outputs] == ["output_0", "output_1"]


def test_a_batch_that_the_module_fixes_names_the_cure() -> None:
    with pytest.raises(SourceError, match="specialized it to be a constant") as caught:
        load(FixedBatch(), example_inputs=(torch.randn(4, 6),))
    assert "dynamic_batch = false" in str(caught.value)
    loaded = load(FixedBatch(), example_inputs=(torch.randn(4, 6),), dynamic_batch=False)
    assert loaded.model.signature.inputs[0].shape == (4, 6)


def test_a_graph_that_computes_something_else_is_refused() -> None:
    with pytest.raises(ExportMismatchError, match=r"output 'output'.*got 0\.33"):
        load(Wrong(), example_inputs=(torch.ones(2, 3),))


def test_a_saved_program_keeps_its_dynamic_dimensions(tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("rows", min=2, max=64)},)
    program = torch.export.export(Net().eval(), image(), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = load(tmp_path / "net.pt2")
    assert loaded.kind == "exported-program"
    assert loaded.model.signature.inputs[0].shape == ("batch", 3, 8, 8)
    assert [s.name for s in loaded.model.signature.outputs] == ["output"]
    assert loaded.export_error < 1e-5


def test_a_broken_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="it is no archive, or truncated"):
        load("net.pt2", base=tmp_path)


@pytest.mark.parametrize(
    ("name", "what", "cure"),
    [
        ("weights.pth", "is a checkpoint", "load_checkpoint"),
        ("weights.safetensors", "is a checkpoint", "load_checkpoint"),
        ("empty", "is a folder", "name an .onnx file"),
        ("notes.txt", "expected a model, got 'notes.txt'", "name an .onnx file"),
        ("absent", "no such file, and no callable", "name an .onnx file"),
        ("net.pt2", "no such file", "check the path"),
    ],
)
def test_refused_sources(tmp_path: Path, name: str, what: str, cure: str) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError) as caught:
        load(name, base=tmp_path)
    assert what in str(caught.value)
    assert cure in str(caught.value.cure)


def test_an_absent_onnx_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load("absent.onnx", base=tmp_path)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return 1", "expected it to return .module, example inputs., got int"),
        ("return nn.ReLU(), (1,)", "tuple of tensors.*got int"),
        ("return nn.ReLU(), ()", "got tuple without tensors"),
        ("return 'relu', (torch.ones(2, 2),)", "expected a torch.nn.Module, got str"),
        ("return nn.Linear(3, 2), (torch.ones(2, 2),)", "fails on its example inputs"),
        ("raise ValueError('no weights')", "failed when it was called: ValueError: no weights"),
    ],
)
def test_callables_that_return_something_else(tmp_path: Path, body: str, what: str) -> None:
    (tmp_path / "net.py").write_text(
        f"import torch\nfrom torch import nn\ndef make():\n    {body}\n"
    )
    with pytest.raises(SourceError, match=what):
        load("net.py:make", base=tmp_path)


def test_example_inputs_belong_to_modules() -> None:
    with pytest.raises(SourceError, match="says nothing of its inputs"):
        load(Net())
    with pytest.raises(SourceError, match="belong to a module"):
        load("net.onnx", example_inputs=image())


def test_importing_sources_loads_no_torch() -> None:
    import subprocess

    code = "import sys, edgecompress.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_read(tmp_path: Path, key: str | None, zipped: bool) -> None:
    weights = Net().state_dict()
    held = weights if key is None else {key: weights, "epoch": 3}
    torch.save(held, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    read = load_checkpoint(tmp_path / "net.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in weights)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code of the checkpoint ran",))


def test_checkpoints_that_run_code_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": Payload()}, tmp_path / "zip.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"weight": Payload()}))
    torch.save(Net(), tmp_path / "module.pt")
    for name in ("zip.pth", "plain.bin", "module.pt"):
        with pytest.raises(SourceError, match="needs to unpickle more than tensors"):
            load_checkpoint(tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_files_without_tensors_by_name(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"weight": 3}, tmp_path / "number.pt")
    (tmp_path / "text.ckpt").write_bytes(b"")
    for name, what in [
        ("list.pt", "got list"),
        ("number.pt", "got int under 'weight'"),
        ("text.ckpt", "is not a checkpoint, or it is truncated"),
        ("absent.pt", "no such file"),
    ]:
        with pytest.raises(SourceError, match=what):
            load_checkpoint(tmp_path / name)


def test_strip_provenance_leaves_names_and_the_cloned_model_alone() -> None:
    model = small_cnn()
    node = model.ir.graph[0]
    node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "net.py", line 1'
    node.doc_string = "at home"
    model.ir.graph.initializers["w1"].const_value.doc_string = "weights"
    model.ir.metadata_props["author"] = "me"
    before = model.to_bytes()
    clone = model.clone()
    assert strip_provenance(clone) == 3
    assert strip_provenance(clone) == 0
    assert model.to_bytes() == before
    assert clone.to_bytes() == small_cnn().to_bytes()


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.2], [1.0, 2.0], 0.1),
        ([0.5], [0.0], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [1.0, 1.0], np.nan),
        ([1.0, 1.0], [np.inf, 1.0], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_relative_error(got: list[float], want: list[float], error: float) -> None:
    found = relative_error(np.array(got, np.float32), np.array(want, np.float32))
    assert found == pytest.approx(error, rel=1e-6, nan_ok=True)
