"""Speed of factorized files on this machine's CPU against what their MACs promise.

Two models: all-MiniLM-L6-v2 with 128 tokens, and a residual MLP of wider layers with random
weights. What is promised is the ratio of the whole file's multiply-accumulates to the float file's;
what is measured is the least CPU time of one inference, one thread, files in turn.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from _common import Verdict, in_fresh_process, note, tables_of

from factorization.judging import Arrays, macs
from factorization.making import Given
from factorization.subjects import HOME, Subject, prepare

__all__ = ["KEEPS", "as_tables", "measure", "verdicts", "write_mlp"]

KEEPS = (0.5, 0.4, 0.3)
SHARE = 0.8
TARGET = "cpu-x86-64"
_TOKENS, _ROUNDS = 128, 25
_WIDTH, _HIDDEN, _DEPTH, _ROWS = 768, 3072, 4, 32

Figures = dict[str, Any]


def measure(given: Given) -> Figures:
    """Latencies of both models."""
    found = {}
    for name in ("minilm", "mlp"):
        subject = prepare("minilm", quick=given.quick, rows=64) if name == "minilm" else _mlp(given)
        found[name] = _measure(name, subject, _feed(subject), given)
    return found


def _measure(name: str, subject: Subject, feed: Arrays, given: Given) -> Figures:
    folder = HOME / "latency" / name
    folder.mkdir(parents=True, exist_ok=True)
    files, failed = {"float": os.fspath(subject.source)}, {}
    for keep in KEEPS[: 1 if given.quick else None]:
        note(f"{name}: latency, {keep:g} of MACs kept")
        output = folder / f"{keep:g}.onnx"
        made = in_fresh_process(
            "factorization.making",
            "compress",
            recipe=tables_of(subject.recipe),
            # Times do not depend on what the factors are fitted to.
            options={"keep": keep, "budget": "macs", "refine": False, "rows": 64},
            output=os.fspath(output),
            threads=2,
            target=TARGET,
        ).answer
        if "failed" in made:
            failed[f"{keep:g}"] = made["failed"]
        else:
            files[f"{keep:g}"] = os.fspath(output)
    np.savez(folder / "feed.npz", allow_pickle=False, **feed)
    speeds = in_fresh_process(
        "quantization.judging",
        "measure_latencies",
        files=files,
        feed=os.fspath(folder / "feed.npz"),
        rounds=3 if given.quick else _ROUNDS,
    ).answer
    counts = {key: macs(Path(file), feed) for key, file in files.items()}
    for key, file in files.items():
        if key != "float":
            Path(file).unlink()
    rows = {key: _row(speeds[key], counts["float"] / counts[key]) for key in files}
    return {"title": _TITLES[name], "macs": counts, "rows": rows, "failed": failed}


_TITLES = {
    "minilm": f"all-MiniLM-L6-v2, {_TOKENS} tokens",
    "mlp": f"MLP {_WIDTH} - {_HIDDEN}, {_DEPTH} blocks, {_TOKENS} rows",
}


def _row(speed: dict[str, float], promised: float) -> Figures:
    faster = 1 / speed["to_float"]
    return {
        "cpu_ms": speed["cpu_ms"],
        "faster": faster,
        "wall_faster": 1 / speed["wall_to_float"],
        "promised": promised,
        "share": faster / promised,
    }


def _feed(subject: Subject) -> Arrays:
    sample: Arrays = subject.data.sample(1)
    if subject.name != "minilm":
        return sample
    repeats = -(-_TOKENS // next(iter(sample.values())).shape[1])
    return {name: np.tile(array, (1, repeats))[:, :_TOKENS] for name, array in sample.items()}


def _mlp(given: Given) -> Subject:
    from edgecompress import Recipe

    folder = HOME / "models" / "mlp"
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "float.onnx"
    write_mlp(source)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((_ROWS, _TOKENS, _WIDTH), np.float32)
    np.savez(folder / "rows.npz", x=rows)
    tables = {
        "source": {"model": os.fspath(source)},
        "data": {"calibration": {"path": os.fspath(folder / "rows.npz")}},
        "target": {"name": TARGET},
    }
    recipe = Recipe.from_dict(tables, base=folder, where="mlp")
    return Subject("mlp", source, recipe, given.quick)


def write_mlp(file: Path, width: int = _WIDTH, hidden: int = _HIDDEN, depth: int = _DEPTH) -> None:
    """Write x + W2 relu(W1 x), some times, with random weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(depth):
        for end, (rows, columns) in (("up", (width, hidden)), ("down", (hidden, width))):
            weight = rng.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)
            weights.append(numpy_helper.from_array(weight, f"{end}{number}"))
        inner, active, out, result = (f"{word}{number}" for word in ("a", "b", "c", "y"))
        nodes += [
            helper.make_node("MatMul", [value, f"up{number}"], [inner], f"up {number}"),
            helper.make_node("Relu", [inner], [active], f"relu {number}"),
            helper.make_node("MatMul", [active, f"down{number}"], [out], f"down {number}"),
            helper.make_node("Add", [value, out], [result], f"add {number}"),
        ]
        value = result
    shape: list[str | int | None] = ["batch", _TOKENS, width]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    imports = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), file)


def as_tables(found: Figures) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Title, head and cells."""
    head = ("kept MACs of layers", "CPU ms", "faster (CPU)", "faster (wall)", "promised", "share")
    listed: list[tuple[str, tuple[str, ...], list[list[str]]]] = []
    for model in found.values():
        keys = ("cpu_ms", "faster", "wall_faster", "promised", "share")
        rows = [[key, *(f"{row[k]:.2f}" for k in keys)] for key, row in model["rows"].items()]
        listed.append((f"Latency: {model['title']}", head, rows))
    return listed


def verdicts(found: Figures) -> list[Verdict]:
    """The goals."""
    listed = []
    for model in found.values():
        goal = (
            f"{model['title']}: at {KEEPS[0]} and below, {SHARE} of the speed-up that MACs promise"
        )
        shares = {key: row["share"] for key, row in model["rows"].items() if key != "float"}
        shown = ", ".join(f"{share:.3f} at {key}" for key, share in shares.items())
        problems = ", ".join(f"{key}: {why}" for key, why in model["failed"].items())
        met = bool(shares) and not problems and min(shares.values()) >= SHARE
        listed.append(Verdict(goal, ", ".join(filter(None, (shown, problems))), met))
    return listed
