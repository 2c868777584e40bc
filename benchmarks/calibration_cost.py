"""What calibration costs: memory above the float model's own, and time over plain forward passes.

MobileNet v1 at 224 x 224 after the pass ``cleanup``, every activation that ``quantize`` measures.

- Memory: peak of a fresh process that sweeps the calibration rows and chooses all ranges, less that
  of a fresh process that only loads the same model and data and runs one batch through torch. With
  100 and with 400 rows, and onnxruntime's entropy calibrator for comparison.
- Time: ``collect`` against the same rows through the same torch graph with nobody watching; and the
  whole pass against the forward passes that it cannot do without: the sweep, and for bias
  correction the float and the quantized graph on its rows. The rows lie ready in memory, and the
  two take turns. Each ratio is the median over the repeats.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from _common import (
    Fresh,
    Outcome,
    Verdict,
    arrays_on_disk,
    example,
    in_fresh_process,
    in_turn,
    note,
    opened,
    recipe_of,
    source_of,
    table,
    tables_of,
)
from walk_cost import InMemory

if TYPE_CHECKING:
    from edgecompress import Recipe
    from edgecompress.constraints import Constraints
    from edgecompress.data.calibration import Batch
    from edgecompress.model import Model
    from edgecompress.passes.quantize import Quantize
    from edgecompress.qdq_plan import Placement

EXAMPLE = "mobilenet_v1_imagenet"
METHODS = ("minmax", "percentile", "entropy", "mse")
MEMORY_GOAL_MB, SWEEP_GOAL = 400.0, 1.5

# What onnxruntime's entropy calibrator takes for 100 rows of this model, and some room.
_PEER_BYTES = 6e9


def run(*, quick: bool) -> Outcome:
    counts = (16, 64) if quick else (100, 400)
    outcome = Outcome({})
    _memory(outcome, counts)
    _time(outcome, counts[0], repeats=2 if quick else 5)
    return outcome


def _example(rows: int) -> Recipe:
    """The recipe with so many calibration rows; beyond 100, those that it validates on."""
    recipe = example(EXAMPLE)
    assert recipe.data is not None
    calibration, validation = recipe.data.tables()
    assert calibration is not None
    assert validation is not None
    chosen = calibration if rows <= (calibration.rows or 0) else validation
    tables = recipe.as_dict()
    tables["data"]["calibration"] = {**chosen.model_dump(), "rows": rows}
    del tables["data"]["validation"]
    del tables["metric"]
    return type(recipe).from_dict(tables, base=recipe.base, where=EXAMPLE)


def _memory(outcome: Outcome, counts: tuple[int, int]) -> None:
    found = [record for count in counts for record in _our_memory(count)]
    peer = _peer_memory(counts[0])
    outcome.figures["memory"] = {"edgecompress": found, "onnxruntime": peer}
    shown = [*found, *([] if peer is None else [peer])]
    head = ("", "rows", "base MB", "peak MB", "above MB", "process s")
    title = "Peak memory of calibration (10^6 bytes)"
    outcome.tables.append(table(title, head, [tuple(record.values()) for record in shown]))
    for count in counts:
        worst = max(record["above_base_mb"] for record in found if record["rows"] == count)
        outcome.verdicts.append(
            Verdict(
                f"memory above the float model's process under {MEMORY_GOAL_MB:.0f} MB, "
                f"{count} rows, all methods",
                f"{worst:.0f} MB",
                worst < MEMORY_GOAL_MB,
            )
        )


def _our_memory(count: int) -> Iterator[dict[str, Any]]:
    recipe = tables_of(_example(count))
    # Allocators differ by tens of megabytes from run to run; the least is the strictest base.
    bases = [
        in_fresh_process("calibration_cost", "one_forward_pass", recipe=recipe).peak_mb
        for _ in range(3)
    ]
    for method in METHODS:
        note(f"memory: {method}, {count} rows")
        fresh = in_fresh_process("calibration_cost", "calibrate", recipe=recipe, method=method)
        yield _memory_record(method, count, min(bases), fresh)


def _memory_record(method: str, rows: int, base_mb: float, fresh: Fresh) -> dict[str, Any]:
    return {
        "method": method,
        "rows": rows,
        "base_mb": base_mb,
        "peak_mb": fresh.peak_mb,
        "above_base_mb": fresh.peak_mb - base_mb,
        "seconds": fresh.seconds,
    }


def _peer_memory(count: int) -> dict[str, Any] | None:
    """The same of onnxruntime's entropy calibrator; None where memory is short."""
    free = psutil.virtual_memory().available
    if free < _PEER_BYTES:
        note(f"onnxruntime left out: only {free / 1e9:.1f} GB of memory are free")
        return None
    note(f"memory: onnxruntime entropy, {count} rows")
    recipe = _example(count)
    _, data = opened(recipe)
    source = os.fspath(source_of(recipe))
    with arrays_on_disk(data) as arrays, tempfile.TemporaryDirectory() as folder:
        base = in_fresh_process(
            "calibration_cost", "one_run_of_onnxruntime", source=source, arrays=arrays
        )
        full = in_fresh_process(
            "int8_quality",
            "quantize_by_onnxruntime",
            source=source,
            arrays=arrays,
            method="Entropy",
            output=os.fspath(Path(folder) / "quantized.onnx"),
        )
    return _memory_record("onnxruntime entropy", count, base.peak_mb, full)


def _time(outcome: Outcome, rows: int, *, repeats: int) -> None:
    import torch

    everything = torch.get_num_threads()
    found = []
    for threads in dict.fromkeys((1, everything)):
        torch.set_num_threads(threads)
        found.append(_time_with(rows, repeats, threads))
    torch.set_num_threads(everything)
    outcome.figures["time"] = found
    head = ("threads", "forward s", "sweep s", "/ forward", "needed s", "pass s", "/ needed")
    listed = [
        (
            str(of["threads"]),
            of["forward_seconds"],
            of["sweep_seconds"],
            of["sweep_ratio"],
            of["needed_seconds"],
            of["pass_seconds"],
            of["pass_ratio"],
        )
        for of in found
    ]
    title = f"Time of calibration, {rows} rows, medians of {repeats} repeats"
    outcome.tables.append(table(title, head, listed))
    for of in found:
        outcome.verdicts.append(
            Verdict(
                f"statistics sweep at most {SWEEP_GOAL} of the forward passes, "
                f"{of['threads']} threads",
                f"{of['sweep_ratio']:.2f}",
                of["sweep_ratio"] <= SWEEP_GOAL,
            )
        )


def _time_with(rows: int, repeats: int, threads: int) -> dict[str, Any]:
    note(f"time: {threads} threads")
    recipe = _example(rows)
    model, step, constraints, data = _prepared(recipe)
    ready = _InMemory(data)
    names = _placement(model, step, constraints).measured
    quantized = _quantized(model, step, constraints, ready)
    bias_rows = min(step.bias_rows, rows)

    def forward() -> None:
        _forward(model, ready.batches("calibration"))

    def sweep() -> None:
        from edgecompress.sharding import collect_sharded

        collect_sharded(model, ready, names)  # type: ignore[arg-type]

    def needed() -> None:
        forward()
        for graph in (model, quantized):
            _forward(graph, ready.first(bias_rows))

    def whole() -> None:
        _quantized(model, step, constraints, ready)

    taken = [in_turn(forward, sweep, needed, whole) for _ in range(repeats)]
    forwards, sweeps, needs, wholes = zip(*taken, strict=True)
    return {
        "threads": threads,
        "tensors": len(names),
        "forward_seconds": statistics.median(forwards),
        "sweep_seconds": statistics.median(sweeps),
        "sweep_ratio": statistics.median(s / f for s, f in zip(sweeps, forwards, strict=True)),
        "needed_seconds": statistics.median(needs),
        "pass_seconds": statistics.median(wholes),
        "pass_ratio": statistics.median(w / n for w, n in zip(wholes, needs, strict=True)),
        "sweep_ratios": [s / f for s, f in zip(sweeps, forwards, strict=True)],
        "pass_ratios": [w / n for w, n in zip(wholes, needs, strict=True)],
    }


class _InMemory(InMemory):
    """With the first rows of them."""

    def first(self, rows: int) -> Iterator[Batch]:
        done = 0
        for batch in self.batches("calibration"):
            if done >= rows:
                return
            done += batch.rows
            yield batch


def _prepared(recipe: Recipe) -> tuple[Model, Quantize, Constraints, Any]:
    """The model after ``cleanup``, the pass ``quantize``, the target's demands, and the data."""
    from edgecompress.evaluation import load_target
    from edgecompress.graph_pass import Context, run_pass
    from edgecompress.machine.host import host

    cleanup, quantize = recipe.passes
    model, data = opened(recipe)
    constraints = load_target(recipe.target.name).constraints(host())
    cleaned = run_pass(cleanup, model, Context(constraints=constraints)).model
    return cleaned, quantize, constraints, data  # type: ignore[return-value]


def _placement(model: Model, step: Quantize, constraints: Constraints) -> Placement:
    from edgecompress.qdq_plan import place

    assert constraints.int8 is not None
    symmetric = constraints.int8.activation_symmetric
    return place(model, step.for_node, constraints.int8_ops, drop_activations=not symmetric)


def _quantized(model: Model, step: Quantize, constraints: Constraints, data: Any) -> Model:
    from edgecompress.graph_pass import Context

    return step.run(model, Context(calibration=data, constraints=constraints)).model


def _forward(model: Model, batches: Iterator[Batch]) -> None:
    import torch

    from edgecompress.torchgraph import to_torch

    graph = to_torch(model)
    with torch.inference_mode():
        for batch in batches:
            graph({name: torch.from_numpy(array) for name, array in batch.inputs.items()})


def one_forward_pass(recipe: dict[str, Any]) -> None:
    """In a fresh process: all that calibration needs, but one batch and nobody watching."""
    model, step, constraints, data = _prepared(recipe_of(recipe))
    _placement(model, step, constraints)
    _forward(model, iter([next(data.batches("calibration"))]))


def calibrate(recipe: dict[str, Any], method: str) -> None:
    """In a fresh process: the statistics of all rows, and the range of every tensor."""
    from edgecompress.sharding import collect_sharded

    model, step, constraints, data = _prepared(recipe_of(recipe))
    chosen = replace(step, method=method)  # type: ignore[arg-type]
    placement = _placement(model, chosen, constraints)
    assert constraints.int8 is not None
    found = collect_sharded(model, data, placement.measured)
    chosen._activation_parameters(placement, found, constraints.int8)


def one_run_of_onnxruntime(source: str, arrays: dict[str, str]) -> None:
    """In a fresh process: the float model in onnxruntime, one row, as its calibrators run it."""
    import numpy as np
    import onnxruntime
    import onnxruntime.quantization

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feeds = {name: np.load(file, mmap_mode="r")[:1] for name, file in arrays.items()}
    session.run(None, {name: np.array(array) for name, array in feeds.items()})
