"""Control flow: If, Loop, Scan and SequenceMap, by sub-graph.

Behind a node's own inputs, a function gets the outer values that the node's sub-graphs read.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgecompress.torchgraph.bodies import Body
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import axis_of


@op("If", since=1)
def if_(condition: Tensor, *outer: Any, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    """Run one of two sub-graphs; the other one is not touched."""
    return tuple((then_branch if bool(condition) else else_branch)((), outer))


@op("Loop", since=1)
def loop(trips: Tensor | None, condition: Tensor | None, *rest: Any, body: Body) -> tuple[Any, ...]:
    """Run a sub-graph while its condition holds, ``trips`` times at most.

    The sub-graph maps (trip, condition, *state) to (condition, *state, *scanned). The scanned
    values of all trips are stacked on a new first axis.

    Raises:
        ModelError: No trip was made, and the sub-graph does not declare what it scans.
    """
    count = len(body.inputs) - 2
    state, outer = list(rest[:count]), rest[count:]
    scanned: list[list[Tensor]] = [[] for _ in body.outputs[count + 1 :]]
    last = None if trips is None else int(trips)
    going = condition is None or bool(condition)
    for trip in itertools.count():
        if not going or (last is not None and trip >= last):
            break
        proceed, *results = body([torch.tensor(trip), torch.tensor(True), *state], outer)
        going, state = bool(proceed), results[:count]
        for rows, row in zip(scanned, results[count:], strict=True):
            rows.append(row)
    return *state, *(_stack(rows, body, i + count + 1, 0) for i, rows in enumerate(scanned))


@op("Scan", since=9)
def scan(
    *values: Any,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> tuple[Any, ...]:
    """Run a sub-graph over the slices of its inputs, carrying a state.

    The sub-graph maps (*state, *slices) to (*state, *scanned). Direction 1 takes the slices, or
    puts the scanned values, from the end to the front.

    Raises:
        ValueError: The scanned inputs differ in length.
    """
    count = len(body.inputs) - num_scan_inputs
    state, outer = list(values[:count]), values[len(body.inputs) :]
    slices = [
        _slices(sequence, axis, direction)
        for sequence, axis, direction in zip(
            values[count : len(body.inputs)],
            scan_input_axes or [0] * num_scan_inputs,
            scan_input_directions or [0] * num_scan_inputs,
            strict=True,
        )
    ]
    scanned: list[list[Tensor]] = [[] for _ in body.outputs[count:]]
    for row in zip(*slices, strict=True):
        results = body([*state, *row], outer)
        state = results[:count]
        for rows, result in zip(scanned, results[count:], strict=True):
            rows.append(result)
    axes = scan_output_axes or [0] * len(scanned)
    directions = scan_output_directions or [0] * len(scanned)
    stacked = (
        _stack(rows[::-1] if direction else rows, body, i + count, axis)
        for i, (rows, axis, direction) in enumerate(zip(scanned, axes, directions, strict=True))
    )
    return *state, *stacked


def _slices(sequence: Tensor, axis: int, direction: int) -> list[Tensor]:
    found = list(sequence.unbind(axis))
    return found[::-1] if direction else found


def _stack(rows: list[Tensor], body: Body, output: int, axis: int) -> Tensor:
    if rows:
        return torch.stack(rows, axis)
    empty = body.types[output].empty(body.device)
    return empty.movedim(0, axis_of(axis, empty.ndim))


@op("SequenceMap", since=17)
def sequence_map(sequence: list[Tensor], *rest: Any, body: Body) -> tuple[list[Any], ...]:
    """Run a sub-graph on each element; further sequences go along, tensors stay as they are."""
    count = len(body.inputs) - 1
    others, outer = rest[:count], rest[count:]
    rows = [
        body([item, *(o[i] if isinstance(o, list) else o for o in others)], outer)
        for i, item in enumerate(sequence)
    ]
    return tuple([row[i] for row in rows] for i in range(len(body.outputs)))
