"""Rows of many lengths: buckets, padding, shards, splits, copies, and sets in other processes."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecompress.data.calibration import CalibrationSet, DataSpec, PreprocessSpec
from edgecompress.data.spool import Spool
from edgecompress.errors import DataError, OutputError
from edgecompress.model import Signature, TensorSpec
from tests.texts import PAD, WORDS, ids_of, save_lines, save_tokenizer, text_rows, token_inputs

SEQUENCES = Signature((TensorSpec("x", "float32", ("N", "length", 2)),), ())


def random_lines(count: int, longest: int = 6, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def save_images(folder: Path, *seeds: int) -> None:
    folder.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_hold_rows_of_one_length(tmp_path: Path, batch_size: int) -> None:
    lines = random_lines(40)
    save_lines(tmp_path / "x.txt", *lines)
    data = text_rows(tmp_path, {"validation": {"path": "x.txt"}, "batch_size": batch_size})
    seen: list[int] = []
    firsts = []
    for number, batch in enumerate(data.batches("validation")):
        assert batch.number == number
        assert batch.rows == len(batch.index) <= batch_size
        assert batch.mask is None
        assert batch.inputs["attention_mask"].all()
        for row, ids in zip(batch.index, batch.inputs["input_ids"], strict=True):
            assert ids.tolist() == ids_of(lines[row])
        seen += batch.index.tolist()
        firsts.append(batch.index[0])
    assert sorted(seen) == list(range(40))
    assert firsts == sorted(firsts)


def test_rows_are_padded_where_the_length_is_fixed(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", "a b", "c d e", "f")
    spec = {"validation": {"path": "x.txt"}}
    (batch,) = text_rows(tmp_path, spec, token_inputs(length=6)).batches("validation")
    assert batch.inputs["input_ids"][0].tolist() == [*ids_of("a b"), PAD, PAD]
    assert batch.mask is not None
    np.testing.assert_array_equal(batch.mask, np.arange(6) < [[4], [5], [3]])
    np.testing.assert_array_equal(batch.inputs["attention_mask"], batch.mask)
    (full,) = text_rows(tmp_path, spec, token_inputs(length=3)).batches("validation")
    assert full.mask is None
    assert full.inputs["input_ids"].shape == (3, 3)


def test_a_mask_among_the_arrays_counts_too(tmp_path: Path) -> None:
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    np.savez(tmp_path / "x.npz", input_ids=np.ones((3, 3), int), attention_mask=mask)
    signature = token_inputs("input_ids", "attention_mask")
    spec = DataSpec(validation={"path": "x.npz"}, batch_size=2)
    batches = CalibrationSet.open(spec, signature, base=tmp_path).batches("validation")
    for batch in batches:
        np.testing.assert_array_equal(batch.mask, mask[batch.index] != 0)


def test_fixed_batches_leave_out_what_does_not_fill_them(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", "a", "b c", "d", "e", "f g h")
    data = text_rows(tmp_path, {"validation": {"path": "x.txt"}}, token_inputs(batch=2))
    (batch,) = data.batches("validation")
    assert batch.inputs["input_ids"].tolist() == [ids_of("a"), ids_of("d")]
    assert batch.index.tolist() == [0, 1]
    assert data.validation_rows == 2
    with pytest.raises(DataError, match=r"takes 4 rows at once, there are only 3 .* of one length"):
        text_rows(tmp_path, {"validation": {"path": "x.txt"}}, token_inputs(batch=4))


@pytest.mark.parametrize("shards", [1, 2, 3, 50])
def test_shards_share_out_the_same_batches(tmp_path: Path, shards: int) -> None:
    save_lines(tmp_path / "x.txt", *random_lines(30))
    data = text_rows(tmp_path, {"validation": {"path": "x.txt"}, "batch_size": 4})
    whole = list(data.batches("validation"))
    parts = [list(data.batches("validation", shard=(k, shards))) for k in range(shards)]
    joined = sorted((batch for part in parts for batch in part), key=lambda batch: batch.number)
    assert [b.number for b in joined] == [b.number for b in whole]
    for mine, other in zip(joined, whole, strict=True):
        np.testing.assert_array_equal(mine.inputs["input_ids"], other.inputs["input_ids"])
    with pytest.raises(ValueError, match="expected a shard"):
        data.batches("validation", shard=(shards, shards))


def test_the_sample_is_of_middle_length(tmp_path: Path) -> None:
    lines = ["a", "a b", "b c", "c d", "a b c d e f", "b c d e f g"]
    save_lines(tmp_path / "x.txt", *lines)
    data = text_rows(tmp_path, {"validation": {"path": "x.txt"}})
    assert data.sample()["input_ids"].tolist() == [ids_of("a b")]
    assert data.sample(8)["input_ids"].shape == (3, 4)


# ---------------------------------------------------------------- rows of many shapes


BATCHES = (
    "import numpy as np\n"
    "def rows():\n"
    "    for length in (3, 1, 3, 2):\n"
    "        x = np.full((2, length, 2), length, np.float32)\n"
    "        yield {'x': x}, np.array([length, length])\n"
)


@pytest.mark.parametrize("form", ["yielded", "npz"])
def test_rows_of_many_lengths(tmp_path: Path, form: str) -> None:
    lengths = np.repeat([3, 1, 3, 2], 2)
    if form == "yielded":
        (tmp_path / "mine.py").write_text(BATCHES)
        table = {"path": "mine.py:rows"}
    else:
        values = np.repeat(lengths, lengths)[:, None] * np.ones((1, 2), np.float32)
        arrays = {"x": values.astype(np.float32), "x_lengths": lengths, "y": lengths}
        np.savez(tmp_path / "x.npz", **arrays)
        table = {"path": "x.npz", "labels": "y"}
    data = CalibrationSet.open(DataSpec(validation=table), SEQUENCES, base=tmp_path)
    np.testing.assert_array_equal(data.labels("validation"), lengths)
    batches = list(data.batches("validation"))
    assert [b.inputs["x"].shape for b in batches] == [(4, 3, 2), (2, 1, 2), (2, 2, 2)]
    for batch in batches:
        assert (batch.inputs["x"] == batch.labels[:, None, None]).all()
    assert len(data.digest) == 64


def test_batches_of_one_shape_are_joined_on_disk(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BATCHES.replace("(3, 1, 3, 2)", "(3, 3)"))
    spec = DataSpec(validation={"path": "mine.py:rows"})
    data = CalibrationSet.open(spec, SEQUENCES, base=tmp_path)
    assert isinstance(data._parts["validation"].feeds[0].array.base, np.memmap)
    (batch,) = data.batches("validation")
    assert batch.inputs["x"].shape == (4, 3, 2)


def test_labels_of_sequences_are_filled_up(tmp_path: Path) -> None:
    source = BATCHES.replace("np.array([length, length])", "np.full((2, length), length)")
    (tmp_path / "mine.py").write_text(source)
    spec = DataSpec(validation={"path": "mine.py:rows"})
    labels = CalibrationSet.open(spec, SEQUENCES, base=tmp_path).labels("validation")
    assert labels is not None
    assert labels[2].tolist() == [1, -100, -100]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("np.float32", "(np.float32 if length == 3 else float)", "batch 1: batches differ: expec"),
        ("(2, length, 2)", "(2, 2, 2)[: length + 1]", "batch 1: batches differ: .* of 3 axes"),
        ("(2, length, 2)", "(2, length, length)", r"got rows of shape \[1, 1\]"),
        ("{'x': x}", "{'xy'[length % 2]: x}", "batch 3 has the arrays x, the first one y"),
        ("{'x': x}", "{'x': x / (length != 2)}", "row 6: 4 NaN or infinite values"),
        ("{'x': x}", "{'x': np.float32(1)}", "expected rows, got a single value"),
        ("{'x': x}", "{'x': np.array([None])}", "expected rows, got Python objects"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_refused_batches(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(BATCHES.replace(old, new))
    with pytest.raises(DataError, match=message):
        CalibrationSet.open(DataSpec(validation={"path": "mine.py:rows"}), SEQUENCES, base=tmp_path)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([2, 1], "sum up to 3, array 'x' has 4"),
        ([4, 0], "each row needs one"),
        ([2.0, 2.0], "expected a list of integers"),
    ],
)
def test_refused_lengths(tmp_path: Path, lengths: list[float], message: str) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((4, 2), np.float32), x_lengths=lengths)
    with pytest.raises(DataError, match=message):
        CalibrationSet.open(DataSpec(validation={"path": "x.npz"}), SEQUENCES, base=tmp_path)


def test_large_members_of_an_archive_are_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecompress.data.archives._MAP_ABOVE_BYTES", 0)
    x = np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32)
    for name, array in (("c", x), ("f", np.asfortranarray(x))):
        np.savez(tmp_path / f"{name}.npz", other=x[:2], x=array)
        spec = DataSpec(validation={"path": f"{name}.npz"})
        data = CalibrationSet.open(spec, SEQUENCES, base=tmp_path)
        assert isinstance(data._parts["validation"].feeds[0].array.base, np.memmap)
        np.testing.assert_array_equal(next(data.batches("validation")).inputs["x"], x)
    content = bytearray((tmp_path / "c.npz").read_bytes())
    content[-300] ^= 0xFF
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(DataError, match="array 'x' cannot be read: Bad CRC-32"):
        CalibrationSet.open(DataSpec(validation={"path": "c.npz"}), SEQUENCES, base=tmp_path)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    spool = Spool(np.int32)
    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(OutputError, match=r"No space left on device\n.*TMPDIR"):
        spool.append([1, 2])


# ---------------------------------------------------------------- splits and copies


def texts_of(data: CalibrationSet, split: Any) -> list[bytes]:
    return [ids.tobytes() for b in data.batches(split) for ids in b.inputs["input_ids"]]


def test_copies_of_validation_rows_do_not_calibrate(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", *random_lines(60, longest=2))
    data = text_rows(tmp_path, {"path": "x.txt"})
    calibration, validation = (texts_of(data, s) for s in ("calibration", "validation"))
    assert not {*calibration} & {*validation}
    left_out = data.describe()["left_out_copies"]
    assert left_out > 0
    assert len(calibration) + left_out + len(validation) == 60


def test_copies_between_two_files(tmp_path: Path) -> None:
    save_lines(tmp_path / "a.tsv", "a b\tc", "d\te f", "g\th")
    save_lines(tmp_path / "b.tsv", "1\tc\tx y", "2\tg h\tA  B")
    spec = {
        "calibration": {"path": "a.tsv", "texts": [1, 2]},
        "validation": {"path": "b.tsv", "texts": [2, 3], "labels": 1},
    }
    data = text_rows(tmp_path, spec)
    assert data.describe()["left_out_copies"] == 1
    assert (data.calibration_rows, data.validation_rows) == (5, 4)
    assert data.describe()["calibration_source"] == "a.tsv"
    assert data.describe()["validation_source"] == "b.tsv"
    save_lines(tmp_path / "b.tsv", *(f"1\t{a}\t{b}" for a, b in ("ac", "bd")))
    save_lines(tmp_path / "a.tsv", "a\tb", "c\td")
    with pytest.raises(DataError, match="all 4 calibration rows are copies of validation rows"):
        text_rows(tmp_path, spec)


def test_texts_of_a_record_stay_together(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.tsv", *(f"{i}\t{'a ' * (i + 1)}\t{'b ' * (i + 1)}" for i in range(9)))
    data = text_rows(tmp_path, {"path": "x.tsv", "texts": [2, 3], "labels": 1, "rows": 6})
    for split in ("calibration", "validation"):
        labels = data.labels(split)  # type: ignore[arg-type]
        np.testing.assert_array_equal(labels[0::2], labels[1::2])
    assert (data.calibration_rows, data.validation_rows) == (6, 6)
    both = [*data.labels("calibration"), *data.labels("validation")]  # type: ignore[misc]
    assert len({*both}) == 6


def test_copies_of_images_do_not_calibrate(tmp_path: Path) -> None:
    save_images(tmp_path / "a/0", 0, 1, 2)
    save_images(tmp_path / "b/0", 2, 3)
    signature = Signature((TensorSpec("x", "float32", ("N", 3, 4, 4)),), ())
    tables = {"calibration": {"path": "a"}, "validation": {"path": "b"}}
    spec = DataSpec(**tables, preprocess={"scale": 0.1})
    data = CalibrationSet.open(spec, signature, base=tmp_path)
    assert (data.calibration_rows, data.describe()["left_out_copies"]) == (2, 1)


# ---------------------------------------------------------------- the model's own directory


def test_the_preprocessing_of_the_model_is_the_default_for_pixels(tmp_path: Path) -> None:
    save_images(tmp_path / "a/0", 0, 1)
    np.save(tmp_path / "x.npy", np.ones((2, 3, 4, 4), np.float32))
    signature = Signature((TensorSpec("x", "float32", ("N", 3, 4, 4)),), ())
    own = PreprocessSpec(scale=0.5)

    def first(path: str, **table: Any) -> float:
        spec = DataSpec(validation={"path": path}, **table)
        data = CalibrationSet.open(spec, signature, base=tmp_path, preprocess=own)
        return float(next(data.batches("validation")).inputs["x"].max())

    top = first("a", preprocess={"scale": 1})
    assert first("a") == top / 2
    assert first("x.npy") == 1


# ---------------------------------------------------------------- other processes


def count(data: CalibrationSet, shard: tuple[int, int]) -> tuple[list[int], str]:
    batches = data.batches("calibration", shard=shard)
    return [int(b.inputs["input_ids"].sum()) for b in batches], data.digest


def test_a_set_is_opened_again_in_another_process(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", *random_lines(60, longest=4))
    data = text_rows(tmp_path, {"path": "x.txt", "batch_size": 2})
    expected = [int(b.inputs["input_ids"].sum()) for b in data.batches("calibration")]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(count, [(data, (k, 2)) for k in range(2)])
    assert found[0][0] == expected[0::2]
    assert found[1][0] == expected[1::2]
    assert {digest for _, digest in found} == {data.digest}


def test_reopening_checks_nothing_and_encodes_one_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tokenizer(tmp_path / "model")
    save_lines(tmp_path / "x.txt", *random_lines(30))
    data = text_rows(tmp_path, {"path": "x.txt"})
    content = pickle.dumps(data)
    encoded: list[int] = []
    real = Spool.append
    monkeypatch.setattr("edgecompress.data.parts.Part.check", None)
    monkeypatch.setattr(Spool, "append", lambda s, v: (encoded.append(len(v)), real(s, v)))
    again: CalibrationSet = pickle.loads(content)
    assert not encoded
    assert again.calibration_rows == data.calibration_rows
    list(again.batches("calibration"))
    assert sum(encoded) == 2 * sum(len(x) // 8 for x in texts_of(data, "calibration"))
    assert again.describe() == data.describe()


def test_checked_rows_are_not_checked_again(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 3, 2), np.nan, np.float32))
    spec = DataSpec(path="x.npy")
    with pytest.raises(DataError, match="NaN"):
        CalibrationSet.open(spec, SEQUENCES, base=tmp_path)
    assert CalibrationSet.open(spec, SEQUENCES, base=tmp_path, checked=True).calibration_rows == 2
