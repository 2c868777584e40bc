"""Rounding of weights better than to the nearest integer, block by block on the walk.

Both graphs run on the same rows. When the walk reaches a block, its weights are rounded by what its
layers see in the quantized graph, and what later blocks see has passed through the result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from edgecompress.data.calibration import CalibrationSet
from edgecompress.model import Model
from edgecompress.numerics.one_thread import one_thread
from edgecompress.progress import Progress, silent
from edgecompress.quantization.adaround import round_by_adaround
from edgecompress.quantization.candidate import Candidate, candidate
from edgecompress.quantization.gptq import round_by_gptq
from edgecompress.quantization.learned import round_by_learning
from edgecompress.quantization.rounded_layer import (
    LayerRounding,
    RoundedLayer,
    RoundingNotes,
    RoundingRun,
)
from edgecompress.walk.blocks import find_blocks
from edgecompress.walk.liveness import reads
from edgecompress.walk.step import WalkStep
from edgecompress.walk.walker import Walk

__all__ = ["LayerRounding", "RoundedLayer", "RoundingMethod", "RoundingNotes", "round_weights"]

RoundingMethod = Literal["nearest", "gptq", "adaround", "learned"]

_BATCH_ROWS = 8
_Rounder = Callable[[WalkStep, Sequence[Candidate], RoundingRun], list[LayerRounding]]
_ROUNDERS: dict[str, _Rounder] = {
    "gptq": round_by_gptq,
    "adaround": round_by_adaround,
    "learned": round_by_learning,
}


def round_weights(
    original: Model,
    quantized: Model,
    layers: Sequence[RoundedLayer],
    data: CalibrationSet,
    *,
    method: RoundingMethod,
    rows: int,
    iterations: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    memory: int | None = None,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> RoundingNotes:
    """Replace integer weights of a quantized graph, in place; scales and all else stay.

    On the CPU, results do not depend on the number of threads.

    Args:
        original: The float model.
        quantized: The same model with Q/DQ pairs, its weights rounded to the nearest.
        layers: The layers to work on.
        data: Where calibration rows come from.
        method: ``gptq`` (see :mod:`~edgecompress.quantization.gptq`), ``adaround``
            (:mod:`~edgecompress.quantization.adaround`), ``learned``
            (:mod:`~edgecompress.quantization.learned`), or ``nearest``, which changes nothing.
        rows: How many calibration rows, about.
        iterations: Of ``adaround`` for each layer, of ``learned`` for each block; default: theirs.
        seed: Of the places and rows that are drawn.
        device: torch device.
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for activations past the limit.
        progress: Told the rows done.

    Raises:
        PassError: Activations are not finite.
    """
    if method == "nearest" or not layers:
        return RoundingNotes(method)
    with one_thread() as threads:
        run = RoundingRun(
            model=quantized.inlined(),
            rows=min(rows, data.calibration_rows),
            iterations=iterations,
            seed=seed,
            device=device,
            threads=threads if device == "cpu" else 1,
            keep=memory is None,
        )
        walk = Walk(
            original,
            data,
            current=run.model,
            blocks=find_blocks(original),
            rows=rows,
            batch_size=_BATCH_ROWS,
            threads=run.threads,
            device=device,
            memory=memory,
            scratch=scratch,
            progress=progress,
            label=f"round weights ({method})",
        )
        notes = [
            note for step in walk for note in _round_block(step, layers, original, method, run)
        ]
    if run.model is not quantized:
        for name in dict.fromkeys(layer.weight for layer in layers):
            quantized.set_initializer(name, run.model.initializer(name))
    return RoundingNotes(method, tuple(notes))


def _round_block(
    step: WalkStep,
    layers: Sequence[RoundedLayer],
    original: Model,
    method: RoundingMethod,
    run: RoundingRun,
) -> list[LayerRounding]:
    """Round the weights of the layers that lie in one block."""
    ours = {value.name: node for node in step.block.nodes for value in node.outputs if value.name}
    current = step.current_nodes
    theirs = {value.name: node for node in current for value in node.outputs if value.name}
    by_weight: dict[str, list[RoundedLayer]] = defaultdict(list)
    for layer in layers:
        by_weight[layer.weight].append(layer)
    notes: list[LayerRounding] = []
    found: list[Candidate] = []
    for users in by_weight.values():
        here = [layer for layer in users if layer.output in ours]
        if not here:
            continue
        item: Candidate | str = "its weight is used in another block, too"
        if len(here) == len(users):
            item = "its input or output is not seen on the walk"
            if all(layer.quantized_output in theirs for layer in users):
                item = candidate(users, ours, theirs, run.model, original, run.device)
        if isinstance(item, str):
            notes += [LayerRounding(u.output, u.op, "nearest", reason=item) for u in here]
        else:
            found.append(item)
    for stage in [found] if method == "learned" and found else _levels(current, found):
        notes += _ROUNDERS[method](step, stage, run)
    return notes


def _levels(nodes: Iterable[ir.Node], found: Sequence[Candidate]) -> list[list[Candidate]]:
    """Weights in the order of the data; those of one level do not feed one another."""
    ends = {user.layer.quantized_output: item for item in found for user in item.users}
    depth: dict[ir.Value, int] = {}
    level: dict[str, int] = {}
    for node in nodes:
        here = max((depth.get(value, 0) for value in reads(node)), default=0)
        item = ends.get(node.outputs[0].name or "")
        if item is not None:
            level.setdefault(item.name, here)
            here += 1
        depth.update(dict.fromkeys(node.outputs, here))
    stages: Mapping[int, list[Candidate]] = defaultdict(list)
    for item in found:
        stages[level[item.name]].append(item)
    return [stages[number] for number in sorted(stages)]
