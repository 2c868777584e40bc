"""Metrics against closed forms, on feeds that stand in for a model's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.errors import DataError, RecipeError
from edgecompress.metrics import MetricSpec, make_metric, sqnr_db
from edgecompress.model import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", ("N", 4)),), ())


def identity(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"y": feed["x"]}


def data_of(folder: Path, x: Any, labels: Any = None, batch_size: int = 2) -> CalibrationSet:
    arrays = {"x": np.asarray(x, np.float32)}
    if labels is not None:
        arrays["labels"] = np.asarray(labels)
    np.savez(folder / "rows.npz", **arrays)
    table = {"path": "rows.npz", "labels": None if labels is None else "labels"}
    spec = DataSpec(validation=table, batch_size=batch_size)
    return CalibrationSet.open(spec, SIGNATURE, base=folder)


ROWS = [[4, 3, 2, 1], [1, 2, 3, 4], [0, 9, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 3, 1], 1.0), ([0, 3, 0], 2 / 3), ([1, 0, 2], 0.0)],
)
def test_top1_counts_hits_over_uneven_batches(
    tmp_path: Path, labels: list[int], expected: float
) -> None:
    result = make_metric("top1").evaluate(identity, data_of(tmp_path, ROWS, labels))
    assert result.value == pytest.approx(expected)
    assert result.rows == 3


def test_top5_ranks_and_ties_go_to_the_lower_class(tmp_path: Path) -> None:
    def logits(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.tile(np.float32([7, 6, 5, 4, 1, 1, 0]), (len(feed["x"]), 1))}

    data = data_of(tmp_path, np.zeros((4, 4)), [0, 4, 5, 6])
    assert make_metric("top5").evaluate(logits, data).value == 0.5


def test_constant_logits_are_not_rewarded(tmp_path: Path) -> None:
    data = data_of(tmp_path, np.zeros((4, 4)), [0, 1, 2, 3])
    assert make_metric("top1").evaluate(identity, data).value == 0.25


def test_nan_logits_are_never_right(tmp_path: Path) -> None:
    data = data_of(tmp_path, ROWS, [0, 3, 1])

    def broken(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.full_like(feed["x"], np.nan)}

    for name in ("top1", "agreement", "cosine"):
        assert make_metric(name).evaluate(broken, data, reference=identity).value == 0.0
    assert make_metric("sqnr").evaluate(broken, data, reference=identity).value == -np.inf


@pytest.mark.parametrize("shape", [(1, 1), (3, 3)])
def test_top1_finds_the_class_axis(tmp_path: Path, shape: tuple[int, int]) -> None:
    def per_pixel(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.broadcast_to(feed["x"][:, :, None, None], (*feed["x"].shape, *shape))}

    labels = np.array([0, 3, 1])
    if shape != (1, 1):
        labels = np.broadcast_to(labels[:, None, None], (3, *shape))
    assert make_metric("top1").evaluate(per_pixel, data_of(tmp_path, ROWS, labels)).value == 1.0


def test_cosine_is_the_mean_over_rows(tmp_path: Path) -> None:
    data = data_of(tmp_path, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])

    def first_only(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": feed["x"] * np.float32([1, 0, 0, 0])}

    value = make_metric("cosine").evaluate(first_only, data, reference=identity).value
    assert value == pytest.approx((1 + np.sqrt(0.5) + 1) / 3)


def test_all_outputs_count_unless_one_is_named(tmp_path: Path) -> None:
    data = data_of(tmp_path, ROWS)

    def model(scale: float, sign: float) -> Any:
        return lambda feed: {"a": feed["x"] * np.float32(scale), "b": feed["x"] * np.float32(sign)}

    def value(name: str, output: str | None) -> float:
        metric = make_metric(MetricSpec(name=name, output=output))
        return metric.evaluate(model(0.9, -1), data, reference=model(1, 1)).value

    assert value("cosine", None) == pytest.approx(0.0, abs=1e-7)
    assert value("cosine", "a") == pytest.approx(1.0)
    assert value("sqnr", "a") == pytest.approx(20.0, abs=1e-5)
    assert value("sqnr", None) == pytest.approx(-10 * np.log10(4))


def test_agreement(tmp_path: Path) -> None:
    data = data_of(tmp_path, ROWS)

    def only_one(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.tile(np.float32([0, 1, 0, 0]), (len(feed["x"]), 1))}

    agreement = make_metric("agreement")
    assert agreement.evaluate(only_one, data, reference=identity).value == pytest.approx(1 / 3)
    assert agreement.evaluate(identity, data, reference=identity).value == 1.0


def test_sqnr_over_batches_equals_sqnr_at_once(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)

    def rounded(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.round(feed["x"], 1)}

    result = make_metric("sqnr").evaluate(rounded, data_of(tmp_path, x), reference=identity)
    assert result.value == pytest.approx(sqnr_db(x, np.round(x, 1)))


finite = st.floats(-1e3, 1e3, width=32)


@given(hnp.arrays(np.float32, 8, elements=finite), st.floats(0.001, 0.999))
def test_sqnr_of_a_scaled_signal(signal: np.ndarray, part: float) -> None:
    signal = signal.astype(np.float64)
    signal[0] = 1.0
    assert sqnr_db(signal, signal * (1 - part)) == pytest.approx(-20 * np.log10(part), abs=1e-6)


def test_sqnr_limits() -> None:
    zero, one = np.zeros(3), np.ones(3)
    assert sqnr_db(one, one) == sqnr_db(zero, zero) == np.inf
    assert sqnr_db(zero, one) == sqnr_db(one, one * np.nan) == -np.inf
    assert sqnr_db(one * np.inf, one * np.inf) == -np.inf


def test_user_function_gets_all_rows_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def error(outputs, labels):\n"
        "    assert outputs['y'].shape == (3, 4)\n"
        "    return abs(outputs['y'].max(axis=1) - labels).mean()\n"
    )
    spec = MetricSpec(name="mine.py:error", higher_is_better=False)
    metric = make_metric(spec, base=tmp_path)
    assert not metric.higher_is_better
    assert metric.evaluate(identity, data_of(tmp_path, ROWS, [4.0, 4.0, 6.0])).value == 1.0


def test_the_default_follows_the_labels(tmp_path: Path) -> None:
    for labels, name in (([0, 1, 2], "top1"), ([0.5, 1.0, 2.0], "cosine"), (None, "cosine")):
        assert make_metric(None, data=data_of(tmp_path, ROWS, labels)).name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("topp1", "unknown metric 'topp1'; did you mean 'top1'"),
        ("top0", "unknown metric 'top0'"),
        (MetricSpec(name="top1", average="micro"), "is for f1, precision, recall, not for 'top1'"),
        (MetricSpec(name="top1", higher_is_better=False), "knows which way"),
        ("mine.py:score", "no such file"),
    ],
)
def test_refused_metrics(tmp_path: Path, spec: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_metric(spec, base=tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels, and the validation rows have none"),
        ([0.0, 1.0, 2.0], "class numbers, got float64"),
        ([0, 1, 4], "labels from 0 to 3 for the output 'y', got 4"),
        ([[0, 1], [1, 0], [0, 0]], r"shape \[2, 2\] do not fit the output 'y' of shape \[2, 4\]"),
    ],
)
def test_refused_labels(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_metric("top1").evaluate(identity, data_of(tmp_path, ROWS, labels))


def test_refused_runs(tmp_path: Path) -> None:
    data = data_of(tmp_path, ROWS)
    with pytest.raises(RecipeError, match="no output 'z'; known: y"):
        make_metric(MetricSpec(name="cosine", output="z")).evaluate(
            identity, data, reference=identity
        )
    with pytest.raises(DataError, match=r"has shape \[2, 2\], the float model's \[2, 4\]"):
        make_metric("cosine").evaluate(
            lambda feed: {"y": feed["x"][:, :2]}, data, reference=identity
        )
    calibration_only = CalibrationSet.open(
        DataSpec(calibration={"path": "rows.npz"}), SIGNATURE, base=tmp_path
    )
    with pytest.raises(DataError, match="needs validation rows, and there are none"):
        make_metric("cosine").evaluate(identity, calibration_only, reference=identity)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"mine\.py:2\).*ZeroDivisionError"),
        ("return 'much'", "ValueError"),
        ("return float('nan')", "returned NaN"),
    ],
)
def test_failing_user_functions(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(f"def score(outputs, labels):\n    {body}\n")
    metric = make_metric("mine.py:score", base=tmp_path)
    with pytest.raises(RecipeError, match=message):
        metric.evaluate(identity, data_of(tmp_path, ROWS))


def test_progress_counts_rows(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    make_metric("cosine").evaluate(
        identity,
        data_of(tmp_path, ROWS),
        reference=identity,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [("cosine", 2, 3), ("cosine", 3, 3)]
