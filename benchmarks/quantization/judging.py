"""Accuracy and speed of finished files, all by the same sessions in one process."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _common import in_fresh_process, note

from quantization.models import HOME, Prepared

if TYPE_CHECKING:
    from edgecompress.scores.base import Arrays

__all__ = ["Speed", "accuracies", "latencies", "measure_latencies"]

FLOAT = "float"
_UNLOADABLE = "does not load: "
_ROUNDS, _QUICK_ROUNDS = 25, 3
_ROUND_SECONDS = 0.05


@dataclass(frozen=True)
class Speed:
    """One inference, batch 1, one thread.

    Attributes:
        cpu_ms: Least CPU time.
        to_float: Ratio of that to the float file's.
        wall_to_float: Median over rounds of the ratio of both files' median wall times.
    """

    cpu_ms: float
    to_float: float
    wall_to_float: float


def accuracies(
    model: Prepared, files: Mapping[str, Sequence[str]], *, fresh: bool
) -> dict[str, float | str]:
    """The metric of each file over the validation rows, one by one; or why it cannot run.

    A figure is kept by the bytes of the file, the rows and the version of onnxruntime.
    """
    records = {name: _record(model, paths) for name, paths in files.items()}
    if fresh:
        for record in records.values():
            record.unlink(missing_ok=True)
    new = {name: files[name][0] for name, record in records.items() if not record.exists()}
    if new:
        note(f"{model.name}: accuracy of {len(new)} files")
        for name, figure in _sweep(model, new).items():
            records[name].parent.mkdir(parents=True, exist_ok=True)
            records[name].write_text(json.dumps(figure))
    return {name: json.loads(record.read_text()) for name, record in records.items()}


def _record(model: Prepared, paths: Sequence[str]) -> Path:
    import onnxruntime

    sha = hashlib.sha256(f"{onnxruntime.__version__} {model.data.digest}".encode())
    for path in paths:
        sha.update(Path(path).read_bytes())
    return HOME / "scores" / model.name / f"{sha.hexdigest()[:24]}.json"


def _sweep(model: Prepared, files: Mapping[str, str]) -> dict[str, float | str]:
    from edgecompress.metrics import make_metric

    metric = make_metric(model.recipe.metric, base=model.recipe.base, data=model.data)
    reference = _open(os.fspath(model.source))
    sessions = {}
    found: dict[str, float | str] = {}
    for name, path in files.items():
        try:
            sessions[name] = _open(path)
        except Exception as error:
            # The result is published: it names the file, not where this machine keeps it.
            found[name] = _UNLOADABLE + _first_line(error).replace(path, Path(path).name)
    scores = {name: metric.score() for name in sessions}
    for batch in model.data.batches("validation", 1):
        expected = _run(reference, batch.inputs) if metric.needs_reference else {}
        for name in list(scores):
            try:
                scores[name].add(_run(sessions[name], batch.inputs), expected, batch)
            except Exception as error:
                found[name] = "does not run: " + _first_line(error)
                del scores[name]
    return found | {name: score.value() for name, score in scores.items()}


def _open(path: str) -> Any:
    from edgecompress.runtimes._session import open_session

    # A thread that spins while it waits would count as CPU time.
    return open_session(
        Path(path),
        provider="CPUExecutionProvider",
        threads=1,
        config={"session.intra_op.allow_spinning": "0"},
    )


def _run(session: Any, feed: Arrays) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, _typed(session, feed)), strict=True))
    return {n: a.astype(np.float32) if a.dtype == np.float16 else a for n, a in outputs.items()}


def _typed(session: Any, feed: Arrays) -> dict[str, Any]:
    """The feed in the types that the file takes: some quantizers make inputs float16."""
    halves = {each.name for each in session.get_inputs() if each.type == "tensor(float16)"}
    return {n: a.astype(np.float16) if n in halves else a for n, a in feed.items()}


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "unknown")[:200]


def latencies(model: Prepared, files: Mapping[str, str], *, quick: bool) -> dict[str, Speed]:
    """Speed of all files of a model, in turn, in one fresh process."""
    note(f"{model.name}: latency of {len(files)} files")
    feed = model.folder / "feed.npz"
    np.savez(feed, allow_pickle=False, **model.feed())
    answer = in_fresh_process(
        "quantization.judging",
        "measure_latencies",
        files=dict(files),
        feed=os.fspath(feed),
        rounds=_QUICK_ROUNDS if quick else _ROUNDS,
    ).answer
    return {name: Speed(**found) for name, found in answer.items()}


def measure_latencies(files: dict[str, str], feed: str, rounds: int) -> dict[str, dict[str, float]]:
    """In a fresh process: rounds over all files, each some inferences."""
    arrays = dict(np.load(feed))
    sessions = {name: _open(path) for name, path in files.items()}
    feeds = {name: _typed(session, arrays) for name, session in sessions.items()}
    cpu: dict[str, list[float]] = {name: [] for name in files}
    wall: dict[str, list[float]] = {name: [] for name in files}
    for number in range(rounds + 1):
        for name, session in sessions.items():
            if number == 0:
                session.run(None, feeds[name])
            else:
                _one_round(session, feeds[name], cpu[name], wall[name])
    least = {name: min(each) for name, each in cpu.items()}
    return {
        name: {
            "cpu_ms": 1e3 * least[name],
            "to_float": least[name] / least[FLOAT],
            "wall_to_float": statistics.median(
                a / b for a, b in zip(wall[name], wall[FLOAT], strict=True)
            ),
        }
        for name in files
    }


def _one_round(session: Any, feed: Any, cpu: list[float], wall: list[float]) -> None:
    """Some inferences: the least CPU time of one, and the median wall time, in seconds."""
    times: list[tuple[float, float]] = []
    until = time.perf_counter() + _ROUND_SECONDS
    while len(times) < 3 or time.perf_counter() < until:
        before = time.process_time(), time.perf_counter()
        session.run(None, feed)
        times.append((time.process_time() - before[0], time.perf_counter() - before[1]))
    cpu.append(min(each[0] for each in times))
    wall.append(statistics.median(each[1] for each in times))
