"""Which stretches of a graph make one block: cuts, repeats, and who gets what holds no layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import onnx_ir as ir

from edgecompress.walk.liveness import Liveness

__all__ = ["Span", "spans"]

_LONGEST_REPEAT = 64


@dataclass(frozen=True)
class Span:
    """Main nodes from ``start`` to before ``stop``.

    Attributes:
        start: Position of the first.
        stop: Position behind the last.
        layers: How many of them hold a weight matrix.
        repeat: Spans of the same structure, one after the other, have the same number; -1 else.
        opaque: torch cannot run them.
        embeds: The only layers are look-ups in tables.
    """

    start: int
    stop: int
    layers: int
    repeat: int = -1
    opaque: bool = False
    embeds: bool = False

    def __add__(self, other: Span) -> Span:
        return replace(self, stop=other.stop, layers=self.layers + other.layers)

    @property
    def is_filler(self) -> bool:
        """Whether it is none that a block is made for."""
        return not self.layers and not self.opaque


def spans(liveness: Liveness, opaque: Collection[ir.Node], most_layers: int) -> list[Span]:
    """Cut the main nodes into blocks.

    Args:
        liveness: Of the graph.
        opaque: Nodes that torch cannot run; each run of them is a block of its own.
        most_layers: A stretch without a natural cut is cut further if it holds more layers.
    """
    return _merged(_repeats(liveness, _atoms(liveness, opaque, most_layers)))


def _atoms(liveness: Liveness, opaque: Collection[ir.Node], most: int) -> list[Span]:
    """The smallest stretches between cuts; runs of what torch cannot run are one each."""
    main = liveness.main
    edges = {0, len(main), *(i + 1 for i in liveness.cuts)}
    for position, node in enumerate(main):
        if node in opaque:
            edges.update((position, position + 1))
    atoms: list[Span] = []
    for start, stop in pairwise(sorted(edges)):
        if main[start] in opaque:
            span = Span(start, stop, 0, opaque=True)
            if atoms and atoms[-1].opaque:
                atoms[-1] += span
            else:
                atoms.append(span)
            continue
        for a, b in pairwise([start, *_split(liveness, start, stop, most), stop]):
            layers = [node for node in main[a:b] if node in liveness.layers]
            embeds = bool(layers) and all(node.op_type == "Gather" for node in layers)
            atoms.append(Span(a, b, len(layers), embeds=embeds))
    return atoms


def _split(liveness: Liveness, start: int, stop: int, most: int) -> list[int]:
    """Where to cut a stretch so that no piece has more layers, at the fewest live bytes."""
    holds = [node in liveness.layers for node in liveness.main[start:stop]]
    if sum(holds) <= most:
        return []
    cost, previous = [0.0] + [math.inf] * len(holds), [0] * (len(holds) + 1)
    for end in range(1, len(holds) + 1):
        here = 0 if end == len(holds) else liveness.live_bytes[start + end - 1]
        layers = 0
        for begin in range(end - 1, -1, -1):
            layers += holds[begin]
            if layers > most:
                break
            if cost[begin] + here < cost[end]:
                cost[end], previous[end] = cost[begin] + here, begin
    cuts, end = [], previous[-1]
    while end > 0:
        cuts.append(start + end)
        end = previous[end]
    return cuts[::-1]


def _repeats(liveness: Liveness, atoms: list[Span]) -> list[Span]:
    """Join each whole repeat of a structure; a repeat begins at a layer."""
    signs = [_signature(liveness, atom) for atom in atoms]
    joined: list[Span] = []
    at = 0
    while at < len(atoms):
        period, count = _best_repeat(signs, at) if atoms[at].layers else (1, 1)
        for first in range(at, at + period * count, period):
            span = atoms[first]
            for atom in atoms[first + 1 : first + period]:
                span += atom
            joined.append(replace(span, repeat=at if count > 1 else -1))
        at += count * period
    return joined


def _signature(liveness: Liveness, atom: Span) -> tuple[object, ...]:
    if atom.opaque:
        return ("opaque", atom.start)
    return tuple(
        (
            node.op_type,
            node.attributes.get_int("group", 1) > 1,
            tuple(node.attributes.get_ints("kernel_shape", ())),
        )
        for node in liveness.main[atom.start : atom.stop]
    )


def _best_repeat(signs: Sequence[tuple[object, ...]], at: int) -> tuple[int, int]:
    """Period and number of repeats that cover most from ``at`` on; the shortest of equals.

    A period in which something repeats itself is none: not the three residual blocks of a stage
    are the structure, but each one. Neither is a single node.
    """
    best = (1, 1)
    for period in range(1, min(_LONGEST_REPEAT, (len(signs) - at) // 2) + 1):
        first = signs[at : at + period]
        count = 1
        while signs[at + count * period : at + (count + 1) * period] == first:
            count += 1
        if count * period <= best[0] * best[1] or count == 1:
            continue
        if sum(map(len, first)) > 1 and not _has_repeat(first):
            best = period, count
    return best


def _has_repeat(signs: Sequence[object]) -> bool:
    return any(
        signs[at : at + period] == signs[at + period : at + 2 * period]
        for period in range(1, len(signs) // 2 + 1)
        for at in range(len(signs) - 2 * period + 1)
    )


def _merged(spans: list[Span]) -> list[Span]:
    """Give what holds no layer to a neighbour.

    To the block before it (an activation, a norm behind the addition), but rather to the one
    after it than to the last of a repeat (the norm before the head). Embeddings that are added up
    are one block.
    """
    merged: list[Span] = []
    for number, span in enumerate(spans):
        before = merged[-1] if merged else None
        after = next((s for s in spans[number + 1 :] if not s.is_filler), None)
        rather_after = (
            before is not None
            and before.repeat >= 0
            and after is not None
            and after.repeat < 0
            and not after.opaque
        )
        if before is not None and before.embeds and span.embeds:
            merged[-1] = before + span
        elif before is not None and before.is_filler:  # it waited for this one
            merged[-1] = replace(before + span, repeat=span.repeat, opaque=span.opaque)
        elif not span.is_filler or before is None or before.opaque or rather_after:
            merged.append(span)
        else:
            merged[-1] = before + span
    return merged
