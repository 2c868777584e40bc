"""Statistics: equal to what onnxruntime's own values give, and in constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgecompress.bias_correction import CorrectedLayer
from edgecompress.errors import DataError
from edgecompress.model import Model
from edgecompress.numerics.histogram import HALF
from edgecompress.statistics import (
    SAMPLE_PER_ROW,
    Statistics,
    TensorStatistics,
    _stride,
    collect,
)
from tests.models import from_text, small_cnn
from tests.running import rows_of, run, with_outputs

CNN_VALUES = ["c1", "r1", "c2", "r2", "c3", "s", "m", "v", "y"]


def images(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 3, 16, 16)).astype(np.float32)


def of(x: np.ndarray, batch: int = 0) -> TensorStatistics:
    statistics = TensorStatistics()
    statistics.add(batch, torch.from_numpy(x))
    return statistics


def assert_same(a: TensorStatistics, b: TensorStatistics) -> None:
    assert (a.low, a.high, a.count) == (b.low, b.high, b.count)
    assert a.histogram.exponent == b.histogram.exponent
    assert torch.equal(a.histogram.counts, b.histogram.counts)


def test_extremes_are_those_of_onnxruntime(tmp_path: Path) -> None:
    model, x = small_cnn(), images(20)
    found = collect(model, rows_of(tmp_path, model, {"x": x}, batch_size=7), [*CNN_VALUES, "x"])
    expected = run(with_outputs(model, CNN_VALUES), {"x": x}) | {"x": x}
    assert found.rows == 20
    for name, values in expected.items():
        seen, largest = found[name], float(np.abs(values).max())
        # torch and onnxruntime add up in different orders.
        assert seen.low == pytest.approx(float(values.min()), abs=1e-5 * largest)
        assert seen.high == pytest.approx(float(values.max()), abs=1e-5 * largest)
        assert seen.count == values.size
        assert int(seen.histogram.counts.sum()) == values.size


def test_inputs_are_exact(tmp_path: Path) -> None:
    model, x = small_cnn(), images(9)
    found = collect(model, rows_of(tmp_path, model, {"x": x}), ["x"])
    assert (found["x"].low, found["x"].high) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
def test_batches_do_not_matter(tmp_path: Path, batch_size: int) -> None:
    model, x = small_cnn(), images(10)
    data = rows_of(tmp_path, model, {"x": x}, batch_size=batch_size)
    assert_same(collect(model, data, ["x"])["x"], of(x))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shards_merge_to_the_whole_bit_for_bit(count: int, tmp_path: Path) -> None:
    model, names = small_cnn(), ["x", "r1", "s", "y"]
    data = rows_of(tmp_path, model, {"x": images(19)}, batch_size=2)
    whole = collect(model, data, names)
    parts = [collect(model, data, names, shard=(k, count)) for k in range(count)]
    for order in (parts, parts[::-1], [*parts[1:], parts[0]]):
        merged = Statistics()
        for part in order:
            merged = merged.merge(part)
        assert merged.rows == whole.rows == 19
        for name in names:
            assert_same(merged[name], whole[name])
            assert (merged[name].mean, merged[name].rms) == (whole[name].mean, whole[name].rms)


def test_mean_and_rms_are_those_of_the_values() -> None:
    x = images(3).astype(np.float64)
    seen = of(x.astype(np.float32))
    assert seen.mean == pytest.approx(x.mean(), rel=1e-6)
    assert seen.rms == pytest.approx(np.sqrt(np.square(x).mean()), rel=1e-6)
    assert np.isnan(TensorStatistics().mean)
    assert np.isnan(TensorStatistics().rms)


def test_padding_counts_in_no_statistic() -> None:
    """Rows of 5 and 3 tokens padded to 6 are the rows themselves."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(0, 1, (n, 4)).astype(np.float32) for n in (5, 3)]
    padded, mask = np.full((2, 6, 4), 1e9, np.float32), np.zeros((2, 6), bool)
    for number, row in enumerate(rows):
        padded[number, : len(row)], mask[number, : len(row)] = row, True
    found, expected = TensorStatistics(), TensorStatistics()
    found.add(0, torch.from_numpy(padded), torch.from_numpy(mask))
    for number, row in enumerate(rows):
        expected.add(number, torch.from_numpy(row[None]))
    assert_same(found, expected)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)


def test_padding_moves_no_bias() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert CorrectedLayer("y", "y", -1).passing(values, None) is None
    real = CorrectedLayer("y", "y", -1).passing(values, mask)
    assert real is not None
    assert torch.equal(real.expand(values.shape)[..., 0], torch.from_numpy(mask))
    inside = CorrectedLayer("y", "y", -1, 3.0, 14.0).passing(values, mask)
    assert inside is not None
    assert values[inside].tolist() == [4, 5, 6, 7, 12, 13]


def test_merging_different_tensors_keeps_both() -> None:
    a, b = Statistics({"a": of(np.ones(3, "f"))}, 3), Statistics({"b": of(np.zeros(2, "f"))}, 2)
    merged = a.merge(b)
    assert list(merged.tensors) == ["a", "b"]
    assert_same(merged["a"], a["a"])
    assert_same(merged["b"], b["b"])


rows = arrays(np.float32, (6, 5), elements=st.floats(-(2.0**80), 2.0**80, width=32))


@given(rows, st.integers(1, 5))
def test_any_split_merges_exactly(x: np.ndarray, cut: int) -> None:
    assert_same(of(x[:cut]).merge(of(x[cut:], 1)), of(x))
    assert_same(of(x[cut:], 1).merge(of(x[:cut])), of(x))
    assert_same(TensorStatistics().merge(of(x)), of(x))


@pytest.mark.parametrize("elements", [1, 8192, 8193, 16384, 16385, 150528, 802816])
def test_samples_of_a_row_are_bounded_and_spread(elements: int) -> None:
    step = _stride(elements)
    taken = len(range(0, elements, step))
    assert taken <= SAMPLE_PER_ROW
    assert taken >= min(elements, SAMPLE_PER_ROW / 3)
    assert step == 1 or step % 2 == 1


def test_large_rows_are_sampled_but_extremes_are_exact() -> None:
    x = np.zeros((2, 30_000), np.float32)
    x[1, 1], x[0, 2] = 7.0, -5.0  # between the samples
    seen = of(x)
    assert (seen.low, seen.high, seen.count) == (-5.0, 7.0, 60_000)
    assert int(seen.histogram.counts.sum()) == 2 * len(range(0, 30_000, 5))


def held_bytes(statistics: Statistics) -> int:
    return sum(t.histogram.counts.numel() * 8 for t in statistics.tensors.values())


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    model = small_cnn()
    few, many = (
        collect(model, rows_of(tmp_path, model, {"x": images(n)}), ["x", "s"]) for n in (2, 40)
    )
    assert held_bytes(few) == held_bytes(many) == 2 * 2 * HALF * 8
    assert vars(many["x"]).keys() == {"low", "high", "count", "histogram", "sums"}
    assert len(many["x"].sums.nodes) <= 2  # 40 rows are 3 batches


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_make_nan_are_named(tmp_path: Path, bad: float) -> None:
    model = small_cnn()
    weight = np.array(model.initializer("w1"))
    weight[2, 0, 1, 1] = bad
    model.set_initializer("w1", weight)
    data = rows_of(tmp_path, model, {"x": images(3)})
    with pytest.raises(DataError, match=r"tensor 'c1' during calibration: .* NaN or infinite"):
        collect(model, data, ["c1", "y"])


def test_large_finite_values_are_no_error(tmp_path: Path) -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x, float k) => (float[N, 4] y) { y = Mul(x, k) }""",
        k=np.float32(2e38),
    )
    x = np.ones((3, 4), np.float32)  # their sum overflows float32, none of them does
    found = collect(model, rows_of(tmp_path, model, {"x": x}), ["y"])
    assert found["y"].high == float(np.float32(2e38))


def test_progress_is_told(tmp_path: Path) -> None:
    model: Model = small_cnn()
    told: list[tuple[str, int, int]] = []
    data = rows_of(tmp_path, model, {"x": images(10)}, batch_size=4)
    collect(model, data, ["y"], progress=lambda *step: told.append(step))
    assert told == [("calibrate", 4, 10), ("calibrate", 8, 10), ("calibrate", 10, 10)]
