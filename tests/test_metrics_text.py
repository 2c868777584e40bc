"""Metrics of classes, pairs, sequences and user functions, against closed forms and sklearn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import precision_recall_fscore_support

from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.errors import DataError
from edgecompress.metrics import MetricSpec, make_metric
from edgecompress.model import Signature, TensorSpec
from edgecompress.scores.correlation import pearson, ranks, spearman
from tests.texts import WORDS, save_lines, text_rows, token_inputs

Feed = dict[str, np.ndarray]
IDS = token_inputs("input_ids")


def vectors(folder: Path, x: Any, labels: Any) -> CalibrationSet:
    np.savez(folder / "rows.npz", x=np.asarray(x, np.float32), labels=np.asarray(labels))
    width = np.shape(x)[1]
    signature = Signature((TensorSpec("x", "float32", ("N", width)),), ())
    spec = DataSpec(validation={"path": "rows.npz", "labels": "labels"}, batch_size=3)
    return CalibrationSet.open(spec, signature, base=folder)


def identity(feed: Feed) -> Feed:
    return {"y": feed["x"]}


def embedded(feed: Feed) -> Feed:
    """A vector per token that depends on nothing but the token."""
    table = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    return {"y": table[feed["input_ids"]]}


def lines(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(count)]


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.5), (3, 0.75), (100, 1.0)])
def test_any_k(tmp_path: Path, k: int, expected: float) -> None:
    data = vectors(tmp_path, [[4, 3, 2, 1]] * 4, [0, 1, 2, 3])
    assert make_metric(f"top{k}").evaluate(identity, data).value == expected
    if k == 1:
        assert make_metric("accuracy").evaluate(identity, data).value == expected


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("average", ["macro", "micro", "binary", None])
def test_f1_precision_and_recall_are_those_of_sklearn(
    tmp_path: Path, average: Any, classes: int
) -> None:
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(50, classes))
    labels = rng.integers(0, classes, 50)
    logits[:, -1] -= 9  # never predicted: precision without a case
    data = vectors(tmp_path, logits, labels)
    if average == "binary" and classes > 2:
        with pytest.raises(DataError, match="'binary' is for two classes, the model has 4"):
            make_metric(MetricSpec(name="f1", average=average)).evaluate(identity, data)
        return
    expected = precision_recall_fscore_support(
        labels,
        logits.argmax(1),
        average=average or ("binary" if classes == 2 else "macro"),
        zero_division=0.0,
    )
    for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        metric = make_metric(MetricSpec(name=name, average=average))
        assert metric.higher_is_better
        assert metric.evaluate(identity, data).value == pytest.approx(value)


def test_classes_that_do_not_occur_are_not_averaged(tmp_path: Path) -> None:
    data = vectors(tmp_path, [[9, 0, 0, 0], [0, 9, 0, 0]], [0, 1])
    assert make_metric("f1").evaluate(identity, data).value == 1.0


def test_nan_predicts_nothing(tmp_path: Path) -> None:
    data = vectors(tmp_path, [[1, 0], [0, 1]], [0, 1])
    assert make_metric("f1").evaluate(lambda f: {"y": f["x"] * np.nan}, data).value == 0.0


@pytest.mark.parametrize("length", ["length", 8])
def test_labels_of_words_are_compared_where_there_are_any(
    tmp_path: Path, length: int | str
) -> None:
    """A model that is right for the words "a" and "b", and calls everything else class 0."""
    rows = [(["a", "c-c", "b"], [1, 2, 2]), (["b"], [2]), (["a", "a"], [1, 0])]
    save_lines(tmp_path / "x.jsonl", *(json.dumps({"w": w, "t": t}) for w, t in rows))
    spec = {"validation": {"path": "x.jsonl", "text": "w", "labels": "t"}}
    data = text_rows(tmp_path, spec, token_inputs("input_ids", length=length))

    def tags(feed: Feed) -> Feed:
        classes = np.zeros(40, int)
        classes[4], classes[5] = 1, 2
        return {"y": np.eye(3, dtype=np.float32)[classes[feed["input_ids"]]]}

    truth, found = [1, 2, 2, 2, 1, 0], [1, 0, 2, 2, 1, 1]
    assert make_metric(None, data=data).name == "top1"
    assert make_metric("top1").evaluate(tags, data).value == pytest.approx(4 / 6)
    expected = precision_recall_fscore_support(truth, found, average="macro")[2]
    assert make_metric("f1").evaluate(tags, data).value == pytest.approx(expected)


def test_labels_of_yielded_sequences_fit_their_batches(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def rows():\n"
        "    for length in (3, 1):\n"
        "        ids = np.arange(2 * length).reshape(2, length)\n"
        "        yield {'input_ids': ids}, ids % 2\n"
    )
    data = CalibrationSet.open(DataSpec(validation={"path": "mine.py:rows"}), IDS, base=tmp_path)

    def parity(feed: Feed) -> Feed:
        return {"y": np.eye(2, dtype=np.float32)[feed["input_ids"] % 2]}

    assert make_metric("top1").evaluate(parity, data).value == 1.0


def test_labels_that_are_all_ignored_are_refused(tmp_path: Path) -> None:
    data = vectors(tmp_path, [[1, 0], [0, 1]], [-100, -100])
    for name in ("top1", "f1"):
        with pytest.raises(DataError, match="all are -100"):
            make_metric(name).evaluate(identity, data)


# ---------------------------------------------------------------- correlation

few = hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(0, 6).map(float))


@given(few, st.integers(0, 2**32 - 1))
def test_correlations_are_those_of_scipy(values: np.ndarray, seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    other = np.random.default_rng(seed).integers(0, 5, len(values)).astype(float)
    np.testing.assert_array_equal(ranks(values), stats.rankdata(values))
    if np.ptp(values) == 0 or np.ptp(other) == 0:
        assert spearman(values, other) == pearson(values, other) == 0.0
        return
    assert spearman(values, other) == pytest.approx(stats.spearmanr(values, other)[0], abs=1e-12)
    assert pearson(values, other) == pytest.approx(stats.pearsonr(values, other)[0], abs=1e-12)


def test_one_number_per_row_is_compared(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 1)).astype(np.float32)
    data = vectors(tmp_path, x, np.exp(x[:, 0]))
    assert make_metric("spearman").evaluate(identity, data).value == pytest.approx(1.0)
    assert 0.5 < make_metric("pearson").evaluate(identity, data).value < 0.999
    negative = make_metric("spearman").evaluate(lambda f: {"y": -f["x"]}, data).value
    assert negative == pytest.approx(-1.0)
    wide = vectors(tmp_path, [[1, 2], [3, 4]], [1, 2])
    with pytest.raises(DataError, match=r"expected one number per row, .* shape \[2, 2\]"):
        make_metric("spearman").evaluate(identity, wide)


@pytest.mark.parametrize("length", ["length", 8])
def test_pairs_of_texts_are_compared_by_cosine(tmp_path: Path, length: int | str) -> None:
    first, second = lines(25), lines(25, seed=1)
    scores = np.random.default_rng(2).normal(size=25).round(2)
    rows = (f"{s}\t{a}\t{b}" for s, a, b in zip(scores, first, second, strict=True))
    save_lines(tmp_path / "x.tsv", *rows)
    spec = {"validation": {"path": "x.tsv", "texts": [2, 3], "labels": 1}, "batch_size": 4}
    signature = token_inputs("input_ids", "attention_mask", length=length)
    data = text_rows(tmp_path, spec, signature)

    def mean(feed: Feed) -> Feed:
        real = feed["attention_mask"][..., None]
        return {"y": (embedded(feed)["y"] * real).sum(1) / real.sum(1)}

    vector = {}
    for batch in data.batches("validation"):
        vector.update(zip(batch.index.tolist(), mean(batch.inputs)["y"], strict=True))
    pairs = [(vector[2 * i], vector[2 * i + 1]) for i in range(25)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    metric = make_metric(None, data=data)
    assert metric.name == "spearman"
    assert metric.evaluate(mean, data).value == pytest.approx(spearman(cosines, scores))
    found = make_metric("pearson").evaluate(mean, data).value
    assert found == pytest.approx(pearson(cosines, scores), abs=1e-6)
    with pytest.raises(DataError, match=r"expected an embedding .* y \[\d, \d+, 5\]"):
        metric.evaluate(embedded, data)


def test_three_texts_are_no_pair(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.tsv", "a\tb\tc\t1", "a\tb\tc\t2")
    spec = {"validation": {"path": "x.tsv", "texts": [1, 2, 3], "labels": 4}}
    with pytest.raises(DataError, match="the records have 3 texts"):
        make_metric("spearman").evaluate(embedded, text_rows(tmp_path, spec, IDS))


# ---------------------------------------------------------------- language models


def causal(feed: Feed) -> Feed:
    """Logits of the next token that depend on this one only."""
    table = np.random.default_rng(1).normal(size=(40, 40)).astype(np.float32)
    return {"logits": table[feed["input_ids"]]}


@pytest.mark.parametrize("length", ["length", 9])
def test_perplexity_counts_real_tokens_once(tmp_path: Path, length: int | str) -> None:
    save_lines(tmp_path / "x.txt", *lines(12))
    data = text_rows(
        tmp_path, {"validation": {"path": "x.txt"}}, token_inputs("input_ids", length=length)
    )
    losses: list[float] = []
    for batch in data.batches("validation"):
        logits_of = causal(batch.inputs)["logits"]
        for row, (ids, logits) in enumerate(zip(batch.inputs["input_ids"], logits_of, strict=True)):
            count = len(ids) if batch.mask is None else int(batch.mask[row].sum())
            odds = np.exp(logits.astype(np.float64))
            odds /= odds.sum(-1, keepdims=True)
            losses += [-np.log(odds[i, ids[i + 1]]) for i in range(count - 1)]
    metric = make_metric("perplexity")
    assert not metric.higher_is_better
    assert metric.evaluate(causal, data).value == pytest.approx(np.exp(np.mean(losses)))

    def broken(feed: Feed) -> Feed:
        return {"logits": causal(feed)["logits"] * np.nan}

    assert metric.evaluate(broken, data).value == np.inf


def test_models_that_look_ahead_are_refused(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", "a b c d", "e f g h")
    data = text_rows(tmp_path, {"validation": {"path": "x.txt"}}, IDS)

    def masked(feed: Feed) -> Feed:
        logits = causal(feed)["logits"]
        return {"logits": logits + logits.mean(1, keepdims=True)}

    with pytest.raises(DataError, match="this is no causal language model"):
        make_metric("perplexity").evaluate(masked, data)
    with pytest.raises(DataError, match=r"needs logits .* outputs are: y \[2, 5\]"):
        make_metric("perplexity").evaluate(lambda f: {"y": f["input_ids"][:, :5]}, data)
    other = vectors(tmp_path, [[1, 2]], [0])
    with pytest.raises(DataError, match="needs token ids, the model takes: x"):
        make_metric("perplexity").evaluate(identity, other)


# ---------------------------------------------------------------- against the float model


@pytest.mark.parametrize("name", ["cosine", "sqnr", "agreement", "mse"])
def test_padded_positions_count_in_no_metric(tmp_path: Path, name: str) -> None:
    save_lines(tmp_path / "x.txt", *lines(12))
    metric = make_metric(name)
    found = []
    for length in ("length", 9):
        signature = token_inputs("input_ids", length=length)
        data = text_rows(tmp_path, {"validation": {"path": "x.txt"}}, signature)

        def rough(feed: Feed) -> Feed:
            y = embedded(feed)["y"].round(0)
            y[feed["input_ids"] == 0] = 1e6  # at [PAD]
            return {"y": y}

        found.append(metric.evaluate(rough, data, reference=embedded).value)
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert metric.higher_is_better == (name != "mse")


def test_mean_squared_error(tmp_path: Path) -> None:
    data = vectors(tmp_path, np.zeros((4, 3)), [0] * 4)
    shifted = make_metric("mse").evaluate(
        lambda f: {"a": f["x"] + 1, "b": f["x"] + 2},
        data,
        reference=lambda f: {"a": f["x"], "b": f["x"]},
    )
    assert shifted.value == 4.0


# ---------------------------------------------------------------- functions of the user's


def user_metric(folder: Path, *body: str, arguments: str = "outputs, labels") -> Any:
    source = [f"def score({arguments}):", *(f"    {line}" for line in body)]
    (folder / "mine.py").write_text("\n".join(source))
    return make_metric("mine.py:score", base=folder)


def test_functions_get_rows_in_order(tmp_path: Path) -> None:
    rows = [f"{number}\t{text}" for number, text in enumerate(lines(20))]
    save_lines(tmp_path / "x.tsv", *rows)
    spec = {"validation": {"path": "x.tsv", "text": 2, "labels": 1}, "batch_size": 3}
    data = text_rows(tmp_path, spec, IDS)
    metric = user_metric(
        tmp_path,
        "assert isinstance(outputs['y'], list)",
        "assert labels.tolist() == list(range(20))",
        "same = [(a.sum() == b) for a, b in zip(outputs['y'], outputs['sum'])]",
        "return sum(same)",
    )

    def model(feed: Feed) -> Feed:
        return {"y": feed["input_ids"], "sum": feed["input_ids"].sum(1)}

    assert metric.evaluate(model, data).value == 20.0


def test_functions_of_three_arguments_get_the_inputs(tmp_path: Path) -> None:
    data = vectors(tmp_path, [[1, 2], [3, 4], [5, 6], [7, 8]], [0] * 4)
    metric = user_metric(
        tmp_path,
        "return abs(outputs['y'] - inputs['x']).max()",
        arguments="outputs, labels, inputs, unused=3",
    )
    assert metric.evaluate(lambda f: {"y": f["x"] + 1}, data).value == 1.0


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("spearman", ["x", "y"], "needs labels that are numbers, got <U1"),
        ("f1", [0.5, 1.5], "needs labels that are class numbers, got float64"),
    ],
)
def test_refused_kinds_of_labels(
    tmp_path: Path, name: str, labels: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_metric(name).check(vectors(tmp_path, [[1], [2]], labels))


def test_a_correlation_of_one_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs two numbers at least, got 1"):
        make_metric("pearson").evaluate(identity, vectors(tmp_path, [[1]], [1.0]))
