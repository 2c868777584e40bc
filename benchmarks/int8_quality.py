"""Int8 by edgecompress against onnxruntime's own quantizers: accuracy, size, speed and cost.

All quantizers get the same preprocessed calibration rows and are judged on the same validation
rows. Each compression runs in a fresh process, from the float file to the quantized file; its wall
time includes start and imports, and for edgecompress also reading and preprocessing the rows, which
onnxruntime is given ready. Latencies are measured in turn: batch 1, one thread.

onnxruntime's calls are those of its documentation for x86 with VNNI: ``quant_pre_process``, then
``quantize_static`` with U8S8, QDQ, per channel, rows one by one.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _common import (
    MB,
    Fresh,
    Outcome,
    Verdict,
    arrays_on_disk,
    example,
    has_vnni,
    in_fresh_process,
    note,
    opened,
    recipe_of,
    source_of,
    table,
    tables_of,
)

import edgecompress

if TYPE_CHECKING:
    from edgecompress import Recipe
    from edgecompress.data.calibration import CalibrationSet
    from edgecompress.target import TargetProfile

MODELS = ("mobilenet_v1_imagenet", "mobilenet_v2_cifar10", "resnet20_cifar10")
PEERS = {
    "onnxruntime minmax": "MinMax",
    "onnxruntime entropy": "Entropy",
    "onnxruntime percentile": "Percentile",
}
OURS = "edgecompress"
FLOAT = "float"

# onnxruntime's histogram calibrators keep every activation of every row; on a machine that cannot
# hold them they would be killed, and others with them.
_KEEPS_ALL_ACTIVATIONS = ("Entropy", "Percentile")
_ROOM_BYTES = 12e9

SIZE_GOAL, FLOAT_LATENCY_GOAL, PEER_LATENCY_GOAL = 0.30, 0.6, 1.02


def run(*, quick: bool) -> Outcome:
    outcome = Outcome({})
    for name in MODELS:
        rows = {"calibration": 16, "validation": 64} if quick else {}
        found = _compare(example(name, **rows), quick)
        outcome.figures[name] = found
        outcome.tables.append(_table(name, found))
        outcome.verdicts += _verdicts(name, found["files"], judge_accuracy=not quick)
    return outcome


def _compare(recipe: Recipe, quick: bool) -> dict[str, Any]:
    import psutil

    _, data = opened(recipe)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, arrays_on_disk(data) as arrays:
        folder = Path(name)
        files, costs, left_out = {FLOAT: source_of(recipe)}, {}, {}
        for peer, method in PEERS.items():
            free = psutil.virtual_memory().available
            if method in _KEEPS_ALL_ACTIVATIONS and free < _ROOM_BYTES:
                left_out[peer] = f"only {free / 1e9:.1f} GB of memory are free"
                continue
            note(f"{source_of(recipe).stem}: {peer}")
            files[peer] = folder / f"{method}.onnx"
            costs[peer] = in_fresh_process(
                "int8_quality",
                "quantize_by_onnxruntime",
                source=os.fspath(source_of(recipe)),
                arrays=arrays,
                method=method,
                output=os.fspath(files[peer]),
            )
        note(f"{source_of(recipe).stem}: {OURS}")
        alone = folder / "passes.onnx"
        costs[OURS] = in_fresh_process(
            "int8_quality", "run_passes", recipe=tables_of(recipe), output=os.fspath(alone)
        )
        built = in_fresh_process(
            "int8_quality", "build", recipe=tables_of(recipe), output=os.fspath(folder / "out")
        )
        files[OURS] = folder / "out" / "model.onnx"
        note(f"{source_of(recipe).stem}: accuracy and latency")
        return {
            "calibration_rows": data.calibration_rows,
            "validation_rows": data.validation_rows,
            "left_out": left_out,
            "build": {
                "seconds": built.seconds,
                **built.answer,
                "same_file_as_passes_alone": files[OURS].read_bytes() == alone.read_bytes(),
            },
            "files": _judge(recipe, data, files, costs, quick),
        }


def _judge(
    recipe: Recipe,
    data: CalibrationSet,
    files: Mapping[str, Path],
    costs: Mapping[str, Fresh],
    quick: bool,
) -> dict[str, dict[str, Any]]:
    """Everything about each file that the table shows, by name."""
    from edgecompress.evaluation import load_target

    profile = load_target(recipe.target.name)
    if quick:
        settings = profile.measurement.model_copy(update={"seconds": 0.3, "blocks": 3})
        profile = profile.model_copy(update={"measurement": settings})
    accuracy = _accuracy(recipe, data, files, profile)
    latency = _latency(files, data, profile, repeats=1 if quick else 3)
    found: dict[str, dict[str, Any]] = {}
    for name, path in files.items():
        size = path.stat().st_size
        cost = costs.get(name)
        found[name] = {
            "top1": accuracy[name],
            "bytes": size,
            "bytes_ratio": size / files[FLOAT].stat().st_size,
            **latency[name],
            **_fusion(path, profile),
            "compression_seconds": None if cost is None else cost.seconds,
            "compression_peak_mb": None if cost is None else cost.peak_mb,
        }
    return found


def _accuracy(
    recipe: Recipe, data: CalibrationSet, files: Mapping[str, Path], profile: TargetProfile
) -> dict[str, float]:
    """The recipe's metric of all files, in one sweep over the validation rows."""
    from edgecompress.metrics import make_metric
    from edgecompress.runtimes import Artifact, runtime_class

    metric = make_metric(recipe.metric, base=recipe.base, data=data)
    runtime = runtime_class(profile.runtime)()
    sessions = {n: runtime.session(Artifact((path,)), profile) for n, path in files.items()}
    scores = {name: metric.score() for name in files}
    for batch in data.batches("validation"):
        for name, session in sessions.items():
            scores[name].add(session.run(batch.inputs), {}, batch)
    return {name: score.value() for name, score in scores.items()}


def _latency(
    files: Mapping[str, Path], data: CalibrationSet, profile: TargetProfile, *, repeats: int
) -> dict[str, dict[str, Any]]:
    """Latency of each file and its ratios, medians over repeated measurements.

    All files take turns in the same runs, so the ratio of two is that of their ratios to float.
    """
    from edgecompress.measure import measure

    feeds = data.sample(1)
    runs = [
        measure(files, profile, feeds, reference=FLOAT, operators=False) for _ in range(repeats)
    ]
    found = {
        name: {
            "latency_p50_ms": _median(run[name].latency_ms.p50 for run in runs),
            "latency_to_float": _median(run[name].latency_ratio or 1.0 for run in runs),
            "cpu_to_float": _median(run[name].cpu_ratio or 1.0 for run in runs),
            "quiet": all(run[name].conditions.quiet for run in runs),
        }
        for name in files
    }
    fastest = min((n for n in files if n in PEERS), key=lambda n: found[n]["latency_to_float"])
    found[OURS]["latency_to_fastest_peer"] = _median(
        (run[OURS].latency_ratio or 1.0) / (run[fastest].latency_ratio or 1.0) for run in runs
    )
    found[OURS]["fastest_peer"] = fastest
    return found


def _median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


def _fusion(path: Path, profile: TargetProfile) -> dict[str, Any]:
    """Of the layers and joins between Q and DQ in a file, how many run on integers."""
    from edgecompress.model import Model
    from edgecompress.runtimes import runtime_class

    model = Model.load(path)
    claimed = [
        node.outputs[0].name
        for node in model.ir.graph
        if node.op_type in ("Conv", "Gemm", "MatMul", "Add") and _is_dequantized(node.inputs[0])
    ]
    seen = runtime_class(profile.runtime)().coverage(model, claimed, profile)
    return {"claimed": seen.claimed, "fused": seen.fused, "integer_kernels": seen.integer_kernels}


def _is_dequantized(value: Any) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _table(name: str, found: dict[str, Any]) -> str:
    head = ("", "top-1 %", "MB", "/ float", "p50 ms", "/ float", "/ peer", "fused", "s", "peak MB")
    rows = [
        (
            file,
            100 * of["top1"],
            of["bytes"] / MB,
            of["bytes_ratio"],
            of["latency_p50_ms"],
            of["latency_to_float"],
            of.get("latency_to_fastest_peer"),
            f"{of['fused']}/{of['claimed']}",
            of["compression_seconds"],
            of["compression_peak_mb"],
        )
        for file, of in found["files"].items()
    ]
    title = (
        f"{name}: {found['calibration_rows']} calibration rows, "
        f"{found['validation_rows']} validation rows"
    )
    noisy = [] if all(of["quiet"] for of in found["files"].values()) else ["the machine was busy"]
    notes = [*(f"{peer} left out: {why}" for peer, why in found["left_out"].items()), *noisy]
    return "\n".join([table(title, head, rows), *notes])


def _verdicts(
    name: str, files: Mapping[str, Mapping[str, Any]], *, judge_accuracy: bool
) -> list[Verdict]:
    ours = files[OURS]
    best = max((files[peer]["top1"], peer) for peer in PEERS if peer in files)
    to_float, to_peer = ours["latency_to_float"], ours["latency_to_fastest_peer"]
    return [
        Verdict(
            f"{name}: top-1 at least that of the best onnxruntime calibrator",
            f"{100 * ours['top1']:.2f} against {100 * best[0]:.2f} ({best[1]})",
            ours["top1"] >= best[0] if judge_accuracy else None,
        ),
        Verdict(
            f"{name}: file at most {SIZE_GOAL:.2f} of float",
            f"{ours['bytes_ratio']:.3f}",
            ours["bytes_ratio"] <= SIZE_GOAL,
        ),
        Verdict(
            f"{name}: latency at most {FLOAT_LATENCY_GOAL} of float (with VNNI)",
            f"{to_float:.3f}",
            to_float <= FLOAT_LATENCY_GOAL if has_vnni() else None,
        ),
        Verdict(
            f"{name}: latency at most {PEER_LATENCY_GOAL} of onnxruntime's fastest quantized file",
            f"{to_peer:.3f} of {ours['fastest_peer']}",
            to_peer <= PEER_LATENCY_GOAL,
        ),
        Verdict(
            f"{name}: every claimed node runs on integers",
            f"{ours['fused']} of {ours['claimed']}",
            ours["fused"] == ours["claimed"],
        ),
    ]


def quantize_by_onnxruntime(source: str, arrays: dict[str, str], method: str, output: str) -> None:
    """In a fresh process: onnxruntime's recommended calls for x86."""
    import numpy as np
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            loaded = {name: np.load(file, mmap_mode="r") for name, file in arrays.items()}
            count = len(next(iter(loaded.values())))
            self.rows = (
                {n: np.array(array[i : i + 1]) for n, array in loaded.items()} for i in range(count)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    prepared = f"{output}.prepared"
    quant_pre_process(source, prepared)
    quantize_static(
        prepared,
        output,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
    )


def run_passes(recipe: dict[str, Any], output: str) -> None:
    """In a fresh process: the recipe's passes, without judging or measuring anything."""
    from edgecompress.evaluation import load_target
    from edgecompress.graph_pass import Context, run_pass
    from edgecompress.machine.host import host

    given = recipe_of(recipe)
    model, data = opened(given)
    constraints = load_target(given.target.name).constraints(host())
    for step in given.passes:
        context = Context(calibration=data, constraints=constraints, seed=given.build.seed)
        model = run_pass(step, model, context).model
    model.save(output)


def build(recipe: dict[str, Any], output: str) -> dict[str, Any]:
    """In a fresh process: the whole build, without cache, and without budgets to fail on noise."""
    tables = {**recipe["tables"], "budget": {}}
    without = recipe_of({**recipe, "tables": tables})
    report = edgecompress.build(without, output=output, use_cache=False)
    coverage = report.coverage
    return {
        "status": report.status,
        "claimed": None if coverage is None else coverage.claimed,
        "fused": None if coverage is None else coverage.fused,
    }
