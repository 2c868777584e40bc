"""Time per operator, and the arena's memory, from the file that onnxruntime's profiler writes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.runtimes._onnx_file import SourceGraph, without_suffixes

__all__ = ["OperatorRow", "operator_rows", "arena_bytes"]

_KERNEL = "_kernel_time"
# The profiler's names for what the arena holds, since onnxruntime 1.31.
_ARENA = {"held": "mem_arena_held", "in_use_peak": "mem_in_use_peak"}


@dataclass(frozen=True)
class OperatorRow:
    """One kernel of the optimized graph: mean time per run in microseconds, calls per run."""

    name: str
    op: str
    provider: str
    mean_us: float
    calls: float
    output_names: tuple[str, ...]


def operator_rows(profile: Path, runs: int, source: SourceGraph) -> list[OperatorRow]:
    """Kernels by mean time, longest first.

    Args:
        profile: The profiler's file.
        runs: How many of the last runs to look at; the ones before were warm-up.
        source: The graph of the model's file.
    """
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    starts = sorted(e["ts"] for e in events if e["name"] == "model_run")
    start = starts[-runs]
    kernels = [
        e for e in events if e["cat"] == "Node" and e["name"].endswith(_KERNEL) and e["ts"] >= start
    ]
    times: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    end = start
    for event in sorted(kernels, key=lambda e: (e["ts"], -e["dur"])):
        if event["ts"] < end and event["dur"] > 0:
            continue  # inside an If, Loop or Scan, whose own time covers it
        end = max(end, event["ts"] + event["dur"])
        args = event["args"]
        name = event["name"].removesuffix(_KERNEL)
        times[name, args["op_name"], args["provider"], args["node_index"]].append(event["dur"])
    names = {without_suffixes(name)[0] for name, *_ in times}
    rows = [
        OperatorRow(
            name=name,
            op=op,
            provider=provider,
            mean_us=sum(durations) / runs,
            calls=len(durations) / runs,
            output_names=source.stands_for(name, op, names),
        )
        for (name, op, provider, _), durations in times.items()
    ]
    return sorted(rows, key=lambda row: -row.mean_us)


def arena_bytes(profile: Path) -> dict[str, int]:
    """The most that onnxruntime's arena held, and had in use; empty where it does not tell.

    The arena serves activations and weights as they were read; weights that kernels packed for
    themselves, and the runtime's own data, lie outside.
    """
    events: list[dict[str, Any]] = json.loads(profile.read_text(encoding="utf-8"))
    found = {
        name: [int(event["args"][key]) for event in events if key in event.get("args", {})]
        for name, key in _ARENA.items()
    }
    return {name: max(figures) for name, figures in found.items() if figures}
