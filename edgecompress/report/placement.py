"""Which nodes run where, as reports carry it, and in words."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from edgecompress.runtimes import Placement

__all__ = ["BreakInfo", "PlacedNodeInfo", "PlacementInfo", "placement_info", "placement_lines"]

_MOST_BREAKS = 5


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlacedNodeInfo(_Result):
    """Where a node runs; see :class:`edgecompress.runtimes.PlacedNode`."""

    node: str
    op: str
    runs_on: str
    kernel: str
    integer: bool | None
    partition: int | None


class BreakInfo(_Result):
    """What keeps nodes off the accelerator or off integers, and what would help."""

    node: str
    op: str
    reason: str
    mend: str


class PlacementInfo(_Result):
    """Which nodes run where; see :class:`edgecompress.runtimes.Placement`.

    ``merged`` counts nodes that run nowhere by themselves: other kernels took them in, or they were
    computed when the model was loaded.
    """

    accelerator: str
    on_accelerator: int
    merged: int
    integer_nodes: int
    partitions: int
    nodes: list[PlacedNodeInfo]
    breaks: list[BreakInfo]
    source: str
    note: str | None


def placement_info(found: Placement) -> PlacementInfo:
    """The record of a runtime's answer."""
    return PlacementInfo(
        accelerator=found.accelerator,
        on_accelerator=found.on_accelerator,
        merged=sum(not node.runs_on for node in found.nodes),
        integer_nodes=sum(node.integer is True for node in found.nodes),
        partitions=found.partitions,
        nodes=[PlacedNodeInfo(**vars(node)) for node in found.nodes],
        breaks=[BreakInfo(**vars(each)) for each in found.breaks],
        source=found.source,
        note=found.note,
    )


def placement_lines(found: PlacementInfo) -> Iterator[str]:
    """How many nodes are where they should be, and the first things that keep others away."""
    pieces = "1 piece" if found.partitions == 1 else f"{found.partitions} pieces"
    merged = f"; {found.merged} others became part of them" if found.merged else ""
    yield (
        f"{found.on_accelerator} of {len(found.nodes) - found.merged} nodes on "
        f"{found.accelerator} in {pieces}, {found.integer_nodes} on integers{merged}"
    )
    if found.note:
        yield found.note
    for each in found.breaks[:_MOST_BREAKS]:
        yield f"{each.op} {each.node}: {each.reason}{f' -> {each.mend}' if each.mend else ''}"
    if len(found.breaks) > _MOST_BREAKS:
        yield f"and {len(found.breaks) - _MOST_BREAKS} more; the page and the JSON have all"
