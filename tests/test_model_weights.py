"""Weights beside the graph: reading them, files that change, digests, and scratch files."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.errors import ModelError, OutputError
from edgecompress.model import Model
from edgecompress.weights import spool as weight_spool
from edgecompress.weights.data_file import DataFile
from edgecompress.weights.digests import tensor_digest
from edgecompress.weights.external_data import FileTensor, chunks, read
from edgecompress.weights.spool import WeightSpool
from tests.models import small_cnn

TYPES = [t for t in ir.DataType if t not in (ir.DataType.UNDEFINED, ir.DataType.STRING)]


def stored(folder: Path) -> Model:
    """A model whose weights, but for the smallest, lie in a file."""
    small_cnn(channels=64).save(folder / "m.onnx", external_data=True)
    return Model.load(folder / "m.onnx")


def large(model: Model) -> FileTensor:
    tensor = model.ir.graph.initializers["w3"].const_value
    assert isinstance(tensor, FileTensor)
    return tensor


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read from a data file."""
    sizes: list[int] = []
    fill = DataFile.fill

    def counted(self: DataFile, start: int, buffer: memoryview) -> None:
        sizes.append(len(buffer))
        fill(self, start, buffer)

    monkeypatch.setattr(DataFile, "fill", counted)
    return sizes


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (3,)], ids=str)
def test_read_gives_what_was_written(
    tmp_path: Path, dtype: ir.DataType, shape: tuple[int, ...]
) -> None:
    values = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype.numpy())
    tensor = ir.Tensor(values, dtype=dtype, name="t")
    (tmp_path / "d").write_bytes(b"abc" + tensor.tobytes())
    plain = ir.ExternalTensor(
        "d", 3, tensor.nbytes, dtype, shape=ir.Shape(shape), name="t", base_dir=tmp_path
    )
    found = read(plain)
    assert (found.dtype, found.shape) == (values.dtype, shape)
    assert found.tobytes() == values.tobytes()
    assert b"".join(map(bytes, chunks(plain, 4))) == tensor.tobytes()
    assert b"".join(map(bytes, chunks(tensor, 4))) == tensor.tobytes()


def test_a_weight_is_read_when_asked_for_and_not_kept(tmp_path: Path, filled: list[int]) -> None:
    model = stored(tmp_path)
    filled.clear()  # loading takes small weights into memory
    model.check()
    assert model.size_bytes > model.weight_bytes
    assert filled == []
    tensor = large(model)
    values = tensor.numpy()
    assert filled == [values.nbytes]
    values[:] = 0  # the caller's own
    np.testing.assert_array_equal(tensor.numpy(), small_cnn(channels=64).initializer("w3"))
    np.testing.assert_array_equal(np.asarray(tensor, np.float64), tensor.numpy())
    assert tensor.tobytes() == tensor.numpy().tobytes()
    assert tensor.raw is None


# ---------------------------------------------------------------- files that change


def vanish(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def overwrite(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.replace(other, file)


@pytest.mark.parametrize("harm", [vanish, cut, overwrite, replace])
@pytest.mark.parametrize(
    "use",
    [
        lambda m, d: m.digest,
        lambda m, d: m.initializer("w3"),
        lambda m, d: m.save(d / "again.onnx"),
        lambda m, d: m.save(d / "again.onnx", external_data=True),
    ],
    ids=["digest", "read", "save", "save beside"],
)
def test_a_data_file_that_changed_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], use: Callable[[Model, Path], object]
) -> None:
    model = stored(tmp_path)
    assert model.digest == small_cnn(channels=64).digest
    harm(tmp_path / "m.onnx.data")
    with pytest.raises(ModelError, match=r"m\.onnx\.data.*: the data file (cannot|changed|is cut)"):
        use(model, tmp_path)
    assert not (tmp_path / "again.onnx").exists()


def test_the_error_names_the_tensor(tmp_path: Path) -> None:
    model = stored(tmp_path)
    cut(tmp_path / "m.onnx.data")
    with pytest.raises(ModelError, match="tensor 'w3': the data file changed after"):
        large(model).numpy()


# ---------------------------------------------------------------- digests


def test_each_weight_is_hashed_once(tmp_path: Path, filled: list[int]) -> None:
    model = stored(tmp_path)
    filled.clear()
    digest = model.digest
    assert digest == small_cnn(channels=64).digest
    external = sum(
        t.nbytes
        for t in model.ir.graph.initializers.values()
        for t in [t.const_value]
        if isinstance(t, FileTensor)
    )
    assert sum(filled) == external
    filled.clear()
    assert model.digest == model.clone("cleanup").digest == digest
    assert filled == []
    changed = model.clone()
    changed.set_initializer("w3", np.zeros((64, 64, 1, 1), np.float32))
    filled.clear()
    assert changed.digest != digest
    assert filled == []
    assert model.digest == digest


def test_plain_external_tensors_are_hashed_each_time(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(8))
    plain = ir.ExternalTensor(
        "d", 0, 8, ir.DataType.FLOAT, shape=ir.Shape([2]), name="t", base_dir=tmp_path
    )
    before = tensor_digest(plain)
    (tmp_path / "d").write_bytes(b"12345678")
    assert tensor_digest(plain) != before


# ---------------------------------------------------------------- the spool


def test_a_spool_gives_back_what_it_took(tmp_path: Path) -> None:
    spool = WeightSpool(tmp_path)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1, shape).astype(np.float32) for shape in ((5, 7), (), (0, 3), (9,))]
    packed = rng.integers(-8, 8, (3, 3)).astype(ir.DataType.INT4.numpy())
    tensors = [spool.put(f"t{i}", a, ir.DataType.FLOAT) for i, a in enumerate(arrays)]
    first = tensor_digest(tensors[0])
    four_bits = spool.put("four", packed, ir.DataType.INT4)
    for tensor, array in zip(tensors, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
    np.testing.assert_array_equal(four_bits.numpy(), packed)
    assert tensor_digest(tensors[0]) == first == tensor_digest(ir.tensor(arrays[0]))
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_model_saves_what_lies_in_a_spool(tmp_path: Path) -> None:
    spool = WeightSpool(tmp_path)
    model = small_cnn(channels=64)
    expected = model.to_bytes()
    for name, value in model.ir.graph.initializers.items():
        if value.const_value is not None:
            array = value.const_value.numpy()
            value.const_value = spool.put(name, array, value.const_value.dtype)
    del spool
    model.save(tmp_path / "a.onnx", external_data=True)
    assert model.to_bytes() == Model.load(tmp_path / "a.onnx").to_bytes() == expected
    assert {file.name for file in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data"}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux does")
def test_a_spool_goes_with_its_last_tensor(tmp_path: Path) -> None:
    gc.collect()
    before = descriptors()
    spool = WeightSpool(tmp_path)
    tensor = spool.put("t", np.zeros(9, np.float32), ir.DataType.FLOAT)
    del spool
    gc.collect()
    assert (descriptors(), tensor.numpy().size) == (before + 1, 9)
    del tensor
    gc.collect()
    assert descriptors() == before


def test_a_closed_spool_says_so(tmp_path: Path) -> None:
    spool = WeightSpool(tmp_path)
    spool.close()
    tensor = spool.put("t", np.zeros(9, np.float32), ir.DataType.FLOAT)
    spool.close()
    with pytest.raises(ModelError, match="tensor 't': the data file was closed"):
        tensor.numpy()


def test_a_few_bytes_stay_in_memory(tmp_path: Path) -> None:
    spool = WeightSpool(tmp_path, keep_bytes=100)
    tensors = [ir.tensor(np.full(20, i, np.float32), name=f"t{i}") for i in range(3)]
    kept = [spool.keep(tensor) for tensor in tensors]
    assert [isinstance(tensor, FileTensor) for tensor in kept] == [False, True, True]
    assert [tensor.name for tensor in kept] == ["t0", "t1", "t2"]
    assert spool.keep(kept[1]) is kept[1]
    for tensor, original in zip(kept, tensors, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), original.numpy())


def test_a_spool_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"the folder vanished|cannot be written"):
        WeightSpool(tmp_path / "gone").put("t", np.zeros(9), ir.DataType.DOUBLE)

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(weight_spool.DataFile, "append", full)
    with pytest.raises(OutputError, match="no space left on the disk"):
        WeightSpool(tmp_path).put("t", np.zeros(9), ir.DataType.DOUBLE)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import numpy as np, onnx_ir as ir, os, signal
        from edgecompress.weights.spool import WeightSpool
        spool = WeightSpool({os.fspath(tmp_path)!r})
        tensor = spool.put("t", np.zeros(1000), ir.DataType.DOUBLE)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
