"""Rows from every kind of source, their split, their preprocessing, and every refusal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from edgecompress.data.calibration import CalibrationSet, DataSpec, PreprocessSpec
from edgecompress.data.splits import split_rows
from edgecompress.errors import DataError, MissingDependencyError
from edgecompress.model import Model, Signature, TensorSpec
from edgecompress.references import is_reference, load_callable

Shared = Callable[[str], Path]
VECTORS = Signature((TensorSpec("x", "float32", ("N", 2)),), ())
IMAGES = Signature((TensorSpec("image", "float32", ("N", 3, 4, 4)),), ())
PAIR = Signature(
    (TensorSpec("ids", "int64", ("N", "length")), TensorSpec("mask", "int64", ("N", "length"))), ()
)


def opened(
    folder: Path, spec: dict[str, Any], signature: Signature = VECTORS, seed: int = 0
) -> CalibrationSet:
    return CalibrationSet.open(DataSpec(**spec), signature, base=folder, seed=seed)


def vectors(rows: int) -> np.ndarray:
    return np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)


def joined(data: CalibrationSet, split: Any, size: int | None = None) -> np.ndarray:
    return np.concatenate([next(iter(b.inputs.values())) for b in data.batches(split, size)])


def save_images(folder: Path, counts: dict[str, int], size: tuple[int, int] = (4, 4)) -> None:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


# ---------------------------------------------------------------- splits

limits = st.none() | st.integers(1, 60)


@given(st.integers(2, 50), limits, limits, st.floats(0, 1, exclude_max=True), st.integers(0, 2**32))
def test_splits_are_disjoint_and_never_empty(
    available: int, calibration: int | None, validation: int | None, share: float, seed: int
) -> None:
    first, second = split_rows(
        available, calibration, validation, share, np.random.default_rng(seed)
    )
    assert len(first) >= 1
    assert len(second) >= 1
    assert len(np.union1d(first, second)) == len(first) + len(second) <= available
    assert len(first) <= (calibration or available)
    assert len(second) <= (validation or available)
    if calibration is None and validation is None:
        assert len(first) + len(second) == available


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_cover_every_row_once_and_in_order(tmp_path: Path, batch_size: int) -> None:
    np.save(tmp_path / "x.npy", vectors(20))
    data = opened(tmp_path, {"path": "x.npy", "validation_share": 0.35, "batch_size": batch_size})
    parts = [joined(data, split) for split in ("calibration", "validation")]
    assert [len(p) for p in parts] == [data.calibration_rows, data.validation_rows] == [13, 7]
    assert all((np.diff(part[:, 0]) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)[:, 0]), vectors(20)[:, 0])
    assert [b.rows for b in data.batches("calibration", 5)] == [5, 5, 3]


def test_two_tables_on_one_source_stay_disjoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", x=vectors(10))
    (tmp_path / "link.npz").symlink_to(tmp_path / "rows.npz")
    spec = {
        "calibration": {"path": "rows.npz", "rows": 4},
        "validation": {"path": "./link.npz", "inputs": {"x": "x"}, "rows": 5},
    }
    data = opened(tmp_path, spec)
    first, second = joined(data, "calibration"), joined(data, "validation")
    assert (len(first), len(second)) == (4, 5)
    assert not np.intersect1d(first, second).size


def test_two_arrays_of_one_file_are_two_sources(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=vectors(3), b=vectors(4) + 100, y=np.arange(4))
    spec = {
        "calibration": {"path": "rows.npz", "inputs": {"x": "a"}},
        "validation": {"path": "rows.npz", "inputs": {"x": "b"}, "labels": "y"},
    }
    data = opened(tmp_path, spec)
    np.testing.assert_array_equal(joined(data, "calibration"), vectors(3))
    np.testing.assert_array_equal(joined(data, "validation"), vectors(4) + 100)
    assert data.labels("calibration") is None
    np.testing.assert_array_equal(data.labels("validation"), np.arange(4))


@pytest.mark.parametrize("dtype", ["V4", "V8", [("a", "f4"), ("b", "f4")]], ids=str)
def test_raw_bytes_and_records_are_no_numbers(tmp_path: Path, dtype: Any) -> None:
    np.save(tmp_path / "x.npy", np.zeros((6, 2), dtype))
    with pytest.raises(DataError, match="expected x: float32"):
        opened(tmp_path, {"path": "x.npy"})


def test_rows_are_a_limit_and_the_seed_draws_them(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(100))
    spec = {"path": "x.npy", "rows": 10}
    first, same, other = (opened(tmp_path, spec, seed=s) for s in (1, 1, 2))
    assert first.calibration_rows + first.validation_rows == 10
    assert first.digest == same.digest != other.digest
    np.testing.assert_array_equal(joined(first, "calibration"), joined(same, "calibration"))


def test_the_digest_follows_content_and_not_places(tmp_path: Path) -> None:
    for name, array in (("a", vectors(4)), ("b", vectors(4)), ("c", vectors(4) + 1)):
        np.save(tmp_path / f"{name}.npy", array)
    a, b, c = (opened(tmp_path, {"path": f"{n}.npy"}).digest for n in "abc")
    assert a == b != c


def test_description_and_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(4))
    data = opened(tmp_path, {"path": "x.npy"})
    assert data.describe() == {
        "calibration_source": "x.npy",
        "calibration_rows": 2,
        "validation_source": "x.npy",
        "validation_rows": 2,
        "digest": data.digest,
    }
    np.testing.assert_array_equal(data.sample(2)["x"], joined(data, "validation"))


def test_labels_beside_an_npy_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(4))
    np.save(tmp_path / "y.npy", np.arange(4) * 10)
    data = opened(tmp_path, {"path": "x.npy", "labels": "y.npy"})
    batch = next(data.batches("validation"))
    np.testing.assert_array_equal(batch.inputs["x"][:, 0] * 5, batch.labels)
    with pytest.raises(DataError, match=r"z\.npy: no such file"):
        opened(tmp_path, {"path": "x.npy", "labels": "z.npy"})


def test_memory_mapped_rows_stay_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(4))
    data = opened(tmp_path, {"path": "x.npy"})
    assert isinstance(data._parts["calibration"].feeds[0].array, np.memmap)


def test_specs_survive_a_round_trip() -> None:
    spec = DataSpec(path="a", preprocess={"image": {"resize": [4, 5], "mean": [1, 2, 3]}})
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec
    assert "preprocess" in DataSpec.model_json_schema()["properties"]


def test_a_missing_split_is_named_when_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(4))
    data = opened(tmp_path, {"path": "x.npy", "validation_share": 0})
    assert (data.calibration_rows, data.validation_rows) == (4, 0)
    assert data.sample()["x"].shape == (1, 2)
    with pytest.raises(DataError, match="there are no validation rows"):
        data.batches("validation")


# ---------------------------------------------------------------- batch axes


def test_a_fixed_batch_axis_wins_and_the_rest_is_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(11))
    signature = Signature((TensorSpec("x", "float32", (2, 2)),), ())
    data = opened(tmp_path, {"calibration": {"path": "x.npy"}}, signature)
    assert [b.rows for b in data.batches("calibration", 8)] == [2] * 5
    assert data.calibration_rows == 10
    assert data.sample(1)["x"].shape == (2, 2)


def test_stateful_models_take_one_whole_feed_per_row(tmp_path: Path) -> None:
    signature = Signature(
        (
            TensorSpec("input", "float32", (None, None)),
            TensorSpec("state", "float32", (2, None, 3)),
            TensorSpec("sr", "int64", ()),
        ),
        (),
    )
    state = np.random.default_rng(0).normal(size=(4, 2, 1, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", input=vectors(4), state=state, sr=np.full(4, 16000))
    data = opened(tmp_path, {"calibration": {"path": "rows.npz"}}, signature)
    batches = list(data.batches("calibration"))
    shapes = {name: array.shape for name, array in batches[0].inputs.items()}
    assert shapes == {"input": (1, 2), "state": (2, 1, 3), "sr": ()}
    np.testing.assert_array_equal(batches[3].inputs["state"], state[3])


@pytest.mark.parametrize(
    ("given_dtype", "wanted"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("int32", "int64"),
        ("int64", "int32"),
        ("uint8", "int8"),
        ("bool", "bool"),
        ("float32", "bfloat16"),
    ],
)
def test_values_get_the_dtype_of_the_model(tmp_path: Path, given_dtype: str, wanted: str) -> None:
    np.save(tmp_path / "x.npy", (np.arange(12).reshape(6, 2) % 2).astype(given_dtype))
    signature = Signature((TensorSpec("x", wanted, ("N", 2)),), ())
    batch = next(opened(tmp_path, {"path": "x.npy"}, signature).batches("calibration"))
    assert batch.inputs["x"].dtype.name == wanted
    assert batch.inputs["x"].flags.c_contiguous


# ---------------------------------------------------------------- callables


@pytest.mark.parametrize(
    "body",
    [
        "def rows():\n    return {'x': x}",
        "def rows():\n    return {'x': x}, np.arange(6)",
        "def rows():\n    for i in range(0, 6, 4): yield {'x': x[i:i + 4]}, np.arange(6)[i:i + 4]",
    ],
)
def test_callables(tmp_path: Path, body: str) -> None:
    head = "import numpy as np\nx = np.arange(12, dtype=np.float32).reshape(6, 2)\n"
    (tmp_path / "mine.py").write_text(head + body)
    data = opened(tmp_path, {"path": "mine.py:rows"})
    values = np.concatenate([joined(data, "calibration"), joined(data, "validation")])
    np.testing.assert_array_equal(np.sort(values[:, 0]), vectors(6)[:, 0])
    labels = data.labels("validation")
    if labels is not None:
        np.testing.assert_array_equal(vectors(6)[labels], joined(data, "validation"))


def test_a_callable_may_split_by_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def rows(split):\n"
        "    n = {'calibration': 3, 'validation': 5}[split]\n"
        "    return {'x': np.full((n, 2), n, np.float32)}\n"
    )
    data = opened(tmp_path, {"path": "mine.py:rows"})
    assert (joined(data, "calibration") == 3).all()
    assert (joined(data, "validation") == 5).all()
    assert (data.calibration_rows, data.validation_rows) == (3, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def rows():\n    return 3", "expected a dictionary of arrays.*got int"),
        ("def rows():\n    return {}", "got an empty one"),
        ("def rows():\n    yield from []", "got an empty one"),
        ("def rows():\n    return {'x': [[1, 2], [3]]}", "failed: ValueError"),
        ("def rows():\n    raise OSError('gone')", r"mine\.py:2\): failed: OSError: gone"),
        ("def other():\n    pass", "defines no 'rows'; known: other"),
        ("rows = 3", "expected 'rows' to be callable, got int"),
        ("import missing_module_xyz\n", r"mine\.py:1: failed while.*missing_module_xyz"),
        ("\n\ndef rows(:\n", r"mine\.py:3: failed while it was imported: SyntaxError"),
        ("raise SystemExit(3)", r"mine\.py:1: failed while it was imported: SystemExit: 3"),
    ],
)
def test_refused_callables(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, {"path": "mine.py:rows"})


def test_references(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("VALUE = 7\n")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom helper import VALUE\n"
        "@dataclass\nclass Seven:\n    value: 'int' = VALUE\n"
    )
    before = list(sys.path)
    assert load_callable("mine.py:Seven", base=tmp_path, refuse=DataError)().value == 7
    assert sys.path == before
    assert load_callable("math:sqrt", base=tmp_path, refuse=DataError)(4) == 2
    assert is_reference("a.b:c")
    assert is_reference("../x y.py:f")
    assert not is_reference("data.npz")
    for reference, message in (
        ("mine.py", "expected 'path/to/file.py:name'"),
        ("gone.py:f", "no such file"),
        ("no_such_package.sub:f", "no module named 'no_such_package'"),
        ("math:sqr", "did you mean 'sqrt'"),
        ("data.npz/x:f", "expected a .py file or a module"),
    ):
        with pytest.raises(DataError, match=message):
            load_callable(reference, base=tmp_path, refuse=DataError)


# ---------------------------------------------------------------- images


def test_image_folders_have_classes_from_names(tmp_path: Path) -> None:
    save_images(tmp_path / "numbers", {"0007": 2, "12": 1})
    save_images(tmp_path / "words", {"cat": 1, "ant": 2})
    for name, labels in (("numbers", [7, 7, 12]), ("words", [0, 0, 1])):
        spec = {"validation": {"path": name}, "preprocess": {"scale": 1 / 255}}
        data = opened(tmp_path, spec, IMAGES)
        np.testing.assert_array_equal(data.labels("validation"), labels)
    first = np.asarray(Image.open(tmp_path / "words/ant/0.png"), np.float32)
    np.testing.assert_allclose(
        joined(data, "validation", 2)[0], first.transpose(2, 0, 1) / 255, rtol=1e-6
    )


def test_images_and_arrays_of_the_same_pixels_agree(tmp_path: Path) -> None:
    save_images(tmp_path / "images", {"0": 3}, size=(9, 7))
    pixels = np.stack(
        [np.asarray(Image.open(f)) for f in sorted((tmp_path / "images/0").iterdir())]
    )
    np.save(tmp_path / "nhwc.npy", pixels)
    np.save(tmp_path / "nchw.npy", pixels.transpose(0, 3, 1, 2).astype(np.float32))
    preprocess = {"resize": 5, "center_crop": 4, "mean": [1, 2, 3], "std": [4, 5, 6]}
    found = []
    for path in ("images", "nhwc.npy", "nchw.npy"):
        spec = {"calibration": {"path": path}, "preprocess": preprocess}
        found.append(joined(opened(tmp_path, spec, IMAGES), "calibration"))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_steps_of_preprocessing_in_order() -> None:
    pixels = np.arange(2 * 3 * 4 * 6, dtype=np.uint8).reshape(2, 3, 4, 6)
    spec = PreprocessSpec(
        channels="bgr", center_crop=(2, 4), scale=0.5, offset=-1, mean=(1, 2, 3), std=(2, 4, 8)
    )
    scale = np.float32([2, 4, 8])[:, None, None]
    mean = np.float32([1, 2, 3])[:, None, None]
    expected = (pixels[:, ::-1, 1:3, 1:5] * np.float32(0.5) - 1 - mean) / scale
    np.testing.assert_array_equal(spec.apply(pixels), expected)


@pytest.mark.parametrize(
    ("resize", "crop", "expected"),
    [(None, None, (6, 9)), (4, None, (4, 6)), ((3, 5), None, (3, 5)), (4, 2, (2, 2))],
)
def test_size_after_preprocessing(resize: Any, crop: Any, expected: tuple[int, int]) -> None:
    spec = PreprocessSpec(resize=resize, center_crop=crop)
    assert spec.output_size(6, 9) == expected
    assert spec.apply(np.zeros((1, 3, 6, 9), np.uint8)).shape == (1, 3, *expected)


def test_bilinear_resize_has_half_pixel_centres() -> None:
    row = np.float32([0, 4]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(PreprocessSpec(resize=(1, 4)).apply(row).ravel(), [0, 1, 3, 4])


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        (("N", 4, 4, 3), "float32", (1, 4, 4, 3)),
        (("N", 3, "h", "w"), "uint8", (1, 3, 4, 4)),
        (("N", 1, 4, 4), "uint8", (1, 1, 4, 4)),
    ],
)
def test_the_model_decides_layout_and_dtype(
    tmp_path: Path, shape: tuple[Any, ...], dtype: str, expected: tuple[int, ...]
) -> None:
    save_images(tmp_path / "images", {"0": 1})
    signature = Signature((TensorSpec("image", dtype, shape),), ())
    spec = {"calibration": {"path": "images"}, "preprocess": {"layout": "nhwc"}}
    batch = next(opened(tmp_path, spec, signature).batches("calibration"))
    assert batch.inputs["image"].shape == expected
    assert batch.inputs["image"].dtype == dtype


def test_grey_arrays_need_no_channel_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((4, 5, 5), 51, np.uint8))
    signature = Signature((TensorSpec("image", "float32", ("N", 1, 5, 5)),), ())
    spec = {"path": "x.npy", "preprocess": {"image": {"scale": 1 / 255}}}
    batch = next(opened(tmp_path, spec, signature).batches("calibration"))
    assert batch.inputs["image"].shape == (2, 1, 5, 5)
    np.testing.assert_allclose(batch.inputs["image"], 0.2, rtol=1e-6)


def test_pillow_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_images(tmp_path / "images", {"0": 1})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"edgecompress\[images\]"):
        opened(tmp_path, {"path": "images"}, IMAGES)


@pytest.mark.parametrize(
    ("break_it", "preprocess", "message"),
    [
        (lambda d: None, None, "pixels from 0 to 255 would feed image: float32"),
        (lambda d: (d / "0/0.png").write_bytes(b"no"), {}, r"0\.png: is not a readable image"),
        (
            lambda d: (d / "0/0.png").write_bytes((d / "0/0.png").read_bytes()[:60]),
            {},
            r"0\.png: is not a readable image",
        ),
        (lambda d: save_images(d, {"": 1}), {}, "holds 1 images beside the sub-folders"),
        (lambda d: save_images(d, {"1": 1}, (4, 5)), {}, r"got rows of shape \[3, 4, 5\]"),
        (lambda d: None, {"center_crop": 9}, "9x9 is larger than the image of 4x4"),
        (lambda d: None, {"resize": 6}, r"expected image.*got rows of shape \[3, 6, 6\]"),
        (lambda d: None, {"mean": [1, 2]}, "mean: expected 1 or 3 numbers.*got 2"),
        (lambda d: None, {"picture": {}}, "no input 'picture'; known: image"),
    ],
)
def test_refused_images(tmp_path: Path, break_it: Any, preprocess: Any, message: str) -> None:
    save_images(tmp_path / "d", {"0": 2})
    break_it(tmp_path / "d")
    spec = {"calibration": {"path": "d"}, "preprocess": preprocess}
    with pytest.raises(DataError, match=message):
        opened(tmp_path, spec, IMAGES)


def test_images_of_different_sizes_need_a_resize(tmp_path: Path) -> None:
    save_images(tmp_path / "d", {"0": 1})
    save_images(tmp_path / "d", {"1": 1}, (8, 5))
    signature = Signature((TensorSpec("image", "float32", ("N", 3, "h", "w")),), ())
    spec = {"calibration": {"path": "d"}, "preprocess": {}}
    with pytest.raises(DataError, match=r"images differ in size after preprocessing: \[3, 4, 4\]"):
        opened(tmp_path, spec, signature)
    spec["preprocess"] = {"resize": [4, 4]}
    assert joined(opened(tmp_path, spec, signature), "calibration").shape == (2, 3, 4, 4)


def test_an_empty_image_folder(tmp_path: Path) -> None:
    (tmp_path / "d/0").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        opened(tmp_path, {"path": "d"}, IMAGES)


# ---------------------------------------------------------------- refusals


def broken_npz(path: Path) -> None:
    np.savez(path, x=vectors(4))
    path.write_bytes(path.read_bytes()[:100])


def damaged_npz(path: Path) -> None:
    np.savez(path, x=vectors(4))
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)


def arrays(**named: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **named)


bad_row = vectors(8)
bad_row[5, 1] = np.nan
bad_row[6] = np.inf


@pytest.mark.parametrize(
    ("write", "spec", "message"),
    [
        (lambda p: None, {}, "rows.npz: no such file or folder"),
        (lambda p: None, {"path": "rows.csv"}, "rows.csv: no such file"),
        (lambda p: p.with_suffix(".xml").touch(), {"path": "rows.xml"}, r"expected .*got '\.xml'"),
        (broken_npz, {}, "cannot be read"),
        (damaged_npz, {}, "cannot be read"),
        (arrays(x=np.array([{}, 1], object)), {}, "array 'x' cannot be read: Object arrays"),
        (arrays(x=np.float32(3)), {}, "array 'x': expected rows.*got a single value"),
        (arrays(a=vectors(4), b=vectors(4)), {}, "no array 'x' for the model's input 'x'; .*a, b"),
        (arrays(rows=vectors(4)), {"inputs": {"x": "row"}}, "did you mean 'rows'"),
        (arrays(x=vectors(4)), {"inputs": {"y": "x"}}, "the model has no input 'y'; known: x"),
        (arrays(x=vectors(4)), {"labels": "y"}, "no array 'y' for the labels; known: x"),
        (arrays(x=vectors(4), y=[1, 2]), {"labels": "y"}, "equal length, got: 'x' has 4, 'y' has"),
        (arrays(x=np.ones((4, 3), "f")), {}, r"expected x: float32\[N, 2\], got rows of shape \[3"),
        (arrays(x=np.ones(4, "f")), {}, r"rows along the first axis, got an array of shape \[4\]"),
        (arrays(x=np.ones((4, 2), int)), {}, "expected x.*got int64"),
        (arrays(x=np.ones((4, 2), np.uint8)), {}, r"got uint8\n  -> add a \[data.preprocess\]"),
        (arrays(x=np.full((4, 2), "a")), {}, "expected x.*got <U1"),
        (arrays(x=bad_row), {"validation_share": 0}, "3 NaN or infinite values.*first in row 5"),
        (arrays(x=np.full((4, 2), 1e300)), {}, "4 NaN or infinite values as float32"),
        (arrays(x=vectors(0)), {}, "expected at least 2 rows, got 0"),
        (arrays(x=vectors(1)), {}, "expected at least 2 rows, got 1"),
        (arrays(x=vectors(9)), {"rows": 1}, "expected at least 2 rows, got 1"),
        (arrays(x=vectors(0)), {"validation_share": 0}, "expected at least 1 rows, got 0"),
    ],
)
def test_refused_data(tmp_path: Path, write: Any, spec: dict[str, Any], message: str) -> None:
    write(tmp_path / "rows.npz")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, {"path": "rows.npz", **spec})


def test_refused_npy(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"x\.npy: cannot be read"):
        opened(tmp_path, {"path": "x.npy"})
    np.save(tmp_path / "x.npy", np.array([{}], object))
    with pytest.raises(DataError, match=r"cannot be read.*Python objects"):
        opened(tmp_path, {"path": "x.npy"})


def test_refused_pairs(tmp_path: Path) -> None:
    ids = np.ones((4, 3), np.int64)
    np.savez(tmp_path / "short.npz", ids=ids, mask=ids[:, :2])
    np.savez(tmp_path / "none.npz", ids=ids)
    for path, message in (
        ("short.npz", "'length' is 3 for the input 'ids' and 2 here"),
        ("none.npz", "no array 'mask' for the model's input 'mask'; known: ids"),
    ):
        with pytest.raises(DataError, match=message):
            opened(tmp_path, {"path": path}, PAIR)
    np.savez(tmp_path / "pair.npz", ids=ids, mask=ids)
    with pytest.raises(DataError, match="which input are the images"):
        opened(tmp_path, {"path": "pair.npz", "preprocess": {"scale": 2}}, PAIR)


def test_integers_must_fit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2], [3, 400]]))
    signature = Signature((TensorSpec("x", "int8", ("N", 2)),), ())
    with pytest.raises(DataError, match="1 values outside int8, the first in row 1"):
        opened(tmp_path, {"calibration": {"path": "x.npy"}}, signature)


def test_refused_batch_axes(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=vectors(3), b=vectors(3))
    specs = (TensorSpec("a", "float32", (2, 2)), TensorSpec("b", "float32", (3, 2)))
    with pytest.raises(DataError, match="different numbers of rows per batch: 'a' 2, 'b' 3"):
        opened(tmp_path, {"calibration": {"path": "rows.npz"}}, Signature(specs, ()))
    few = Signature((TensorSpec("a", "float32", (8, 2)),), ())
    with pytest.raises(DataError, match="takes 8 rows at once, there are only 3 calibration"):
        opened(tmp_path, {"calibration": {"path": "rows.npz"}}, few)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "either one path, or the tables"),
        ({"path": "a.npz", "validation": {"path": "b.npz"}}, "either one path, or the tables"),
        ({"validation": {"path": "b.npz"}, "labels": "y"}, "belong into the tables"),
        ({"path": "a.npz", "shuffle": True}, "Extra inputs"),
        ({"path": "a.npz", "preprocess": {"reszie": 4}}, "preprocess.one.reszie"),
        ({"path": "a.npz", "preprocess": {"std": [1, 0, 1]}}, "std must not be 0"),
        ({"path": "a.npz", "preprocess": {"scale": float("nan")}}, "finite"),
        ({"path": "a.npz", "validation_share": 1}, "less than 1"),
        ({"path": "a.npz", "rows": 0}, "greater than or equal to 1"),
    ],
)
def test_refused_specs(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSpec(**spec)


# ---------------------------------------------------------------- real data


def test_cifar10(shared: Shared) -> None:
    folder = shared("cifar10.npz").parent
    signature = Model.load(shared("resnet20_cifar10.onnx")).signature
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    table = {"path": "cifar10.npz", "inputs": {"input": "eval_x"}, "labels": "eval_y", "rows": 20}
    spec = {"validation": table, "preprocess": {"scale": 1 / 255, "mean": mean, "std": std}}
    data = opened(folder, spec, signature)
    batch = next(data.batches("validation"))
    assert batch.inputs["input"].shape == (16, 3, 32, 32)
    with np.load(folder / "cifar10.npz") as raw:
        first = raw["eval_x"][data._parts["validation"].rows[0]]
    expected = ((first / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(batch.inputs["input"][0], expected, atol=1e-5)
    assert batch.labels is not None
    assert set(batch.labels) <= set(range(10))


def test_imagenet(shared: Shared) -> None:
    folder = shared("imagenet/calib").parent
    signature = Model.load(shared("mobilenet_v1_075_224.onnx")).signature
    spec = {
        "calibration": {"path": "calib", "rows": 5},
        "validation": {"path": "eval", "rows": 7},
        "preprocess": {"scale": 1 / 127.5, "offset": -1},
    }
    data = opened(folder, spec, signature)
    assert (data.calibration_rows, data.validation_rows) == (5, 7)
    batch = next(data.batches("validation"))
    assert batch.inputs["input"].shape == (7, 3, 224, 224)
    assert -1 <= batch.inputs["input"].min() < batch.inputs["input"].max() <= 1
    assert batch.labels is not None
    assert batch.labels.max() < 1000
