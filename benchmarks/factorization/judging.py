"""How good a finished file is, all by onnxruntime in float32.

Figures of a model, by kind:

- language: ``perplexity`` on the last 5 % of WikiText-2's validation text, which neither training
  nor calibration saw, and ``other_perplexity`` on sentences of STS-B dev, another kind of text;
  ``loss`` is the natural logarithm of the first.
- sentences: ``spearman`` of cosines against scores on STS-B dev; ``sts_loss``, the mean squared
  difference of the cosine and score / 5; ``loss``, the mean squared distance of an embedding from
  the float model's, both of length 1, over all sentences of STS-B dev. Sentences of STS-B train
  calibrate.
- images: ``top1`` on the validation rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from factorization.subjects import Subject

__all__ = ["Judge", "blocks_of", "depth_errors", "macs", "session"]

Arrays = dict[str, npt.NDArray[Any]]


def session(file: str | bytes, threads: int = 0) -> Any:
    """A session on the CPU; with ``threads`` 0, as many as onnxruntime chooses."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS", "0"))
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Judge:
    """Judges the files of one model."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    @cached_property
    def blocks(self) -> list[str]:
        """Names of the values behind the blocks that hold layers, in order of depth."""
        return blocks_of(self._subject.source)

    def figures(self, file: str) -> dict[str, float]:
        """All figures of a file."""
        subject = self._subject
        if subject.name == "llama10m":
            return _language(subject, file)
        if subject.name == "minilm":
            return _sentences(subject, _embeddings(subject, file), self._expected)
        return {"top1": _top1(subject, file)}

    def depth(self, file: str, batches: int = 6) -> list[float]:
        """Errors along the depth, on some validation rows; see :func:`depth_errors`."""
        feeds = islice((batch.inputs for batch in self._subject.validation()), batches)
        return depth_errors(self._subject.source, Path(file), self.blocks, feeds)

    @cached_property
    def _expected(self) -> npt.NDArray[Any]:
        return _embeddings(self._subject, os.fspath(self._subject.source))


def _language(subject: Subject, file: str) -> dict[str, float]:
    running = session(file)
    unseen = _mean_loss(running, (batch.inputs for batch in subject.validation()))
    other = _mean_loss(running, subject.other_text())
    return {"perplexity": _exp(unseen), "other_perplexity": _exp(other), "loss": unseen}


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _mean_loss(running: Any, feeds: Any) -> float:
    """Negative log-likelihood of a token, mean over all that have one before them."""
    total, count = 0.0, 0
    for feed in feeds:
        (logits,) = running.run(None, _for(running, feed))
        logits, targets = logits[:, :-1].astype(np.float32), feed["input_ids"][:, 1:]
        top = logits.max(-1)
        partition = np.log(np.exp(logits - top[..., None]).sum(-1, dtype=np.float64)) + top
        hit = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        total += float((partition - hit).sum())
        count += targets.size
    return total / count


def _for(running: Any, feed: Arrays) -> Arrays:
    return {each.name: feed[each.name] for each in running.get_inputs()}


def _sentences(
    subject: Subject, found: npt.NDArray[Any], expected: npt.NDArray[Any]
) -> dict[str, float]:
    from scipy.stats import spearmanr

    labels = subject.data.labels("validation")
    assert labels is not None
    scores = np.asarray(labels, np.float64).reshape(-1)[: len(found)][::2]
    cosines = _cosines(found)
    return {
        "spearman": float(spearmanr(cosines, scores).statistic),
        "sts_loss": float(np.square(cosines - scores / 5).mean()),
        "loss": float(np.square(found - expected).sum(1).mean()),
    }


def _cosines(embeddings: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of the two sentences of each pair."""
    first, second = embeddings[::2], embeddings[1::2]
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: npt.NDArray[Any] = (first * second).sum(1) / lengths
    return cosines


def _embeddings(subject: Subject, file: str) -> npt.NDArray[Any]:
    running = session(file)
    found: dict[int, npt.NDArray[Any]] = {}
    for batch in subject.validation():
        (rows,) = running.run(None, _for(running, batch.inputs))
        found |= dict(zip(map(int, batch.index), rows, strict=True))
    return np.stack([found[number] for number in sorted(found)]).astype(np.float64)


def _top1(subject: Subject, file: str) -> float:
    running = session(file)
    hits, count = 0, 0
    for batch in subject.validation():
        assert batch.labels is not None
        logits = running.run(None, _for(running, batch.inputs))[0]
        hits += int((logits.reshape(batch.rows, -1).argmax(1) == batch.labels.reshape(-1)).sum())
        count += batch.rows
    return hits / count


def blocks_of(source: Path) -> list[str]:
    """Names of the values behind the blocks that hold layers, in order of depth."""
    from edgecompress.model import Model
    from edgecompress.walk.blocks import find_blocks

    blocks = [block for block in find_blocks(Model.load(source)) if block.layers]
    behind = [block.outputs or block.results for block in blocks]
    return [names[0] for names in behind if len(names) == 1]


def depth_errors(
    source: Path, file: Path, names: Sequence[str], feeds: Iterable[Arrays]
) -> list[float]:
    """Squared error of some values over their power, against the float file."""
    float_run, run = (_with_outputs(path, names) for path in (source, file))
    error, power = np.zeros(len(names)), np.zeros(len(names))
    for feed in feeds:
        given = _for(run, feed)
        pairs = zip(float_run.run(list(names), given), run.run(list(names), given), strict=True)
        for place, (expected, found) in enumerate(pairs):
            error[place] += np.square(expected - found, dtype=np.float64).sum()
            power[place] += np.square(expected, dtype=np.float64).sum()
    return [float(value) for value in error / power]


def _with_outputs(file: Path, names: Sequence[str]) -> Any:
    """A session that tells inner values, too."""
    import onnx

    model = onnx.load(file)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    return session(model.SerializeToString())


def macs(file: Path, feed: Arrays) -> int:
    """Multiply-accumulates of one run, from the shapes that it really has."""
    import onnx

    graph = onnx.load(file).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    names = [name for node in nodes for name in (*node.input[:2], node.output[0])]
    asked = [name for name in dict.fromkeys(names) if name not in weights and name not in feed]
    running = _with_outputs(file, asked)
    answers = running.run(asked, _for(running, feed))
    shapes = {**weights, **{name: a.shape for name, a in feed.items()}}
    shapes |= {name: answer.shape for name, answer in zip(asked, answers, strict=True)}
    return sum(_node_macs(node, shapes) for node in nodes)


def _node_macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type == "Conv":
        inner = math.prod(shapes[node.input[1]][1:])
    else:
        flag = next((a.i for a in node.attribute if a.name == "transA"), 0)
        inner = shapes[node.input[0]][0 if flag else -1]
    return math.prod(shapes[node.output[0]]) * int(inner)
