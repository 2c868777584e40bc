"""What a report tells of a factorization, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgecompress.factorization.conv_costs import split_cost
from edgecompress.factorization.parts import Layer, Split
from edgecompress.factorization.result import Factorized

__all__ = ["factorization_notes"]


def factorization_notes(
    done: Factorized,
    layers: Sequence[Layer],
    seconds: Mapping[str, tuple[float, float]],
    others: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Parameters and multiply-accumulates, ranks, spectra, and errors along the depth.

    Args:
        done: What was done.
        layers: All that could have been factorized; a weight that several use counts once.
        seconds: By output of the layer: measured times of the layer and of its factors.
        others: By objective and block: errors without refinement.
    """
    parameters, macs = [0, 0], [0.0, 0.0]
    weights = set[str]()
    for layer in layers:
        split = done.splits.get(layer.output)
        after, macs_after = (layer.parameters, layer.macs) if split is None else _cost(layer, split)
        macs[0] += layer.macs
        macs[1] += macs_after
        if layer.weight not in weights:
            weights.add(layer.weight)
            parameters[0] += layer.parameters
            parameters[1] += after
    return {
        "parameters": parameters,
        "macs": macs,
        "layers": [_layer(layer, done, seconds.get(layer.output)) for layer in layers],
        "blocks": [_block(done, number, others) for number in range(len(done.blocks))],
    }


def _cost(layer: Layer, split: Split) -> tuple[int, float]:
    rows_first = len(layer.kernel) > 1 and split.weights[0].shape[-1] == 1
    return split_cost(layer, split.kind, split.ranks, first=0 if rows_first else 1)


def _layer(layer: Layer, done: Factorized, seconds: tuple[float, float] | None) -> dict[str, Any]:
    note: dict[str, Any] = {
        "layer": layer.node,
        "op": layer.op,
        "shape": [layer.rows * layer.groups, layer.columns],
    }
    if seconds is not None:
        note["seconds"] = list(seconds)
    split = done.splits.get(layer.output)
    if split is None:
        same = [layer.parameters, layer.parameters]
        return {**note, "kind": "dense", "rank": [], "parameters": same}
    full = min(layer.rows, layer.columns)
    return {
        **note,
        "kind": split.kind,
        "rank": list(split.ranks),
        "parameters": [layer.parameters, split.parameters],
        "full_rank": full,
        "break_even": layer.rows * layer.columns / (layer.rows + layer.columns),
        "error": split.error,
        "spectrum": done.spectra.get(layer.output, []),
    }


def _block(
    done: Factorized, number: int, others: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    block = done.blocks[number]
    errors: dict[str, float] = {done.objective: block.error}
    errors |= {kind: found[block.block] for kind, found in others.items() if block.block in found}
    note: dict[str, Any] = {"block": block.block, "errors": errors}
    if block.refined is not None:
        if not math.isnan(block.refined.after):
            errors["refined"] = block.refined.after
        note["refinement"] = block.refined.as_json()
    return note
